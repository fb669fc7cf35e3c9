//! The progress of a search, as lines of text: what was done, the odds, and the nearest secret.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, OnceLock},
    time::Duration,
};

use hashfinder_search::{Index, Odds};
use hashfinder_system::clock;
use jiff::{Zoned, tz::TimeZone};

use super::{finding::Finding, rate::CurrentRate, status::Status};
use crate::terminal::figures::{Percent, Scaled, number, show, when};

/// Interval between two drawings of the progress on a terminal: short enough to look alive, at no
/// measurable cost.
pub(super) const REDRAW_EVERY: Duration = Duration::from_millis(250);

/// Time over which the shown rate is averaged: long enough for a steady number that can be read,
/// short enough for the current rate.
const RATE_OVER: Duration = Duration::from_secs(2);

/// Time over which the rate behind the estimated times is averaged: long enough for the estimates
/// to stay steady while the machine is briefly busy with other work.
const STEADY_RATE_OVER: Duration = Duration::from_secs(30);

/// Chances whose estimated times are shown: even, likely, nearly sure.
const POINTS: [(f64, &str); 3] = [(0.5, "50%"), (0.9, "90%"), (0.99, "99%")];

/// Time until the first line if stderr is not a terminal. Most searches are over by then.
const FIRST_LINE: Duration = Duration::from_secs(10);

/// Pause after the first line. Each later pause is twice as long as the one before it, up to
/// [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(30);

/// Longest pause: short enough to show that the search is alive, long enough to keep the log of a
/// week short.
const LAST_PAUSE: Duration = Duration::from_secs(600);

/// The progress of a search: redrawn on a terminal, otherwise printed less and less often.
pub(super) struct Progress {
    odds: Odds,
    /// Number of answers that are wanted.
    wanted: u64,
    /// Index from which the hashes are counted.
    first: Index,
    /// Index after the last secret.
    end: Index,
    rate: CurrentRate,
    steady_rate: CurrentRate,
    pace: Pace,
    /// The user's time zone; empty until it has been read.
    zone: Arc<OnceLock<TimeZone>>,
}

impl Progress {
    /// Creates the progress of a search for `wanted` answers in a range of indices. Hashes are
    /// counted from `first`, which is lower than the start of the range if an earlier search is
    /// continued.
    pub(super) fn new(
        odds: Odds,
        wanted: u64,
        first: Index,
        Range { start, end }: Range<Index>,
    ) -> Progress {
        Progress {
            odds,
            wanted,
            first,
            end,
            rate: CurrentRate::new(RATE_OVER, start),
            steady_rate: CurrentRate::new(STEADY_RATE_OVER, start),
            pace: Pace::default(),
            zone: clock::time_zone(),
        }
    }

    /// Shows the progress: on a terminal always, otherwise if a line is due.
    ///
    /// `elapsed` is the time since the start of this run. `frontier` is `None` if it is unknown.
    /// `answers` counts those of earlier runs, too. `nearest` is the nearest secret so far, or the
    /// text to show if there is none.
    pub(super) fn show(
        &mut self,
        status: &Status,
        elapsed: Duration,
        frontier: Option<Index>,
        answers: u64,
        nearest: Result<&Finding, &'static str>,
    ) {
        let search = frontier.map(|frontier| {
            let rate = self.rate.update(elapsed, frontier);
            let steady_rate = self.steady_rate.update(elapsed, frontier);
            // Without a time of day, the estimated times are shown as durations.
            let now = clock::now().ok();
            let now = now.and_then(|now| Some(now.to_zoned(self.zone.get()?.clone())));
            self.parts(frontier, answers, rate, steady_rate, now.as_ref())
        });
        let snapshot = Snapshot {
            elapsed,
            search,
            nearest,
        };
        if status.on_terminal() {
            status.draw(|columns, rows| snapshot.fit(columns, rows));
        } else if self.pace.advance(elapsed) {
            status.say(snapshot);
        }
    }

    /// Returns a sentence for a search that ended at `frontier`: which share of such searches
    /// finish within its number of hashes. Returns `None` if several answers are wanted.
    pub(super) fn share_of_ended(&self, frontier: Index) -> Option<String> {
        // It is unknown how long several answers take together.
        (self.wanted == 1).then(|| {
            let share = self.percent(frontier);
            format!("{share} of searches like this one finish within this many hashes")
        })
    }

