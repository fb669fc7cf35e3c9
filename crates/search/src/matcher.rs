//! What a slice looks for, and the way without a fast kernel to look for it.

use std::{ops::Range, sync::Arc};

use hashfinder_kernels::{CharSet, Filter, Hits, Kernel, Mismatches};

use crate::{
    keyspace::{Index, Keyspace},
    name::{DesiredName, Nearest},
    query::Query,
    spelling::{Algorithm, Anchor, Chars, Encoding, HashedName, Hasher, Spelling},
};

/// What a fast kernel's hash takes, in nanoseconds: the unit of costs. Like all of these it was measured on
/// one machine, and only their ratios matter.
const FAST_HASH: f64 = 7.0;

/// What it takes to look at a character of a hashed name for a name that may be anywhere.
const QUICK_LOOK: f64 = 0.7;

/// What it takes to compare a character of a window.
const COMPARISON: f64 = 1.5;

/// How many secrets that a kernel's filter lets pass are looked at again together, where names have their
/// place: to begin a block costs a kernel as much as some thousand hashes.
const PASSED_AT_ONCE: usize = 16;

/// The names that a slice is searched for, each with the greatest distance at which a secret is a hit.
///
/// All are looked for among the same secrets and in the same digests, written alike.
pub struct Sought {
    keyspace: Arc<Keyspace>,
    /// The anchor and whether case matters are each name's own.
    spelling: Spelling,
    names: Vec<Wanted>,
    way: Way,
}

impl Query {
    /// What a slice of it alone looks for.
    #[must_use]
    pub fn sought(&self) -> Sought {
        Sought::new([self])
    }
}

/// How it is looked for.
enum Way {
    /// By a fast kernel, with this filter.
    Fast(Filter),
    /// Plainly, from here on, behind the prefix.
    Plain(Hasher),
}

struct Wanted {
    /// Its query's names, and which of them it is.
    names: Arc<[DesiredName]>,
    number: usize,
    furthest: u8,
    /// Where a hashed name is looked at plainly and the name may be in many of its windows.
    quick: Option<Box<Mismatches<ASCII>>>,
}

/// How many symbols a hashed name may be made of.
const ASCII: usize = 128;

/// A hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The secret's index.
    pub index: Index,
    /// Which of the names that are sought it is, from 0 on.
    pub number: u16,
    /// The least distance over all windows.
    pub distance: u8,
    /// The first window at that distance: where in the hashed name it begins, from 0 on.
    pub window: u8,
}

