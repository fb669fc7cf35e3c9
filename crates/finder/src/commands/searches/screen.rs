//! The table of `searches watch` on a terminal.

use std::{collections::BTreeMap, time::SystemTime};

use hashfinder_proto::v1::{SearchState, SearchSummary};

use super::{arguments::State, rows::aligned};
use crate::terminal::live::Live;

/// Maximum number of ended searches that a watch keeps. No terminal has more lines.
const KEPT_ENDED: usize = 1000;

/// A table on a terminal that is redrawn in its place.
pub(super) struct Screen {
    /// States of the searches that are shown; if empty, all states.
    states: Vec<SearchState>,
    /// Searches by their start (seconds, nanoseconds) and ID.
    searches: BTreeMap<(i64, i32, String), SearchSummary>,
    pub(super) live: Live,
}

impl Screen {
    pub(super) fn new(states: &[State]) -> Screen {
        Screen {
            states: states.iter().map(|state| state.to_proto()).collect(),
            searches: BTreeMap::new(),
            live: Live::default(),
        }
    }

    /// Applies changes that the server sent.
    pub(super) fn take(&mut self, changes: Vec<SearchSummary>) {
        for search in changes {
            let began = search.started_at.unwrap_or_default();
            let key = (began.seconds, began.nanos, search.search_id.clone());
            // The server sends a search once more when it has left the watched states.
            if self.states.is_empty() || self.states.contains(&search.state()) {
                self.searches.insert(key, search);
            } else {
                self.searches.remove(&key);
            }
        }
        let ended = |search: &SearchSummary| search.state() == SearchState::Ended;
        let all = self
            .searches
            .values()
            .filter(|search| ended(search))
            .count();
        let mut too_many = all.saturating_sub(KEPT_ENDED);
        self.searches.retain(|_, search| {
            let goes = too_many > 0 && ended(search);
            too_many -= usize::from(goes);
            !goes
        });
    }

    /// Returns the text that redraws the table on a terminal with `height` lines.
    pub(super) fn draw(&mut self, height: usize, now: SystemTime) -> String {
        let lines = self.lines(height, now);
        self.live.draw(&lines, height)
    }

    /// Returns the table, with at most `height` lines, but at least two if there are searches. It
    /// has the searches under way, and then the ended searches that began last.
    fn lines(&self, height: usize, now: SystemTime) -> Vec<String> {
        if self.searches.is_empty() {
            return vec!["no searches".to_owned()];
        }
        let (ended, going_on): (Vec<_>, Vec<_>) = self
            .searches
            .values()
            .partition(|search| search.state() == SearchState::Ended);
        // The titles take one line. If not all searches fit, the line "and N more" takes another.
        let mut room = height.saturating_sub(1).max(1);
        let all = self.searches.len();
        if all > room {
            room = room.saturating_sub(1);
        }
        let going_on = &going_on[..going_on.len().min(room)];
        let last = ended.len().min(room - going_on.len());
        let ended = &ended[ended.len() - last..];
        let mut lines = aligned(going_on.iter().chain(ended).copied(), now);
        let left = all - going_on.len() - ended.len();
        if left > 0 {
            lines.push(format!("and {left} more"));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prost_types::Timestamp;

    use super::*;

    fn search(id: &str, began: i64, state: SearchState) -> SearchSummary {
        SearchSummary {
            search_id: id.to_owned(),
            client: "ip:127.0.0.1".to_owned(),
            desired_names: vec!["doctor".to_owned()],
            state: state.into(),
            started_at: Some(Timestamp {
                seconds: began,
                nanos: 0,
            }),
            ..SearchSummary::default()
        }
    }

    fn ids(lines: &[String]) -> Vec<&str> {
        let words = lines.iter().map(|line| line.split(' ').next());
        words.map(Option::unwrap_or_default).collect()
    }

    #[test]
    fn a_table_fits_the_terminal() {
        let mut screen = Screen::new(&[]);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        assert_eq!(screen.lines(24, now), ["no searches"]);
        screen.take(vec![
            search("a", 1, SearchState::Ended),
            search("b", 2, SearchState::Running),
            search("c", 3, SearchState::Ended),
            search("d", 4, SearchState::Parked),
        ]);
        for (height, shown) in [
            (24, &["SEARCH", "b", "d", "a", "c"] as &[&str]),
            (5, &["SEARCH", "b", "d", "a", "c"]),
            (4, &["SEARCH", "b", "d", "and"]),
            (3, &["SEARCH", "b", "and"]),
            (2, &["SEARCH", "and"]),
        ] {
            assert_eq!(ids(&screen.lines(height, now)), shown, "{height}");
        }
        assert_eq!(ids(&screen.lines(5, now)[3..]), ["a", "c"]);
        screen.take(vec![search("b", 2, SearchState::Ended)]);
        assert_eq!(ids(&screen.lines(4, now)), ["SEARCH", "d", "c", "and"]);
    }

    #[test]
    fn searches_that_leave_the_watched_states_are_dropped() {
        let mut screen = Screen::new(&[State::Running]);
        let now = SystemTime::UNIX_EPOCH;
        screen.take(vec![search("a", 1, SearchState::Running)]);
        assert_eq!(screen.lines(24, now).len(), 2);
        screen.take(vec![search("a", 1, SearchState::Ended)]);
        assert_eq!(screen.lines(24, now), ["no searches"]);
    }

    #[test]
    fn no_more_ended_searches_are_kept_than_are_shown() {
        let mut screen = Screen::new(&[]);
        screen.take(vec![search("running", 0, SearchState::Running)]);
        let some = |range: std::ops::Range<i64>| {
            let one = |began: i64| search(&began.to_string(), began, SearchState::Ended);
            range.map(one).collect::<Vec<_>>()
        };
        screen.take(some(1..2000));
        screen.take(some(2000..2010));
        assert_eq!(screen.searches.len(), KEPT_ENDED + 1);
        let (oldest, newest) = (screen.searches.keys().next(), screen.searches.keys().last());
        assert_eq!(oldest.map(|key| key.2.as_str()), Some("running"));
        assert_eq!(newest.map(|key| key.2.as_str()), Some("2009"));
    }
}