    /// Returns the line about what was done, and the line about the odds.
    fn parts(
        &self,
        frontier: Index,
        answers: u64,
        rate: Option<f64>,
        steady_rate: Option<f64>,
        now: Option<&Zoned>,
    ) -> [Line; 2] {
        let mut done = Line::default();
        done.add(
            2,
            format!("{} hashes", Scaled((frontier - self.first) as f64)),
        );
        if let Some(rate) = rate {
            done.add(1, format!("{} per second", Scaled(rate)));
        }
        let one_in = show(&self.odds.expected_hashes(), number);
        done.add(3, format!("1 in {one_in} matches"));

        let mut odds = Line::default();
        let whose = if self.wanted == 1 {
            odds.add(1, format!("{} chance so far", self.percent(frontier)));
            ""
        } else {
            // A search has no memory, so the expected time to the next answer is that to the first.
            odds.add(1, format!("{answers} of {} found", self.wanted));
            "next: "
        };
        // If only bounds of the odds are known, each time is the later bound. By then, the chance
        // is at least the one that is shown.
        let at_least = match self.odds.is_exact() {
            true => "",
            false => "at least ",
        };
        let steady_rate = steady_rate.filter(|rate| *rate > 0.0);
        let points = steady_rate.map(|rate| self.points(frontier, rate, now));
        let mut points = points.into_iter().flatten();
        if let Some((chance, when)) = points.next() {
            odds.add(0, format!("{whose}{at_least}{chance} chance {when}"));
        }
        for ((chance, when), rank) in points.zip([3, 2]) {
            odds.add(rank, format!("{chance} {when}"));
        }
        [done, odds]
    }

    /// Returns each chance of [`POINTS`] with its estimated time at this rate. Chances after the
    /// first one that is never reached are left out.
    fn points(
        &self,
        frontier: Index,
        rate: f64,
        now: Option<&Zoned>,
    ) -> Vec<(&'static str, String)> {
        let left = (self.end - frontier) as f64;
        let mut points = Vec::new();
        for (chance, name) in POINTS {
            let hashes = *self.odds.hashes_for(chance).end();
            if hashes > left {
                points.push((name, "never reached".to_owned()));
                break;
            }
            points.push((name, when(hashes / rate, now)));
        }
        points
    }

    /// Returns the chance, as a percentage, that a search with these odds finishes within `frontier
    /// - first` hashes.
    fn percent(&self, frontier: Index) -> String {
        let chance = self.odds.chance_after(frontier - self.first);
        show(&chance, |chance| Percent(chance).to_string())
    }
}

/// The progress of a search at one moment.
struct Snapshot<'a> {
    elapsed: Duration,
    /// The lines about what was done and about the odds; `None` if the frontier is unknown.
    search: Option<[Line; 2]>,
    /// The nearest secret so far, or the text to show if there is none.
    nearest: Result<&'a Finding, &'static str>,
}

impl Snapshot<'_> {
    fn lines(&self) -> Vec<Line> {
        let mut first = Line::default();
        let elapsed = Duration::from_secs(self.elapsed.as_secs());
        first.add(0, humantime::format_duration(elapsed).to_string());
        let mut last = Line::default();
        last.add(
            0,
            match self.nearest {
                Ok(Finding {
                    hashed_name,
                    distance,
                    ..
                }) => format!("nearest at distance {distance}: {hashed_name}"),
                Err(none) => none.to_owned(),
            },
        );
        match &self.search {
            Some([done, odds]) => {
                first.parts.extend_from_slice(&done.parts);
                vec![first, odds.clone(), last]
            }
            None => {
                first.parts.extend(last.parts);
                vec![first]
            }
        }
    }

    /// Returns the lines that fit a terminal of this size. Leaves its last row free, unless it has
    /// only one.
    fn fit(&self, columns: usize, rows: usize) -> Vec<String> {
        let lines = self.lines().into_iter().map(|line| line.fit(columns));
        lines.take(rows.saturating_sub(1).max(1)).collect()
    }
}

impl fmt::Display for Snapshot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.lines().iter().map(ToString::to_string).collect();
        f.write_str(&lines.join(", "))
    }
}

/// A line of parts, from left to right, each with its rank: the parts of the highest rank are left
/// out first.
#[derive(Clone, Default)]
struct Line {
    parts: Vec<(u8, String)>,
}

impl Line {
    fn add(&mut self, rank: u8, part: String) {
        self.parts.push((rank, part));
    }

