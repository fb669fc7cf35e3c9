//! The kernels that this CPU can run, and what each of them does.

#[cfg(target_arch = "aarch64")]
use crate::neon::Neon;
#[cfg(target_arch = "x86_64")]
use crate::{avx2::Avx2, avx512::Avx512, sha_ni::ShaNi};
use crate::{block::Block, filter::Filter, hits::Hits, portable, split};

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
