//! What one thread finds that tries one secret after another. The tests of a fleet use it, too.

use std::{ops::Range, sync::OnceLock};

use hashfinder_search::{Candidate, Distance, Index, Kernel, Query};

/// Number of secrets that the oracle has tried.
pub(crate) const SECRETS: Index = 120_000;

/// A query, and what one thread finds for it, in order.
pub(crate) struct Oracle {
    pub(crate) query: Query,
    hits: Vec<Candidate>,
}

pub(crate) fn oracles() -> &'static [Oracle] {
    static ORACLES: OnceLock<Vec<Oracle>> = OnceLock::new();
    ORACLES.get_or_init(|| {
        let kinds = [
            ("tom", 0, 2),
            ("abcd", 0, 3),
            ("doctor", 1, 4),
            ("search", 1, 5),
        ];
        let oracle = |(name, ideal, interesting)| Oracle::new(name, ideal, interesting, SECRETS);
        kinds.into_iter().map(oracle).collect()
    })
}

impl Oracle {
    /// Tries the first secrets, this many, for a name.
    pub(crate) fn new(name: &str, ideal: u8, interesting: u8, secrets: Index) -> Oracle {
        let query = Query::new(name.parse().unwrap(), Distance::from(ideal)).unwrap();
        let query = query.interesting(Distance::from(interesting));
        let mut found = Vec::new();
        (query.matcher()).scan(Kernel::best(), 0..secrets, usize::MAX, &mut found);
        let hits = found.iter().map(|found| query.candidate(found.index));
        let hits = hits.collect();
        Oracle { query, hits }
    }

    /// Returns the hits of a range.
    pub(crate) fn hits(&self, range: Range<Index>) -> &[Candidate] {
        let below = |index| self.hits.partition_point(|hit| hit.index < index);
        &self.hits[below(range.start)..below(range.end)]
    }

    /// Returns what one thread reports of a range, and the ideal hit that ends it, if there is one.
    pub(crate) fn expect(&self, range: Range<Index>) -> (Vec<Candidate>, Option<Candidate>) {
        let hits = self.hits(range);
        let ideal = hits.iter().position(|hit| self.is_ideal(hit));
        let reported = &hits[..ideal.unwrap_or(hits.len())];
        (reported.to_vec(), ideal.map(|place| hits[place]))
    }

    /// Whether a hit ends a search.
    pub(crate) fn is_ideal(&self, hit: &Candidate) -> bool {
        hit.distance <= self.query.ideal_distance().get()
    }
}