impl Sought {
    /// The names of queries that go together, in their order.
    pub(crate) fn new<'a>(queries: impl IntoIterator<Item = &'a Query>) -> Sought {
        let mut queries = queries.into_iter().peekable();
        let first = *queries.peek().expect("a slice serves somebody");
        let (keyspace, spelling) = (first.shared_keyspace(), first.spelling());
        let is_fast = spelling.is_fast() && keyspace.is_fast();
        let wanted = queries.flat_map(|query| {
            let numbers = 0..query.names().len();
            numbers.map(move |number| Wanted::new(query, number, is_fast))
        });
        let names: Vec<Wanted> = wanted.collect();
        let way = if is_fast {
            let sets: Vec<Vec<CharSet>> = names.iter().map(|wanted| sets(wanted.name())).collect();
            let furthest = names.iter().map(|wanted| wanted.furthest);
            Way::Fast(Filter::any(sets.iter().map(Vec::as_slice).zip(furthest)))
        } else {
            let mut hasher = Hasher::new(spelling.algorithm);
            hasher.update(keyspace.prefix());
            Way::Plain(hasher)
        };
        Sought {
            keyspace,
            spelling,
            names,
            way,
        }
    }

    /// What lets pass whatever is a hit, if secrets are all byte strings and digests SHA-1 in base64, so
    /// that a fast kernel can search. Where a name has to be at one end of the hashed name, it lets pass
    /// those too that have it elsewhere.
    #[must_use]
    pub fn filter(&self) -> Option<&Filter> {
        match &self.way {
            Way::Fast(filter) => Some(filter),
            Way::Plain(_) => None,
        }
    }

    /// What computes the digests, for people: the kernel, or the algorithm where no kernel does.
    #[must_use]
    pub fn hashed_by(&self, kernel: Kernel) -> String {
        match self.way {
            Way::Fast(_) => kernel.name().to_owned(),
            Way::Plain(_) => self.spelling.algorithm.to_string(),
        }
    }

    /// Tries the secrets of a range in order, with `kernel` if it can, and adds those that are hits to
    /// `hits`, in the order of the indices, then of the names. Returns one past the last index tried: the
    /// range's end or, when `hits` has come to hold `limit`, one past the last hit's.
    pub fn scan(
        &self,
        kernel: Kernel,
        range: Range<Index>,
        limit: usize,
        hits: &mut Vec<Found>,
    ) -> Index {
        match &self.way {
            Way::Fast(filter) => self.scan_fast(kernel, filter, range, limit, hits),
            Way::Plain(hasher) => self.scan_plainly(hasher, range, limit, hits),
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
            let is_anchored = self.names.iter().any(Wanted::has_its_place);
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
                // There was room for more than are wanted.
                hits.truncate(hits.partition_point(|hit| hit.index <= last));
                at = last + 1;
            }
        }
        at
    }

    /// What a fast filter has found, if it is a hit: a name that has its place is looked for there alone.
    fn at_anchor(&self, found: Found) -> Option<Found> {
        let wanted = &self.names[usize::from(found.number)];
        if !wanted.has_its_place() {
            return Some(found);
        }
        let secret = self.keyspace.secret(found.index);
        let hashed_name = self.spelling.hashed_name(&secret);
        let nearest = wanted.within(hashed_name.as_bytes())?;
        Some(Found {
            distance: nearest.distance,
            window: nearest.window,
            ..found
        })
    }

    fn scan_plainly(
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
        // No more of it is written than is looked at.
        let ends = self.names.iter().map(|wanted| wanted.name().end());
        let bytes = self.spelling.encoding.bytes_of(ends.max().unwrap_or(0));
        self.keyspace.for_each(range, |index, rest| {
            let digest = hasher.digest_with(rest);
            let digest = digest.bytes();
            hashed_name.write(self.spelling.encoding, &digest[..bytes.min(digest.len())]);
            for (number, wanted) in (0..=u16::MAX).zip(&self.names) {
                if let Some(nearest) = wanted.within(hashed_name.as_bytes()) {
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

    /// About what it takes to try a secret, in hashes of a fast kernel.
    #[must_use]
    pub fn cost(&self, kernel: Kernel) -> f64 {
        match &self.way {
            Way::Fast(filter) => kernel.cost(filter),
            Way::Plain(_) => {
                let looks: f64 = self.names.iter().map(Wanted::cost).sum();
                (self.hash_cost() + looks) / FAST_HASH
            }
        }
    }

    /// What it takes to hash a secret plainly, in nanoseconds.
    fn hash_cost(&self) -> f64 {
        let (block, each) = match self.spelling.algorithm {
            Algorithm::Sha1 | Algorithm::Sha256 => (64, 60.0),
            Algorithm::Sha512 => (128, 250.0),
            Algorithm::Blake3 => (64, 100.0),
        };
        // The padding, and the end of the prefix, are two blocks more at most.
        each * (2 + self.keyspace.suffix().len() / block) as f64
    }
}

impl Wanted {
    fn new(query: &Query, number: usize, is_fast: bool) -> Wanted {
        let mut wanted = Wanted {
            names: query.shared_names(),
            number,
            furthest: query.furthest(),
            quick: None,
        };
        if !is_fast && !wanted.has_its_place() {
            let characters = wanted.name().characters();
            let satisfies = |character: usize, symbol| characters[character].contains(symbol);
            let quick = Mismatches::new(characters.len(), wanted.furthest, satisfies);
            wanted.quick = Some(Box::new(quick));
        }
        wanted
    }

    fn name(&self) -> &DesiredName {
        &self.names[self.number]
    }

    fn has_its_place(&self) -> bool {
        self.name().spelling().anchor != Anchor::Anywhere
    }

    #[inline]
    fn within(&self, hashed_name: &[u8]) -> Option<Nearest> {
        let may_match = |quick: &Mismatches<ASCII>| quick.may_match(hashed_name);
        if !self.quick.as_deref().is_none_or(may_match) {
            return None;
        }
        self.name().within(hashed_name, usize::from(self.furthest))
    }

    /// What it takes to look for it plainly, in nanoseconds.
    fn cost(&self) -> f64 {
        let (length, furthest) = (self.name().character_count(), usize::from(self.furthest));
        let windows = self.name().windows().count();
        // Of a window so many characters are compared until too many differ.
        let comparisons = COMPARISON * (windows * length.min(2 * (furthest + 1))) as f64;
        match &self.quick {
            // What passes it is rare, but where nearly all of what it looks at may differ.
            Some(_) if 2 * furthest < length.min(Mismatches::<ASCII>::LOOKED_AT) => {
                QUICK_LOOK * self.name().spelling().text_len() as f64
            }
            _ => comparisons,
        }
    }
}

/// A name's characters as the kernels know them: by the values of digits, which both alphabets of base64
/// have in common.
fn sets(name: &DesiredName) -> Vec<CharSet> {
    let is_url = name.spelling().encoding == Encoding::Base64Url;
    let set = |wanted: &Chars| {
        if *wanted == Chars::PADDING {
            return CharSet::PADDING;
        }
        CharSet::digits_where(|standard| {
            wanted.contains(match standard {
                b'+' if is_url => b'-',
                b'/' if is_url => b'_',
                digit => digit,
            })
        })
    };
    name.characters().iter().map(set).collect()
}
