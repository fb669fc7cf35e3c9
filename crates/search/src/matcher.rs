//! Matches secrets against the names of one search or of several: with a fast kernel where the
//! spelling and the keyspace allow it, otherwise one hash after another.
//!
//! Making a matcher *plans* its filter, which takes microseconds for one name and milliseconds for
//! thousands. `Engine::search` makes the matcher of a single query, on the caller's thread. Workers
//! make all others, outside of the scheduler's lock.

use std::{ops::Range, sync::Arc};

use hashfinder_kernels::{CharSet, Filter, Hits, Kernel, Mismatches};

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

/// Minimum number of hits that a kernel may find before anchored names are checked at their anchor.
/// Most of these hits are elsewhere, and starting the kernel again costs as much as about a
/// thousand hashes.
const PASSED_AT_ONCE: usize = 16;

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
    /// By a fast kernel, with this filter.
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
        let is_fast = spelling.is_fast() && keyspace.is_fast();
        let targets = queries.flat_map(|query| {
            let numbers = 0..query.names().len();
            numbers.map(move |number| Target::new(query, number, is_fast))
        });
        let targets: Vec<Target> = targets.collect();
        let method = if is_fast {
            let sets: Vec<Vec<CharSet>> =
                targets.iter().map(|target| sets(target.name())).collect();
            let distances = targets.iter().map(|target| target.max_distance);
            Method::Fast(Filter::any(sets.iter().map(Vec::as_slice).zip(distances)))
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

    /// Returns the filter for a fast kernel; `None` unless the secrets are all byte strings, and
    /// the digests are SHA-1 in base64 or base64url.
    ///
    /// The filter passes every hit. It ignores anchors: secrets with a name elsewhere pass, too.
    #[must_use]
    pub fn filter(&self) -> Option<&Filter> {
        match &self.method {
            Method::Fast(filter) => Some(filter),
            Method::Plain(_) => None,
        }
    }

    /// Returns the name of what computes the digests: the kernel, or the algorithm if no fast
    /// kernel is used.
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
            let room = limit - hits.len();
            let is_anchored = self.targets.iter().any(Target::is_anchored);
            let mut passed = Hits::with_limit(if is_anchored {
                room.max(PASSED_AT_ONCE)
            } else {
                room
            });
            at = start + kernel.scan(&block, filter, &mut passed);
            hits.extend(passed.iter().filter_map(|hit| {
                let found = Found {
                    index: start + hit.offset,
                    number: hit.name,
                    distance: hit.distance,
                    window: hit.window,
                };
                self.at_anchor(found)
            }));
            if let Some(last) = hits.get(limit - 1).map(|hit| hit.index)
                && is_anchored
            {
                // The kernel was given room for more hits than `limit`.
                hits.truncate(hits.partition_point(|hit| hit.index <= last));
                at = last + 1;
            }
        }
        at
    }

    /// Returns the hit, if what a fast filter has found is one: an anchored name has to be near
    /// enough at its anchor.
    fn at_anchor(&self, found: Found) -> Option<Found> {
        let target = &self.targets[usize::from(found.number)];
        if !target.is_anchored() {
            return Some(found);
        }
        let secret = self.keyspace.secret(found.index);
        let hashed_name = self.spelling.hashed_name(&secret);
        let nearest = target.within(hashed_name.as_bytes())?;
        Some(Found {
            distance: nearest.distance,
            window: nearest.window,
            ..found
        })
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

    /// Returns the approximate cost of trying a secret, in hashes of a fast kernel.
    #[must_use]
    pub fn cost(&self, kernel: Kernel) -> f64 {
        match &self.method {
            Method::Fast(filter) => kernel.cost(filter),
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
    fn new(query: &Query, number: usize, is_fast: bool) -> Target {
        let mut target = Target {
            names: query.shared_names(),
            number,
            max_distance: query.max_distance(),
            quick: None,
        };
        if !is_fast && !target.is_anchored() {
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

/// Returns a name's characters as the kernels expect them: by the values of digits, which are the
/// same in both alphabets of base64.
fn sets(name: &DesiredName) -> Vec<CharSet> {
    let is_url = name.spelling().encoding == Encoding::Base64Url;
    let set = |characters: &Chars| {
        if *characters == Chars::PADDING {
            return CharSet::PADDING;
        }
        CharSet::digits_where(|standard| {
            characters.contains(match standard {
                b'+' if is_url => b'-',
                b'/' if is_url => b'_',
                digit => digit,
            })
        })
    };
    name.characters().iter().map(set).collect()
}
