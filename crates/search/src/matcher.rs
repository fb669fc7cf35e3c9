//! Matches secrets against the names of one search or of several: with a kernel if the algorithm is
//! SHA-1, otherwise one hash after another.
//!
//! Making a matcher *plans* its filter, which takes microseconds for one name and milliseconds for
//! thousands. `Engine::search` makes the matcher of a single query, on the caller's thread. Workers
//! make all others, outside of the scheduler's lock.

use std::{ops::Range, sync::Arc};

use hashfinder_kernels::{self as kernels, CharSet, Filter, Hits, Kernel, Mismatches, Text};

use crate::{
    keyspace::{Index, Keyspace},
    name::{DesiredName, Nearest},
    query::Query,
    spelling::{Algorithm, Anchor, Chars, Encoding, HashedName, Hasher, Spelling},
};

/// Time of a fast kernel's hash, in nanoseconds: the unit of costs. Like the other times here, it
/// was measured on one machine. Only their ratios matter.
const FAST_HASH: f64 = 7.0;

/// Time of the quick check for one name and one character of the hashed name, in nanoseconds.
const QUICK_CHECK: f64 = 0.7;

/// Time to compare a character of a window, in nanoseconds.
const COMPARISON: f64 = 1.5;

/// The names that a slice is searched for, each with the greatest distance at which a secret is a
/// hit.
///
/// All names share one keyspace, one algorithm and one encoding.
pub struct Matcher {
    keyspace: Arc<Keyspace>,
    /// Algorithm and encoding of all names. Each name has its own anchor and case sensitivity.
    spelling: Spelling,
    targets: Vec<Target>,
    method: Method,
}

impl Query {
    /// Makes the matcher for this query alone, which plans its filter: microseconds for one name,
    /// more for up to [`MAX_NAMES`](Query::MAX_NAMES).
    #[must_use]
    pub fn matcher(&self) -> Matcher {
        Matcher::new([self])
    }
}

/// How secrets are matched.
enum Method {
    /// By a kernel, with this filter.
    Fast(Filter),
    /// One hash after another, starting from the hasher's state after the prefix.
    Plain(Hasher),
}

/// A name to match.
struct Target {
    /// The names of the query, and the number of this name among them.
    names: Arc<[DesiredName]>,
    number: usize,
    max_distance: u8,
    /// The quick check of the plain method, for a name that is not anchored.
    quick: Option<Box<Mismatches<ASCII>>>,
}

/// Number of symbols that a hashed name may consist of.
const ASCII: usize = 128;

/// A hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The secret's index.
    pub index: Index,
    /// Number of the name within the matcher, from 0.
    pub number: u16,
    /// Number of characters in which the nearest window differs from the name.
    pub distance: u8,
    /// Place in the hashed name where the first window at that distance begins, from 0.
    pub window: u8,
}

