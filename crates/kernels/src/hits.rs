//! The hits of a scan.

use crate::filter::Match;

/// A secret that passed the filter, and the name that it passed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Offset of the secret in the block, from 0.
    pub offset: u64,
    /// Number of the name within the filter, from 0.
    pub name: u16,
    /// Number of characters in which the nearest window differs from the name.
    pub distance: u8,
    /// Place in the hashed name where the first window at that distance begins, from 0.
    pub window: u8,
}

impl Hit {
    pub(crate) fn new(offset: u64, found: Match) -> Hit {
        Hit {
            offset,
            name: found.name,
            distance: found.distance,
            window: found.window,
        }
    }
}

/// A bounded list of hits, sorted by offset, then by name.
///
/// The limit bounds the list's memory even if a filter passes every secret: a scan stops when the
/// list is full, and returns the number of secrets tried. A scan adds all hits of a secret before
/// it stops. So with a filter for several names, the list may exceed the limit.
#[derive(Debug)]
pub struct Hits {
    hits: Vec<Hit>,
    limit: usize,
}

impl Hits {
    /// Creates an empty list that is full once it holds `limit` hits.
    ///
    /// # Panics
    ///
    /// If `limit` is 0: no scan could make progress.
    #[must_use]
    pub fn with_limit(limit: usize) -> Hits {
        assert!(limit > 0, "a list of no hits stops every scan at once");
        Hits {
            hits: Vec::new(),
            limit,
        }
    }

    /// Adds a hit, even if the list is full. The caller has to check [`is_full`](Self::is_full)
    /// before each secret.
    pub fn push(&mut self, hit: Hit) {
        self.hits.push(hit);
    }

    /// Whether the list is full, so that no further secret may add hits.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.hits.len() >= self.limit
    }
}

impl std::ops::Deref for Hits {
    type Target = [Hit];

    fn deref(&self) -> &[Hit] {
        &self.hits
    }
}