    /// Returns as much of the line as fits into this number of columns. The text is ASCII, so each
    /// byte takes one column.
    fn fit(mut self, columns: usize) -> String {
        loop {
            let text = self.to_string();
            let least = self.parts.iter().map(|(rank, _)| *rank).max();
            if text.len() <= columns || self.parts.len() == 1 {
                return text.chars().take(columns).collect();
            }
            self.parts.retain(|(rank, _)| Some(*rank) != least);
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<&str> = self.parts.iter().map(|(_, part)| part.as_str()).collect();
        f.write_str(&parts.join(", "))
    }
}

/// Decides when the next line is due if stderr is not a terminal.
struct Pace {
    next: Duration,
    pause: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            next: FIRST_LINE,
            pause: FIRST_PAUSE,
        }
    }
}

impl Pace {
    /// Returns whether a line is due. If it is, sets the time of the next one.
    fn advance(&mut self, elapsed: Duration) -> bool {
        if elapsed < self.next {
            return false;
        }
        self.next = elapsed + self.pause;
        self.pause = (2 * self.pause).min(LAST_PAUSE);
        true
    }
}

#[cfg(test)]
mod tests {
    use hashfinder_search::Distance;
    use jiff::civil::date;

    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn lines_are_printed_less_and_less_often() {
        let mut pace = Pace::default();
        let lines: Vec<u64> = (0..3000)
            .filter(|now| pace.advance(seconds(*now)))
            .collect();
        assert_eq!(lines, [10, 40, 100, 220, 460, 940, 1540, 2140, 2740]);
    }

    /// A Wednesday in Berlin, 90.5 seconds before 14:00.
    fn now() -> Zoned {
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let time = date(2024, 11, 20).at(13, 58, 29, 500_000_000);
        time.to_zoned(berlin).unwrap()
    }

    /// Returns what a terminal of this size shows of a search for this number of answers.
    fn lines(name: &str, distance: u8, wanted: u64, size: (usize, usize)) -> Vec<String> {
        let odds = Odds::of(&name.parse().unwrap(), Distance::from(distance));
        let progress = Progress::new(odds, wanted, 0, 0..u64::MAX);
        let rate = Some(273.1e6);
        let search = progress.parts(3_300_000_000, 0, rate, rate, Some(&now()));
        let name = name.parse().unwrap();
        let snapshot = Snapshot {
            elapsed: seconds(12),
            search: Some(search),
            nearest: Ok(&Finding::of(b"hash".to_vec(), &name)),
        };
        snapshot.fit(size.0, size.1)
    }

    #[test]
    fn a_small_terminal_shows_the_important_parts() {
        let all = [
            "12s, 3.3 billion hashes, 273.1 million per second, 1 in 209 billion matches",
            "1.57% chance so far, 50% chance by 14:08, 90% by 14:28, 99% by 14:58",
            "nearest at distance 9: I0atJ9dWi6mJbxt9prWZElHevfI=",
        ];
        assert_eq!(lines("hashfinder", 1, 1, (80, 24)), all);
        assert_eq!(
            lines("hashfinder", 1, 1, (60, 3)),
            [
                "12s, 3.3 billion hashes, 273.1 million per second",
                "1.57% chance so far, 50% chance by 14:08, 99% by 14:58",
            ]
        );
        assert_eq!(
            lines("hashfinder", 1, 1, (42, 24)),
            [
                "12s, 273.1 million per second",
                "1.57% chance so far, 50% chance by 14:08",
                "nearest at distance 9: I0atJ9dWi6mJbxt9prW",
            ]
        );
        assert_eq!(lines("hashfinder", 1, 1, (20, 1)), ["12s"]);
    }

    #[test]
    fn with_several_answers_the_next_one_is_estimated() {
        assert_eq!(
            lines("hashfinder", 1, 5, (80, 24))[1],
            "0 of 5 found, next: 50% chance by 14:08, 90% by 14:28, 99% by 14:58"
        );
    }

    #[test]
    fn inexact_chances_are_shown_as_bounds() {
        assert_eq!(
            lines("abababababababab", 6, 1, (80, 24))[..2],
            [
                "12s, 3.3 billion hashes, 273.1 million per second, 1 in 16 billion matches",
                "18.25% to 18.26% chance so far, at least 50% chance in 42s, 99% by 14:04",
            ]
        );
    }

    #[test]
    fn a_time_beyond_the_last_secret_is_shown_as_never() {
        assert_eq!(
            lines("hashfinderhashfinder", 0, 1, (80, 24))[1],
            "under 0.01% chance so far, 50% chance never reached"
        );
    }
}