impl Matcher {
    /// Makes the matcher for the names of compatible queries, in their order.
    pub(crate) fn new<'a>(queries: impl IntoIterator<Item = &'a Query>) -> Matcher {
        let mut queries = queries.into_iter().peekable();
        let first = *queries.peek().expect("a slice serves at least one query");
        let (keyspace, spelling) = (first.shared_keyspace(), first.spelling());
        let text = text(spelling);
        let targets = queries.flat_map(|query| {
            let numbers = 0..query.names().len();
            numbers.map(move |number| Target::new(query, number, text.is_some()))
        });
        let targets: Vec<Target> = targets.collect();
        let method = if let Some(text) = text {
            let sets: Vec<Vec<CharSet>> =
                targets.iter().map(|target| sets(target.name())).collect();
            let targets = targets.iter().zip(&sets);
            let targets = targets.map(|(target, characters)| kernels::Target {
                characters,
                max_distance: target.max_distance,
                at: target
                    .is_anchored()
                    .then(|| *target.name().windows().start()),
            });
            Method::Fast(Filter::any(text, targets))
        } else {
            let mut hasher = Hasher::new(spelling.algorithm);
            hasher.update(keyspace.prefix());
            Method::Plain(hasher)
        };
        Matcher {
            keyspace,
            spelling,
            targets,
            method,
        }
    }

    /// Returns the filter for a kernel; `None` unless the algorithm is SHA-1.
    #[must_use]
    pub fn filter(&self) -> Option<&Filter> {
        match &self.method {
            Method::Fast(filter) => Some(filter),
            Method::Plain(_) => None,
        }
    }

    /// Returns the name of what computes the digests: the kernel, or the algorithm if no kernel is
    /// used.
    #[must_use]
    pub fn hashed_by(&self, kernel: Kernel) -> String {
        match self.method {
            Method::Fast(_) => kernel.name().to_owned(),
            Method::Plain(_) => self.spelling.algorithm.to_string(),
        }
    }

    /// Tries the secrets of a range in order, with `kernel` if it can, and adds the hits to `hits`.
    /// They are in the order of their indices, then of the names. Returns one past the last index
    /// tried: the range's end or, once `hits` holds `limit` hits, one past the last hit.
    pub fn scan(
        &self,
        kernel: Kernel,
        range: Range<Index>,
        limit: usize,
        hits: &mut Vec<Found>,
    ) -> Index {
        match &self.method {
            Method::Fast(filter) => self.scan_fast(kernel, filter, range, limit, hits),
            Method::Plain(hasher) => self.scan_plain(hasher, range, limit, hits),
        }
    }

    fn scan_fast(
        &self,
        kernel: Kernel,
        filter: &Filter,
        range: Range<Index>,
        limit: usize,
        hits: &mut Vec<Found>,
    ) -> Index {
        let mut at = range.start;
        // A block ends where the length of the secrets changes, or with the range.
        while hits.len() < limit
            && let Some((start, block)) = self.keyspace.blocks(at..range.end).next()
        {
            let mut passed = Hits::with_limit(limit - hits.len());
            at = start + kernel.scan(&block, filter, &mut passed);
            hits.extend(passed.iter().map(|hit| Found {
                index: start + hit.offset,
                number: hit.name,
                distance: hit.distance,
                window: hit.window,
            }));
        }
        at
    }

    fn scan_plain(
        &self,
        hasher: &Hasher,
        range: Range<Index>,
        limit: usize,
        hits: &mut Vec<Found>,
    ) -> Index {
        if hits.len() >= limit {
            return range.start;
        }
        let mut hashed_name = HashedName::blank();
        // Only the part of the text that can match is written.
        let ends = self.targets.iter().map(|target| target.name().end());
        let bytes = self.spelling.encoding.bytes_of(ends.max().unwrap_or(0));
        self.keyspace.for_each(range, |index, rest| {
            let digest = hasher.digest_with(rest);
            let digest = digest.bytes();
            hashed_name.write(self.spelling.encoding, &digest[..bytes.min(digest.len())]);
            for (number, target) in (0..=u16::MAX).zip(&self.targets) {
                if let Some(nearest) = target.within(hashed_name.as_bytes()) {
                    hits.push(Found {
                        index,
                        number,
                        distance: nearest.distance,
                        window: nearest.window,
                    });
                }
            }
            hits.len() < limit
        })
    }

    /// Whether the first secret of a slice takes no longer than the others: the kernel has its
    /// tables already. They are made once for each keyspace.
    #[must_use]
    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.method, Method::Fast(_)) && Arc::ptr_eq(&self.keyspace, Keyspace::all())
    }

    /// Returns the approximate cost of trying a secret, in hashes of a fast kernel.
    #[must_use]
    pub fn cost(&self, kernel: Kernel) -> f64 {
        match &self.method {
            Method::Fast(filter) => kernel.cost(self.keyspace.secrets(), filter),
            Method::Plain(_) => {
                let checks: f64 = self.targets.iter().map(Target::cost).sum();
                (self.hash_cost() + checks) / FAST_HASH
            }
        }
    }

    /// Returns the nanoseconds to hash a secret with the plain method.
    fn hash_cost(&self) -> f64 {
        let (block, each) = match self.spelling.algorithm {
            Algorithm::Sha1 | Algorithm::Sha256 => (64, 60.0),
            Algorithm::Sha512 => (128, 250.0),
            Algorithm::Blake3 => (64, 100.0),
        };
        // The padding and the end of the prefix take at most two more blocks.
        each * (2 + self.keyspace.suffix().len() / block) as f64
    }
}

impl Target {
    fn new(query: &Query, number: usize, has_kernel: bool) -> Target {
        let mut target = Target {
            names: query.shared_names(),
            number,
            max_distance: query.max_distance(),
            quick: None,
        };
        if !has_kernel && !target.is_anchored() {
            let characters = target.name().characters();
            let satisfies = |character: usize, symbol| characters[character].contains(symbol);
            let quick = Mismatches::new(characters.len(), target.max_distance, satisfies);
            target.quick = Some(Box::new(quick));
        }
        target
    }

    fn name(&self) -> &DesiredName {
        &self.names[self.number]
    }

    fn is_anchored(&self) -> bool {
        self.name().spelling().anchor != Anchor::Anywhere
    }

    #[inline]
    fn within(&self, hashed_name: &[u8]) -> Option<Nearest> {
        let may_match = |quick: &Mismatches<ASCII>| quick.may_match(hashed_name);
        if !self.quick.as_deref().is_none_or(may_match) {
            return None;
        }
        self.name()
            .within(hashed_name, usize::from(self.max_distance))
    }

    /// Returns the nanoseconds to match the name with the plain method.
    fn cost(&self) -> f64 {
        let (length, max_distance) = (
            self.name().character_count(),
            usize::from(self.max_distance),
        );
        let windows = self.name().windows().count();
        // About this many characters of each window are compared until too many differ.
        let comparisons = COMPARISON * (windows * length.min(2 * (max_distance + 1))) as f64;
        match &self.quick {
            // Few texts pass the quick check if fewer than half of the characters that it compares
            // may differ.
            Some(_) if 2 * max_distance < length.min(Mismatches::<ASCII>::MAX_CHECKED) => {
                QUICK_CHECK * self.name().spelling().text_len() as f64
            }
            _ => comparisons,
        }
    }
}

/// Returns the kernels' word for the encoding, if they have the algorithm.
fn text(spelling: Spelling) -> Option<Text> {
    let text = match spelling.encoding {
        Encoding::Base64 | Encoding::Base64Url => Text::Base64,
        Encoding::Base32 => Text::Base32,
        Encoding::Hex => Text::Hex,
    };
    (spelling.algorithm == Algorithm::Sha1).then_some(text)
}

/// Returns a name's characters as the kernels expect them: by the values of digits.
fn sets(name: &DesiredName) -> Vec<CharSet> {
    let digits = name.spelling().encoding.digits();
    let set = |characters: &Chars| match *characters {
        Chars::PADDING => CharSet::PADDING,
        characters => CharSet::values_where(|value| {
            let digit = digits.get(usize::from(value));
            digit.is_some_and(|digit| characters.contains(*digit))
        }),
    };
    name.characters().iter().map(set).collect()
}
