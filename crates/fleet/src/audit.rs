//! Finds agents that do not try all secrets of their leases.
//!
//! Together with the names of an audited lease, the leader sends *decoys*: other names, of which it
//! knows where some occur. The secrets of some decoys lie in the lease; these are its *ringers*. An
//! agent that reports a lease without one of its ringers has not tried all of it. The number of
//! ringers is random, so an agent cannot know when it has found all of them.
//!
//! The idea is that of Golle and Mironov, "Uncheatable Distributed Computations" (2001). It does
//! not find an agent that tries everything and hides a real hit on purpose, if it can tell the name
//! from the decoys.

use std::{ops::Range, sync::Arc};

use hashfinder_search::{Anchor, DesiredName, Distance, Index, Query};
use rand::{Rng, RngExt, rngs::StdRng, seq::SliceRandom};

use crate::messages::Report;

/// Number of decoys of a lease. Each makes trying it a little slower.
const DECOYS: usize = 4;

/// How many of 100 leases have 0, 1, 2, ... ringers: 2 on average. An agent that tries half of each
/// lease passes four of them with a probability of 0.7%, and one that stops after two ringers
/// passes fifty of them with 0.03%.
const RINGERS: [u32; DECOYS + 1] = [5, 10, 70, 10, 5];

/// Minimum number of characters of a decoy. Shorter ones occur so often that a lease would end
/// early with hits of them.
const LEAST_CHARACTERS: usize = 8;

/// Number of attempts to make a decoy. The last character of a hash has fewer possible values, so
/// not every part is a possible name.
const ATTEMPTS: usize = 16;

/// The decoys of a lease.
#[derive(Clone, Debug)]
pub(crate) struct Audit {
    decoys: Vec<Query>,
    /// Where the ringers are.
    ringers: Vec<Index>,
}

/// An agent has not tried a secret of its lease, although it says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Missed(pub(crate) Index);

impl Audit {
    /// Makes decoys for a lease; `None` if none can be made.
    pub(crate) fn plan(rng: &mut StdRng, queries: &[Query], range: &Range<Index>) -> Option<Audit> {
        let like = queries.first()?;
        let names = queries.iter().flat_map(Query::names);
        let longest = names.map(DesiredName::character_count).max()?;
        let all = 0..like.keyspace().end();
        let wanted = ringers(rng);
        let (mut decoys, mut ringers) = (Vec::new(), Vec::new());
        for number in 0..DECOYS {
            let place = if number < wanted { range } else { &all };
            let index = rng.random_range(place.clone());
            // A decoy whose secret is in the lease by chance is a ringer, too.
            decoys.push(decoy(rng, like, longest, index)?);
            if range.contains(&index) {
                ringers.push(index);
            }
        }
        Some(Audit { decoys, ringers })
    }

    /// Returns the queries of a lease with the decoys among them, in a random order.
    pub(crate) fn mix(&self, rng: &mut StdRng, queries: &[Query]) -> Arc<[Query]> {
        let mut all: Vec<Query> = queries.iter().chain(&self.decoys).cloned().collect();
        all.shuffle(rng);
        all.into()
    }

    /// Returns the queries of a lease with the decoys after them.
    pub(crate) fn append(&self, queries: &[Query]) -> Arc<[Query]> {
        queries.iter().chain(&self.decoys).cloned().collect()
    }

    /// Returns the number of decoys.
    pub(crate) fn decoys(&self) -> usize {
        self.decoys.len()
    }

    /// Checks that a report has all ringers that it should have.
    pub(crate) fn check(&self, report: &Report) -> Result<(), Missed> {
        let is_missing = |index: &&Index| **index < report.tried && !report.hits.contains(*index);
        match self.ringers.iter().find(is_missing) {
            Some(index) => Err(Missed(*index)),
            None => Ok(()),
        }
    }

    /// Whether a secret has one of the decoys.
    pub(crate) fn is_decoy(&self, index: Index) -> bool {
        let is_hit = |decoy: &Query| decoy.is_ideal(decoy.candidate(index).distance);
        self.decoys.iter().any(is_hit)
    }
}

/// Draws the number of ringers of a lease.
fn ringers(rng: &mut impl Rng) -> usize {
    let mut drawn = rng.random_range(0..RINGERS.iter().sum());
    let place = RINGERS
        .iter()
        .position(|weight| match drawn.checked_sub(*weight) {
            Some(rest) => {
                drawn = rest;
                false
            }
            None => true,
        });
    place.unwrap_or_default()
}

/// Returns a query for a name that occurs in the hash of a secret, at a random place.
fn decoy(rng: &mut impl Rng, like: &Query, longest: usize, index: Index) -> Option<Query> {
    let secret = like.keyspace().secret(index);
    let text = like.spelling().hashed_name(&secret);
    let text = text.as_str();
    let length = longest.max(LEAST_CHARACTERS).min(text.len());
    let last = text.len() - length;
    (0..ATTEMPTS).find_map(|_| {
        let start = match like.spelling().anchor {
            Anchor::Anywhere => rng.random_range(0..=last),
            Anchor::Prefix => 0,
            Anchor::Suffix => last,
        };
        let name = text.get(start..start + length)?;
        let name = DesiredName::new(name, like.spelling()).ok()?;
        let query = Query::new(name, Distance::ZERO).ok()?;
        Some(query.among(like.keyspace().clone()))
    })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn two_ringers_on_average() {
        let all: u32 = RINGERS.iter().sum();
        let weighted: u32 = (0..)
            .zip(RINGERS)
            .map(|(count, weight)| count * weight)
            .sum();
        assert_eq!((all, weighted), (100, 200));
        let mut rng = StdRng::seed_from_u64(1);
        let mut drawn = [0; DECOYS + 1];
        for _ in 0..10_000 {
            drawn[ringers(&mut rng)] += 1;
        }
        for (count, weight) in drawn.into_iter().zip(RINGERS) {
            let expected = weight * 100;
            assert!(
                u32::abs_diff(count, expected) < 50 + expected / 10,
                "{drawn:?}"
            );
        }
    }
}
