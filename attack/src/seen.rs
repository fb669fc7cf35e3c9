//! Counts of what an attacker saw.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

/// Connections that were established.
pub(crate) const CONNECTIONS: &str = "connections";
/// Connections that could not be established.
pub(crate) const REFUSED: &str = "refused connections";
/// Connections that the server closed, with or without a GOAWAY.
pub(crate) const CLOSED: &str = "closed connections";
/// Streams that were opened.
pub(crate) const STREAMS: &str = "streams";
/// Prefix of the names under which wrong responses are counted. The request, the expectation and
/// the response follow.
pub(crate) const WRONG: &str = "wrong: ";

/// Prefix of the names under which correct responses are counted.
pub(crate) const FITS: &str = "as expected: ";

/// Counts by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen(BTreeMap<String, u64>);

impl Seen {
    pub(crate) fn add(&mut self, what: &str, times: u64) {
        if let Some(count) = self.0.get_mut(what) {
            *count += times;
        } else {
            self.0.insert(what.to_owned(), times);
        }
    }

    pub(crate) fn count(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or_default()
    }

    /// Returns the sum of all counts whose names begin with `prefix`.
    pub(crate) fn count_all(&self, prefix: &str) -> u64 {
        self.beginning(prefix).map(|(_, count)| count).sum()
    }

    /// Returns all counts whose names begin with `prefix`.
    pub(crate) fn beginning(&self, prefix: &str) -> impl Iterator<Item = (&str, u64)> {
        let all = self.0.iter();
        all.filter(move |(what, _)| what.starts_with(prefix))
            .map(|(what, count)| (what.as_str(), *count))
    }

    pub(crate) fn to_json(&self) -> Value {
        let counts = self.0.iter();
        Value::Object(
            counts
                .map(|(what, count)| (what.clone(), (*count).into()))
                .collect(),
        )
    }

    pub(crate) fn from_json(text: &str) -> Result<Seen> {
        let read: Map<String, Value> = serde_json::from_str(text.trim())
            .with_context(|| format!("cannot parse an attacker's counts: {text:?}"))?;
        let counts = read.into_iter();
        let counts = counts.map(|(what, count)| Some((what, count.as_u64()?)));
        let counts: Option<_> = counts.collect();
        Ok(Seen(counts.context("a count is not a number")?))
    }
}
