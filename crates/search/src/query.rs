//! A query: the names to search for, and the secrets to try.

use std::{num::NonZeroU64, ops::Range, sync::Arc};

use crate::{
    keyspace::{Index, Keyspace},
    name::{DesiredName, Distance},
    spelling::{Chars, Spelling},
};

/// The names that a search looks for, the secrets that it tries, and how many of them it may try.
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
    names: Arc<[DesiredName]>,
    keyspace: Arc<Keyspace>,
    ideal: Distance,
    interesting: Distance,
    start: Index,
    budget: Option<NonZeroU64>,
}

/// A query that no secret can ever satisfy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} can never match within distance {ideal} (least possible distance: {least}): {why}"
)]
pub struct Impossible {
    name: String,
    ideal: Distance,
    least: u8,
    why: String,
    /// Number of the name within the query, from 0.
    pub number: usize,
}

impl Query {
    /// Maximum number of names of a query: each name makes testing a secret a little slower, and a
    /// cursor contains all names.
    pub const MAX_NAMES: usize = 64;

    /// Creates a query for the first byte string whose hash is within the ideal distance of a name,
    /// without a budget.
    ///
    /// # Errors
    ///
    /// [`Impossible`] if no hashed name can be within that distance of the name.
    pub fn new(name: DesiredName, ideal: Distance) -> Result<Query, Impossible> {
        Query::any([name], ideal)
    }

    /// Creates a query for the first byte string whose hash is within the ideal distance of any of
    /// these names, without a budget. The names must have the same spelling.
    ///
    /// # Errors
    ///
    /// [`Impossible`] if no hashed name can be within that distance of one of the names.
    ///
    /// # Panics
    ///
    /// If `names` is empty, or has more than [`MAX_NAMES`](Self::MAX_NAMES) names or names of
    /// different spellings.
    pub fn any(
        names: impl IntoIterator<Item = DesiredName>,
        ideal: Distance,
    ) -> Result<Query, Impossible> {
        let names: Arc<[DesiredName]> = names.into_iter().collect();
        assert!(
            (1..=Self::MAX_NAMES).contains(&names.len()),
            "a query has 1 to {} names, not {}",
            Self::MAX_NAMES,
            names.len()
        );
        for (number, name) in names.iter().enumerate() {
            assert_eq!(
                name.spelling(),
                names[0].spelling(),
                "names of different spellings"
            );
            let least = name.least_distance();
            if least > ideal.get() {
                return Err(Impossible {
                    why: name.why_impossible(ideal),
                    name: name.as_str().to_owned(),
                    ideal,
                    least,
                    number,
                });
            }
        }
        Ok(Query {
            names,
            keyspace: Arc::clone(Keyspace::all()),
            ideal,
            interesting: Distance::ZERO,
            start: 0,
            budget: None,
        })
    }

    /// Tries the secrets of `keyspace` instead of all byte strings.
    #[must_use]
    pub fn among(mut self, keyspace: Keyspace) -> Query {
        self.keyspace = if keyspace == **Keyspace::all() {
            Arc::clone(Keyspace::all())
        } else {
            Arc::new(keyspace)
        };
        self
    }

    /// Also reports every secret on the way whose distance is less than `distance`. There is none
    /// unless `distance` is at least two more than the ideal distance.
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

    /// Tries at most `hashes` secrets, and exactly this many if nothing ends the search earlier.
    #[must_use]
    pub fn hash_budget(mut self, hashes: NonZeroU64) -> Query {
        self.budget = Some(hashes);
        self
    }

    /// Removes the budget.
    #[must_use]
    pub fn without_budget(mut self) -> Query {
        self.budget = None;
        self
    }

    /// Returns the names to search for.
    #[must_use]
    pub fn names(&self) -> &[DesiredName] {
        &self.names
    }

    /// Returns the spelling of all names.
    #[must_use]
    pub fn spelling(&self) -> Spelling {
        // There is at least one name, and all have the same spelling.
        self.names[0].spelling()
    }

    /// Returns the keyspace to search.
    #[must_use]
    pub fn keyspace(&self) -> &Keyspace {
        &self.keyspace
    }

    /// Returns the distance at or below which a secret ends the search.
    #[must_use]
    pub fn ideal_distance(&self) -> Distance {
        self.ideal
    }

    /// Returns the distance below which a secret is reported on the way.
    #[must_use]
    pub fn interesting_distance(&self) -> Distance {
        self.interesting
    }

    /// Returns the index at which the search begins.
    #[must_use]
    pub fn start(&self) -> Index {
        self.start
    }

    /// Returns the maximum number of secrets to try.
    #[must_use]
    pub fn budget(&self) -> Option<NonZeroU64> {
        self.budget
    }

    /// Returns the indices that may be tried.
    pub(crate) fn range(&self) -> Range<Index> {
        let budget = self.budget.map_or(u64::MAX, NonZeroU64::get);
        let end = self.keyspace.end();
        self.start.min(end)..self.start.saturating_add(budget).min(end)
    }

