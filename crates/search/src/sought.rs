//! What a slice looks for, and the way without a fast kernel to look for it.

use std::{ops::Range, sync::Arc};

use hashfinder_kernels::{CharSet, Filter, Hits, Kernel};

use crate::{
    keyspace::{Index, Keyspace},
    name::{DesiredName, Nearest},
    query::Query,
    spelling::{Anchor, Chars, Encoding, HashedName, Hasher, Spelling},
};

/// What looking for a name in a hashed name costs without a fast kernel, for each window, as a share of
/// what hashing does: three characters or so are compared in a nanosecond, and a hash takes 70.
const WINDOW_COST: f64 = 0.02;

/// The names that a slice is searched for, each with the greatest distance at which a secret is a hit.
///
/// All are looked for among the same secrets and in the same digests, written alike.
pub struct Sought {
    keyspace: Arc<Keyspace>,
    spelling: Spelling,
    names: Vec<Wanted>,
    filter: Option<Filter>,
}

struct Wanted {
    name: DesiredName,
    furthest: u8,
}

/// A hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The secret's index.
    pub index: Index,
    /// Which of the names it is, from 0 on.
    pub name: u16,
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
        let wanted = queries.flat_map(|query| {
            query.names().iter().map(|name| Wanted {
                name: name.clone(),
                furthest: query.furthest(),
            })
        });
        let names: Vec<Wanted> = wanted.collect();
        let is_fast = spelling.is_fast() && keyspace.is_fast();
        let filter = is_fast.then(|| {
            let sets: Vec<Vec<CharSet>> = names.iter().map(|wanted| sets(&wanted.name)).collect();
            let furthest = names.iter().map(|wanted| wanted.furthest);
            Filter::any(sets.iter().map(Vec::as_slice).zip(furthest))
        });
        Sought {
            keyspace,
            spelling,
            names,
            filter,
        }
    }

    /// How many names there are.
    #[must_use]
    pub fn names(&self) -> usize {
        self.names.len()
    }

    /// What lets pass whatever is a hit, if secrets are all byte strings and digests SHA-1 in base64, so
    /// that a fast kernel can search. Where a name has to be at one end of the hashed name, it lets pass
    /// those too that have it elsewhere.
    #[must_use]
    pub fn filter(&self) -> Option<&Filter> {
        self.filter.as_ref()
    }

    /// What computes the digests, for people: the kernel, or the algorithm where no kernel does.
    #[must_use]
    pub fn hashed_by(&self, kernel: Kernel) -> String {
        match self.filter {
            Some(_) => kernel.name().to_owned(),
            None => self.spelling.algorithm.to_string(),
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
        match &self.filter {
            Some(filter) => self.scan_fast(kernel, filter, range, limit, hits),
            None => self.scan_plainly(range, limit, hits),
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
        while at < range.end {
            // Its end is where the length of the secrets changes, or the range's.
            let Some((start, block)) = self.keyspace.blocks(at..range.end).next() else {
                break;
            };
            if hits.len() >= limit {
                return start;
            }
            let mut passed = Hits::with_limit(limit - hits.len());
            let tried = kernel.scan(&block, filter, &mut passed);
            hits.extend(passed.iter().filter_map(|hit| {
                let found = Found {
                    index: start + hit.offset,
                    name: hit.name,
                    distance: hit.distance,
                    window: hit.window,
                };
                self.at_anchor(found)
            }));
            at = start + tried;
        }
        at
    }

    /// What a fast filter has found, if it is a hit: a name that has its place is looked for there alone.
    fn at_anchor(&self, found: Found) -> Option<Found> {
        let wanted = &self.names[usize::from(found.name)];
        if wanted.name.spelling().anchor == Anchor::Anywhere {
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

    fn scan_plainly(&self, range: Range<Index>, limit: usize, hits: &mut Vec<Found>) -> Index {
        if hits.len() >= limit {
            return range.start;
        }
        let mut hasher = Hasher::new(self.spelling.algorithm);
        hasher.update(self.keyspace.prefix());
        let mut hashed_name = HashedName::blank();
        // No more of it is written than is looked at.
        let ends = self.names.iter().map(|wanted| wanted.name.end());
        let bytes = self.spelling.encoding.bytes_of(ends.max().unwrap_or(0));
        self.keyspace.for_each(range, |index, rest| {
            let digest = hasher.digest_with(rest);
            let digest = digest.bytes();
            hashed_name.write(self.spelling.encoding, &digest[..bytes.min(digest.len())]);
            for (name, wanted) in (0..).zip(&self.names) {
                if let Some(nearest) = wanted.within(hashed_name.as_bytes()) {
                    hits.push(Found {
                        index,
                        name,
                        distance: nearest.distance,
                        window: nearest.window,
                    });
                }
            }
            hits.len() < limit
        })
    }

    /// About how many times as long as hashing alone a slice takes.
    #[must_use]
    pub fn cost(&self, kernel: Kernel) -> f64 {
        match &self.filter {
            Some(filter) => kernel.cost(filter),
            None => {
                let windows = self.names.iter().map(|wanted| {
                    wanted.name.windows().count() * (1 + usize::from(wanted.furthest))
                });
                1.0 + WINDOW_COST * windows.sum::<usize>() as f64
            }
        }
    }
}

impl Wanted {
    #[inline]
    fn within(&self, hashed_name: &[u8]) -> Option<Nearest> {
        self.name.within(hashed_name, usize::from(self.furthest))
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
