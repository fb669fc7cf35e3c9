//! SHA-1 over blocks of secrets, and the filter that spots a name in the base64 text of a digest.
//!
//! This is the hot loop and nothing else: it never looks whether it should stop. A caller hands it a
//! [`Block`] that takes about half a millisecond, and looks in between. Only what passes a filter
//! allocates in the loop itself; a block's beginning allocates a filter's tables, and the first block
//! of each length of secrets works out what all others share.
//!
//! ```
//! use hashfinder_kernels::{Block, CharSet, Filter, Hits, Kernel};
//!
//! // "aa" in any case, exactly, among the first 16,384 secrets of three bytes.
//! let a = CharSet::digits_where(|character| character.eq_ignore_ascii_case(&b'a'));
//! let filter = Filter::new(&[a, a], 0);
//! let block = Block::new(3, 0, 1 << 14);
//! let mut hits = Hits::with_limit(1024);
//! let tried = Kernel::best().scan(&block, &filter, &mut hits);
//! assert_eq!(tried, 1 << 14);
//! assert!(!hits.is_empty() && hits.iter().all(|hit| hit.distance == 0));
//! ```

#![allow(
    clippy::needless_range_loop,
    reason = "most loops go across several arrays, and iterators' closures would not be compiled for \
              the instructions of the function that uses them"
)]
#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(
        dead_code,
        unused_imports,
        unused_macros,
        reason = "some of it is for some CPUs' kernels alone"
    )
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod digits;
mod filter;
mod mismatches;
#[cfg(target_arch = "aarch64")]
mod neon;
mod plan;
mod portable;
mod quads;
#[cfg(target_arch = "x86_64")]
mod rounds;
mod rows;
#[cfg(target_arch = "x86_64")]
mod sha_ni;
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(
        dead_code,
        reason = "where the CPU has SHA instructions, they do the rounds"
    )
)]
mod simd;
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "the same, and they take four words at a time")
)]
mod split;
mod windows;

pub use digits::{ALPHABET, CharSet, HASHED_NAME_LEN, hashed_name, place};
pub use filter::{Filter, MAX_NAMES, Match};
pub use mismatches::Mismatches;
#[cfg(target_arch = "aarch64")]
use neon::Neon;
#[cfg(target_arch = "x86_64")]
use {avx2::Avx2, avx512::Avx512, sha_ni::ShaNi};

/// The longest secret that a [`Block`] can hold, in bytes: its varying part is one 64-bit counter.
pub const MAX_SECRET_LEN: u32 = 8;

/// Consecutive secrets of one length: the big-endian counters from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    length: u32,
    first: u64,
    count: u64,
}

impl Block {
    /// `count` secrets of `length` bytes, the first of them being `first` written big-endian.
    ///
    /// # Panics
    ///
    /// If `length` is above [`MAX_SECRET_LEN`], or the block reaches beyond the last secret of its
    /// length: both are mistakes of the caller, which splits its ranges at the lengths' ends.
    #[must_use]
    pub fn new(length: u32, first: u64, count: u64) -> Block {
        assert!(length <= MAX_SECRET_LEN, "no secrets of {length} bytes");
        let secrets = 1_u128 << (8 * length);
        assert!(
            u128::from(first) + u128::from(count) <= secrets,
            "{count} secrets from {first} on do not exist in {length} bytes"
        );
        Block {
            length,
            first,
            count,
        }
    }

    /// How many bytes each secret has.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.length
    }

    /// How many secrets there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }
}

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
    fn new(offset: u64, found: Match) -> Hit {
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

/// A way to hash and filter that this CPU can run; holding one is the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(Isa);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    ShaNi(ShaNi),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    Portable,
}

impl Kernel {
    /// Every kernel that this CPU can run, in the order of their speed on the CPUs that were measured.
    pub fn all() -> impl Iterator<Item = Kernel> {
        let all = [
            #[cfg(target_arch = "x86_64")]
            Avx512::detect().map(Isa::Avx512),
            #[cfg(target_arch = "x86_64")]
            Avx2::detect().map(Isa::Avx2),
            #[cfg(target_arch = "x86_64")]
            ShaNi::detect().map(Isa::ShaNi),
            #[cfg(target_arch = "aarch64")]
            Neon::detect().map(Isa::Neon),
            Some(Isa::Portable),
        ];
        all.into_iter().flatten().map(Kernel)
    }

    /// The first of [`all`](Self::all).
    #[must_use]
    pub fn best() -> Kernel {
        // The portable one is always among them.
        Kernel::all().next().unwrap_or(Kernel(Isa::Portable))
    }

    /// The kernel of this name, if this CPU can run it.
    #[must_use]
    pub fn named(name: &str) -> Option<Kernel> {
        Kernel::all().find(|kernel| kernel.name() == name)
    }

    /// The name by which people ask for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::ShaNi(_) => "sha-ni",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => "neon",
            Isa::Portable => "portable",
        }
    }

    /// Tries the secrets of `block` in order, adds those that `filter` lets pass to `hits`, and
    /// returns how many it tried.
    ///
    /// That is all of them, or, when `hits` fills up, every one up to and including the last hit.
    /// Which secrets pass, and in which order, is the same for every kernel.
    pub fn scan(self, block: &Block, filter: &Filter, hits: &mut Hits) -> u64 {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(simd) => simd.scan(block, filter, hits),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(simd) => simd.scan(block, filter, hits),
            #[cfg(target_arch = "x86_64")]
            Isa::ShaNi(simd) => simd.scan(block, filter, hits),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(simd) => simd.scan(block, filter, hits),
            Isa::Portable => portable::scan(block, filter, hits),
        }
    }

    /// About how many times as long it takes to [`scan`](Self::scan) with `filter` as to hash alone: 1.1
    /// for a name, and 2 for a thousand names of six letters and more.
    ///
    /// It is estimated from what the filter is made of, not measured. It is there to choose by: which
    /// names are worth being looked for together.
    #[must_use]
    pub fn cost(self, filter: &Filter) -> f64 {
        match self.0 {
            Isa::Portable => portable::cost(filter),
            _ => 1.0 + filter.plan().cost / split::OPERATIONS,
        }
    }

    /// Hashes the secrets of `block` and gives the XOR of the first words of their digests: what
    /// hashing costs without the filter, for benchmarks, with an answer that can be checked.
    #[must_use]
    pub fn digest_sum(self, block: &Block) -> u32 {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(simd) => simd.digest_sum(block),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(simd) => simd.digest_sum(block),
            #[cfg(target_arch = "x86_64")]
            Isa::ShaNi(simd) => simd.digest_sum(block),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(simd) => simd.digest_sum(block),
            Isa::Portable => portable::digest_sum(block),
        }
    }
}

/// SHA-1 of a message of any length, in its five words, for the few digests that are wanted outside
/// the hot loop.
#[must_use]
pub fn sha1(message: &[u8]) -> [u32; 5] {
    use sha1::Digest;
    let digest = sha1::Sha1::digest(message);
    let mut words = [0; 5];
    for (word, bytes) in words.iter_mut().zip(digest.chunks_exact(4)) {
        let bytes = bytes.iter().map(|byte| u32::from(*byte));
        *word = bytes.fold(0, |word, byte| word << 8 | byte);
    }
    words
}
