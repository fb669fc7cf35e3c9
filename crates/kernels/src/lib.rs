//! SHA-1 over blocks of secrets, and the filter that finds a name in the text of a digest.
//!
//! This crate contains only the hot loop, which never checks whether it should stop. The caller
//! checks between [`Block`]s, each of which should take about half a millisecond. The loop
//! allocates memory only for secrets that pass a filter. Starting a block allocates the filter's
//! tables. The first block of each secret length also computes tables that all later blocks of that
//! length share.
//!
//! ```
//! use hashfinder_kernels::{Block, CharSet, Filter, Hits, Kernel};
//!
//! // Finds "aa" in upper or lower case, with no mismatch, among the first 16,384 three-byte
//! // secrets.
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
mod bitmap;
mod digest;
mod digits;
mod filter;
mod hits;
mod kernel;
mod layout;
mod mismatches;
mod name;
#[cfg(target_arch = "aarch64")]
mod neon;
mod plan;
mod portable;
#[cfg(target_arch = "x86_64")]
mod rounds;
mod rows;
mod secrets;
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
mod space;
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "the same, and they have one walk for all secrets")
)]
mod split;
#[cfg(test)]
mod tests;
mod walk;
mod windows;

pub use digest::sha1;
pub use digits::{ALPHABET, CharSet, HASHED_NAME_LEN, Text, hashed_name, place};
pub use filter::{Filter, MAX_NAMES, Match};
pub use hits::{Hit, Hits};
pub use kernel::Kernel;
pub use mismatches::Mismatches;
pub use name::Target;
pub use secrets::{Block, Secrets};