    pub(crate) fn shared_names(&self) -> Arc<[DesiredName]> {
        Arc::clone(&self.names)
    }

    pub(crate) fn shared_keyspace(&self) -> Arc<Keyspace> {
        Arc::clone(&self.keyspace)
    }

    /// Whether both queries have the same keyspace, algorithm and encoding, so that a slice can
    /// serve both.
    pub(crate) fn is_compatible_with(&self, other: &Query) -> bool {
        let digests = |query: &Query| (query.spelling().algorithm, query.spelling().encoding);
        digests(self) == digests(other)
            && (Arc::ptr_eq(&self.keyspace, &other.keyspace) || self.keyspace == other.keyspace)
    }

    /// Whether a secret at `distance` ends the search.
    #[must_use]
    pub fn is_ideal(&self, distance: u8) -> bool {
        distance <= self.ideal.get()
    }

    /// Whether the search may report candidates before its outcome.
    pub(crate) fn reports_candidates(&self) -> bool {
        self.interesting.get() > self.ideal.get() + 1
    }

    /// Whether a secret at `distance` is reported on the way.
    #[must_use]
    pub fn is_interesting(&self, distance: u8) -> bool {
        !self.is_ideal(distance) && distance < self.interesting.get()
    }

    /// Returns the greatest distance at which a secret is ideal or interesting.
    pub(crate) fn max_distance(&self) -> u8 {
        let interesting = self.interesting.get().saturating_sub(1);
        interesting.max(self.ideal.get())
    }

    /// Returns the name that is nearest to a secret's hash, with its distance and its window. If
    /// several are equally near, it is the first of them.
    ///
    /// Returns `None` if the secret is not in the keyspace.
    #[must_use]
    pub fn nearest(&self, secret: &[u8]) -> Option<Candidate> {
        let index = self.keyspace.index_of(secret)?;
        let nearest = self.names.iter().map(|name| name.nearest(secret));
        let candidates = (0..).zip(nearest).map(|(name, nearest)| Candidate {
            index,
            name,
            distance: nearest.distance,
            window: nearest.window,
        });
        candidates.min_by_key(Candidate::nearness)
    }

    /// Returns the nearest name of the secret at `index`, with its distance and its window. So a
    /// candidate can be restored from its index alone.
    ///
    /// # Panics
    ///
    /// If `index` is not in the keyspace.
    #[must_use]
    pub fn candidate(&self, index: Index) -> Candidate {
        let secret = self.keyspace.secret(index);
        let nearest = self.nearest(&secret);
        let nearest = nearest.expect("the secret at an index is in the keyspace");
        Candidate { index, ..nearest }
    }

    /// Returns the approximate fraction of secrets that are ideal or interesting: the sum over the
    /// names and windows, at most 1.
    #[must_use]
    pub fn hit_rate(&self) -> f64 {
        let rates = self.names.iter().map(|name| self.hit_rate_of(name));
        rates.sum::<f64>().min(1.0)
    }

    fn hit_rate_of(&self, name: &DesiredName) -> f64 {
        let spelling = self.spelling();
        let places: Vec<Chars> = (0..spelling.text_len())
            .map(|at| spelling.place(at))
            .collect();
        let most = usize::from(self.max_distance());
        // Probability that at most `most` characters of a window differ.
        let near = |window: usize| {
            let shown = &places[window..window + name.character_count()];
            // Probability of each number of differing characters so far.
            let mut differ = vec![0.0; most.min(shown.len()) + 1];
            differ[0] = 1.0;
            for (set, place) in name.characters().iter().zip(shown) {
                let agrees = f64::from(set.and(*place).len()) / f64::from(place.len());
                for count in (0..differ.len()).rev() {
                    let fewer = count.checked_sub(1).map_or(0.0, |fewer| differ[fewer]);
                    differ[count] = differ[count] * agrees + fewer * (1.0 - agrees);
                }
            }
            differ.iter().sum::<f64>()
        };
        // Nearly all windows can show any digit at any place, so their probabilities are equal.
        let is_free = |place: &&Chars| **place == places[0];
        let free = places.iter().take_while(is_free).count();
        let (equal, others): (Vec<usize>, Vec<usize>) = name
            .windows()
            .partition(|window| window + name.character_count() <= free);
        let of_equal = equal.first().map_or(0.0, |window| near(*window));
        of_equal * equal.len() as f64 + others.into_iter().map(near).sum::<f64>()
    }
}

/// A secret near enough to be reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The secret's index in the query's keyspace.
    pub index: Index,
    /// Number of the query's nearest name, from 0. If several are equally near, it is the first of
    /// them.
    pub name: u8,
    /// Number of characters in which the nearest window differs from that name.
    pub distance: u8,
    /// Place in the hashed name where the first window at that distance begins, from 0.
    pub window: u8,
}

impl Candidate {
    /// Sort key: the nearest name wins; ties go to the earlier one.
    pub(crate) fn nearness(&self) -> (u8, u8) {
        (self.distance, self.name)
    }
}

const _: () = assert!(Query::MAX_NAMES <= u8::MAX as usize);
