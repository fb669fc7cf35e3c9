//! Formats searches as lines: with tabs, as JSON, and as a table.

use std::time::{Duration, SystemTime};

use hashfinder_proto::v1::{SearchState, SearchSummary};
use prost_types::Timestamp;
use serde_json::{Value, json};

use crate::terminal::{self, as_text, figures::number};

/// The form of the output.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Table,
    Tabs,
    Json,
}

/// Returns a line for each search, as JSON or with tabs. Tables use [`aligned`] instead.
pub(super) fn lines(searches: &[SearchSummary], form: Form) -> String {
    let lines = searches.iter().map(|search| match form {
        Form::Json => as_json(search) + "\n",
        Form::Tabs | Form::Table => in_columns(search).join("\t") + "\n",
    });
    lines.collect()
}

/// Returns the columns of a search, for programs.
fn in_columns(search: &SearchSummary) -> [String; 9] {
    [
        as_text(&search.search_id),
        word(search.state().as_str_name(), "SEARCH_STATE_"),
        as_text(&search.client),
        rfc3339(search.started_at.as_ref()).unwrap_or_default(),
        search.hashes.to_string(),
        search.ideal_distance.to_string(),
        names(search),
        ending(search),
        as_text(&search.cursor),
    ]
}

fn as_json(search: &SearchSummary) -> String {
    let text = |text: &str| Some(text).filter(|text| !text.is_empty()).map(Value::from);
    let ended = search.state() == SearchState::Ended;
    let record = json!({
        "search_id": search.search_id,
        "method": search.method,
        "client": search.client,
        "desired_names": search.desired_names,
        "ideal_distance": search.ideal_distance,
        "state": word(search.state().as_str_name(), "SEARCH_STATE_"),
        "started_at": rfc3339(search.started_at.as_ref()),
        "hashes": search.hashes,
        "frontier": search.frontier,
        "ended_at": rfc3339(search.ended_at.as_ref()),
        "end_reason": ended.then(|| word(search.end_reason().as_str_name(), "END_REASON_")),
        "end_message": text(&search.end_message),
        "cursor": text(&search.cursor),
        "operation": text(&search.operation),
    });
    terminal::json(&record)
}

/// Returns the name of an enumeration's value without its prefix, in lower case.
pub(crate) fn word(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix).unwrap_or(name) {
        // What the generated code returns for a value of a later version.
        "UNSPECIFIED" => "unknown".to_owned(),
        value => value.to_lowercase(),
    }
}

/// Returns the names of a search, separated by commas.
fn names(search: &SearchSummary) -> String {
    listed(&search.desired_names)
}

/// Returns texts, separated by commas. Commas and backslashes within a text are escaped with a
/// backslash.
pub(crate) fn listed(names: &[String]) -> String {
    let names = names.iter();
    let names = names.map(|name| name.replace('\\', r"\\").replace(',', r"\,"));
    as_text(&names.collect::<Vec<_>>().join(","))
}

/// Returns how a search ended, or an empty text if it has not ended.
pub(super) fn ending(search: &SearchSummary) -> String {
    if search.state() != SearchState::Ended {
        return String::new();
    }
    let reason = word(search.end_reason().as_str_name(), "END_REASON_").replace('_', " ");
    match search.end_message.as_str() {
        "" => reason,
        message => format!("{reason}: {}", as_text(message)),
    }
}

pub(crate) fn rfc3339(timestamp: Option<&Timestamp>) -> Option<String> {
    let time = humantime::format_rfc3339_seconds(time(timestamp?)?);
    Some(time.to_string())
}

/// Returns the time, in whole seconds; `None` if it is not between 1970 and 9999, because a server
/// can send any time.
pub(crate) fn time(timestamp: &Timestamp) -> Option<SystemTime> {
    let year_10000 = 253_402_300_800;
    let seconds = u64::try_from(timestamp.seconds).ok()?;
    (seconds < year_10000).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Returns a table of searches as lines. The first line has the titles of the columns.
pub(super) fn aligned<'a>(
    searches: impl Iterator<Item = &'a SearchSummary>,
    now: SystemTime,
) -> Vec<String> {
    let titles = [
        "SEARCH", "STATE", "CLIENT", "STARTED", "HASHES", "DISTANCE", "NAMES", "END",
    ];
    let mut rows = vec![titles.map(str::to_owned)];
    rows.extend(searches.map(|search| for_people(search, now)));
    in_table(&rows)
}

/// Returns rows as the lines of a table, with aligned columns.
pub(crate) fn in_table<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths);
        let padded = cells.map(|(cell, width)| format!("{cell:<width$}"));
        let line = padded.collect::<Vec<_>>().join("  ");
        line.trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// Returns how long ago something happened, if the time is valid.
pub(crate) fn age(at: Option<&Timestamp>, now: SystemTime) -> Option<String> {
    // The server's clock may be ahead of this machine's.
    let age = now.duration_since(time(at?)?).unwrap_or_default();
    let age = Duration::from_secs(age.as_secs());
    Some(format!("{} ago", humantime::format_duration(age)))
}

/// Returns the columns of a search, for people.
fn for_people(search: &SearchSummary, now: SystemTime) -> [String; 8] {
    let [id, state, client, _, _, distance, names, ending, _] = in_columns(search);
    let age = age(search.started_at.as_ref(), now);
    let hashes = number(search.hashes as f64);
    [
        id,
        state,
        client,
        age.unwrap_or_default(),
        hashes,
        distance,
        names,
        ending,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_names_are_escaped() {
        let names = |given: &[&str]| {
            let desired_names = given.iter().map(ToString::to_string).collect();
            names(&SearchSummary {
                desired_names,
                ..SearchSummary::default()
            })
        };
        assert_eq!(names(&["doctor", "tardis"]), "doctor,tardis");
        assert_eq!(names(&["a,b", r"c\"]), r"a\,b,c\\");
        assert_eq!(names(&["a", r"b,c\"]), r"a,b\,c\\");
    }

    #[test]
    fn control_characters_from_a_server_are_escaped() {
        let evil = "\x1b[2J\t\n\r\u{7}\u{9b}31m\u{7f}\u{202e}";
        let hostile = SearchSummary {
            search_id: evil.to_owned(),
            method: evil.to_owned(),
            client: evil.to_owned(),
            desired_names: vec![evil.to_owned()],
            end_message: evil.to_owned(),
            cursor: evil.to_owned(),
            state: SearchState::Ended.into(),
            started_at: Some(Timestamp {
                seconds: i64::MAX,
                nanos: -1,
            }),
            hashes: u64::MAX,
            ..SearchSummary::default()
        };
        let now = SystemTime::now();
        let controls = |text: &str| text.chars().filter(|c| c.is_control()).count();
        let columns = lines(std::slice::from_ref(&hostile), Form::Tabs);
        // Eight tabs between nine columns, and the end of the line.
        assert_eq!(controls(&columns), 9);
        let json = lines(std::slice::from_ref(&hostile), Form::Json);
        assert_eq!(controls(&json), 1);
        let read: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read["client"], evil);
        for line in aligned([&hostile].into_iter(), now) {
            assert_eq!(controls(&line), 0);
        }
    }
}
