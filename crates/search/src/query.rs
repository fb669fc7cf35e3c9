//! One request to search: what for, and where.

use std::{num::NonZeroU64, ops::Range};

use hashfinder_kernels::{CharSet, Filter};

use crate::{
    keyspace::{HashedName, Index, KEYSPACE_END, Secret},
    name::{DesiredName, Distance},
};

/// What a search looks for, where it begins, and how much it may try.
///
/// ```
/// use hashfinder_search::{Distance, Query};
///
/// let query = Query::new("doctor".parse()?, Distance::ZERO)?.interesting(Distance::from(2));
/// assert!(Query::new("==".parse()?, Distance::ZERO).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub(crate) name: DesiredName,
    pub(crate) ideal: Distance,
    pub(crate) interesting: Distance,
    pub(crate) start: Index,
    pub(crate) budget: Option<NonZeroU64>,
}

/// A query that no secret can ever satisfy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} can never match within distance {ideal}, its least possible distance is {least}: {why}"
)]
pub struct Impossible {
    name: String,
    ideal: Distance,
    least: u8,
    why: String,
}

impl Query {
    /// A search of the whole keyspace for the first secret within the ideal distance, without a
    /// budget.
    ///
    /// # Errors
    ///
    /// [`Impossible`] if no hashed name can be within that distance of the name.
    pub fn new(name: DesiredName, ideal: Distance) -> Result<Query, Impossible> {
        let least = name.least_distance();
        if least > ideal.get() {
            return Err(Impossible {
                why: name.why_unspellable(),
                name: name.as_str().to_owned(),
                ideal,
                least,
            });
        }
        Ok(Query {
            name,
            ideal,
            interesting: Distance::ZERO,
            start: 0,
            budget: None,
        })
    }

    /// Also reports every secret on the way whose distance is less than `distance`. At the ideal
    /// distance or under it, that is none.
    #[must_use]
    pub fn interesting(mut self, distance: Distance) -> Query {
        self.interesting = distance;
        self
    }

    /// Begins at `index` instead of at the first secret.
    #[must_use]
    pub fn starting_at(mut self, index: Index) -> Query {
        self.start = index;
        self
    }

    /// Tries `hashes` secrets at most, exactly so many if nothing ends the search before.
    #[must_use]
    pub fn hash_budget(mut self, hashes: NonZeroU64) -> Query {
        self.budget = Some(hashes);
        self
    }

    /// The name that is looked for.
    #[must_use]
    pub fn name(&self) -> &DesiredName {
        &self.name
    }

    /// The distance that ends the search.
    #[must_use]
    pub fn ideal_distance(&self) -> Distance {
        self.ideal
    }

    /// The distance under which a secret is reported on the way.
    #[must_use]
    pub fn interesting_distance(&self) -> Distance {
        self.interesting
    }

    /// The index at which the search begins.
    #[must_use]
    pub fn start(&self) -> Index {
        self.start
    }

    /// The indices that may be tried.
    pub(crate) fn range(&self) -> Range<Index> {
        let budget = self.budget.map_or(u64::MAX, NonZeroU64::get);
        // The sum saturates where the keyspace ends.
        const { assert!(KEYSPACE_END == Index::MAX) };
        self.start..self.start.saturating_add(budget)
    }

    /// Whether a secret at `distance` ends the search.
    pub(crate) fn is_ideal(&self, distance: u8) -> bool {
        distance <= self.ideal.get()
    }

    /// Whether the search reports anything but its last answer.
    pub(crate) fn reports_candidates(&self) -> bool {
        self.interesting.get() > self.ideal.get() + 1
    }

    /// Whether a secret at `distance` is reported on the way.
    pub(crate) fn is_interesting(&self, distance: u8) -> bool {
        !self.is_ideal(distance) && distance < self.interesting.get()
    }

    /// What lets pass whatever is ideal or interesting, and nothing else.
    #[must_use]
    pub fn filter(&self) -> Filter {
        Filter::any([self.wanted()])
    }

    /// The name's characters, and the distance up to which a secret is ideal or interesting.
    pub(crate) fn wanted(&self) -> (&[CharSet], u8) {
        let interesting = self.interesting.get().saturating_sub(1);
        (self.name.characters(), interesting.max(self.ideal.get()))
    }

    /// About how many secrets of one are ideal or interesting: the sum over the windows, as if every
    /// place could show every digit.
    pub(crate) fn hit_rate(&self) -> f64 {
        let (characters, furthest) = self.wanted();
        // How likely it is that so many of the characters so far differ.
        let mut differ = vec![0.0; characters.len() + 1];
        differ[0] = 1.0;
        for set in characters {
            let agrees = set.share();
            for count in (0..differ.len()).rev() {
                let fewer = count.checked_sub(1).map_or(0.0, |fewer| differ[fewer]);
                differ[count] = differ[count] * agrees + fewer * (1.0 - agrees);
            }
        }
        let windows = DesiredName::MAX_LEN + 1 - characters.len();
        let near: f64 = differ.iter().take(usize::from(furthest) + 1).sum();
        (near * windows as f64).min(1.0)
    }
}

/// A secret near enough to be reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The secret.
    pub secret: Secret,
    /// The least distance over all windows of its hashed name.
    pub distance: u8,
    /// The first window at that distance: where in the hashed name it begins, from 0 on.
    pub window: u8,
}

impl Candidate {
    /// The secret's hashed name, computed anew.
    #[must_use]
    pub fn hashed_name(&self) -> HashedName {
        self.secret.hashed_name()
    }
}
