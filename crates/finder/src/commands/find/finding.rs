//! A secret that was found, with everything that is printed about it.

use std::fmt;

use anyhow::{Result, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use hashfinder_search::{Candidate, DesiredName, HashedName, Index, Query};
use serde_json::{Value, json};

/// Escape sequences before and after highlighted text, which is bold and green.
const HIGHLIGHT: (&str, &str) = ("\x1b[1;32m", "\x1b[0m");

/// Text that stands for the empty secret in a column.
pub(crate) const EMPTY: &str = "(empty)";

/// A secret that was found, with everything that is printed about it.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) secret: Vec<u8>,
    pub(crate) hashed_name: HashedName,
    /// The name that the secret is nearest to.
    pub(crate) name: DesiredName,
    pub(crate) distance: u8,
    pub(crate) window: u8,
}

impl Finding {
    /// Returns the finding for a candidate of a search.
    pub(crate) fn new(query: &Query, candidate: Candidate) -> Finding {
        let secret = query.keyspace().secret(candidate.index);
        Finding {
            hashed_name: query.spelling().hashed_name(&secret),
            name: query.names()[usize::from(candidate.name)].clone(),
            distance: candidate.distance,
            window: candidate.window,
            secret,
        }
    }

    /// Returns the finding for a secret, whatever its distance from `name`.
    pub(crate) fn of(secret: Vec<u8>, name: &DesiredName) -> Finding {
        let nearest = name.nearest(&secret);
        Finding {
            hashed_name: name.spelling().hashed_name(&secret),
            name: name.clone(),
            distance: nearest.distance,
            window: nearest.window,
            secret,
        }
    }

    /// Checks a secret that a server reports for a query, and returns it with its index. `spells`
    /// is the secret's hashed name according to the server.
    ///
    /// # Errors
    ///
    /// If the hashed name is wrong, or the secret is not in the query's keyspace. The distance is
    /// not checked.
    pub(super) fn checked(secret: &[u8], spells: &str, query: &Query) -> Result<(Finding, Index)> {
        let hashed_name = query.spelling().hashed_name(secret);
        if hashed_name.as_str() != spells {
            bail!("invalid answer from the server: the hash of its secret is {hashed_name}");
        }
        let Some(candidate) = query.nearest(secret) else {
            bail!("invalid answer from the server: {hashed_name} is not a match for this search");
        };
        Ok((Finding::new(query, candidate), candidate.index))
    }

    /// Returns the secret in hexadecimal.
    pub(crate) fn hex(&self) -> String {
        self.secret
            .iter()
            .fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }

    /// Returns the hashed name, with the window highlighted.
    pub(super) fn highlighted(&self) -> String {
        let length = self.name.character_count();
        let (begin, end) = HIGHLIGHT;
        let (before, rest) = self.hashed_name.as_str().split_at(self.window.into());
        let (window, after) = rest.split_at(length);
        format!("{before}{begin}{window}{end}{after}")
    }

    /// Returns the columns after the hashed name. No column is empty, because `read` and awk would
    /// skip it.
    pub(super) fn columns(&self) -> String {
        let or_empty = |text: String| match text.is_empty() {
            true => EMPTY.to_owned(),
            false => text,
        };
        let secret = or_empty(BASE64_STANDARD.encode(&self.secret));
        let hex = or_empty(self.hex());
        let (distance, window) = (self.distance, self.window);
        let name = self.name.as_str().escape_debug();
        format!("{secret}\t{hex}\t{distance}\t{window}\t{name}")
    }

    pub(super) fn as_json(&self) -> Value {
        json!({
            "name": self.name.as_str(),
            "hashed_name": self.hashed_name.as_str(),
            "secret": BASE64_STANDARD.encode(&self.secret),
            "hex": self.hex(),
            "distance": self.distance,
            "window": self.window,
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\t{}", self.hashed_name, self.columns())
    }
}
