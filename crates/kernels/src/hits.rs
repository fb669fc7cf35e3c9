//! What a scan finds.

use crate::filter::Match;

/// A secret that passed the filter for one of its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Its place in the block, from 0 on.
    pub offset: u64,
    /// Which name of the filter it is, from 0 on.
    pub name: u16,
    /// The least distance over all windows.
    pub distance: u8,
    /// The first window at that distance: where in the hashed name it begins.
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

/// A bounded list of hits, in the order of their offsets, then of the names.
///
/// The bound is what keeps a filter that lets everything pass from taking memory: a scan stops
/// when the list is full and says how far it came. A secret's hits are never torn apart, so that
/// with a filter for several names the last secret may exceed the bound.
#[derive(Debug)]
pub struct Hits {
    hits: Vec<Hit>,
    limit: usize,
}

impl Hits {
    /// An empty list that is full from `limit` hits on.
    ///
    /// # Panics
    ///
    /// If `limit` is 0: no scan could ever make progress.
    #[must_use]
    pub fn with_limit(limit: usize) -> Hits {
        assert!(limit > 0, "a list of no hits stops every scan at once");
        Hits {
            hits: Vec::new(),
            limit,
        }
    }

    /// Adds a hit. It is the caller that looks whether there is room for another secret's.
    pub fn push(&mut self, hit: Hit) {
        self.hits.push(hit);
    }

    /// Whether the hits of another secret would be too many.
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
