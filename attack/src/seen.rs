//! What an attacker saw, counted.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

/// The connections that there were.
pub(crate) const CONNECTIONS: &str = "connections";
/// Those that there could not be.
pub(crate) const REFUSED: &str = "refused connections";
/// Those that the server ended, whether it said so before or not.
pub(crate) const CLOSED: &str = "closed connections";
/// The streams that were begun.
pub(crate) const STREAMS: &str = "streams";
/// What begins the name of an answer that should not have been, after which comes what should.
pub(crate) const WRONG: &str = "wrong: ";

/// What begins the name of one that was right.
pub(crate) const FITS: &str = "as expected: ";

/// What an attacker saw, by what it was.
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

    /// How often anything was seen whose name begins so.
    pub(crate) fn count_all(&self, prefix: &str) -> u64 {
        self.beginning(prefix).map(|(_, count)| count).sum()
    }

    /// What was seen whose name begins so.
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
            .with_context(|| format!("an attacker told no counts but {text:?}"))?;
        let counts = read.into_iter();
        let counts = counts.map(|(what, count)| Some((what, count.as_u64()?)));
        let counts: Option<_> = counts.collect();
        Ok(Seen(counts.context("a count is no number")?))
    }
}
