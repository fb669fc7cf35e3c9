//! The kernels that this CPU can run, and their operations.

#[cfg(target_arch = "aarch64")]
use crate::neon::Neon;
#[cfg(target_arch = "x86_64")]
use crate::{avx2::Avx2, avx512::Avx512, sha_ni::ShaNi};
use crate::{
    filter::Filter,
    hits::Hits,
    portable,
    secrets::{Block, Secrets},
    split,
};

/// A kernel that this CPU can run. Holding one proves that the CPU can run it.
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
    /// Returns every kernel that this CPU can run, the fastest first.
    ///
    /// The order is that of the CPUs that were measured.
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

    /// Returns the first of the kernels that [`all`](Self::all) returns.
    #[must_use]
    pub fn best() -> Kernel {
        // The portable kernel is always among them.
        Kernel::all().next().unwrap_or(Kernel(Isa::Portable))
    }

    /// Returns the kernel with this name, if this CPU can run it.
    #[must_use]
    pub fn named(name: &str) -> Option<Kernel> {
        Kernel::all().find(|kernel| kernel.name() == name)
    }

    /// Returns the name by which users select the kernel.
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

    /// Tries the secrets of `block` in order, adds those that pass `filter` to `hits`, and returns
    /// the number of secrets tried.
    ///
    /// All are tried unless `hits` fills up: then the last hit's secret is the last one tried. None
    /// is tried if `hits` is already full. Every kernel finds the same hits, in the same order.
    pub fn scan(self, block: &Block<'_>, filter: &Filter, hits: &mut Hits) -> u64 {
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

    /// Estimates the time of [`scan`](Self::scan) with `filter`, as a multiple of the time of
    /// hashing a short byte string alone.
    ///
    /// For a vector kernel and byte strings it is about 1.1 for one name, and 2 for a thousand
    /// names of at least six letters.
    ///
    /// The estimate is derived from the parts of the filter and the number of blocks of a secret,
    /// not measured. Callers use it to decide which names to search for together.
    #[must_use]
    pub fn cost(self, secrets: &Secrets, filter: &Filter) -> f64 {
        let hashing = secrets.space().blocks();
        match self.0 {
            Isa::Portable => hashing + portable::cost(filter),
            _ => hashing + filter.plan().cost / split::OPERATIONS,
        }
    }

    /// Hashes the secrets of `block` and returns the XOR of the first words of their digests.
    ///
    /// Benchmarks use it to measure hashing without a filter. Every kernel returns the same result.
    #[must_use]
    pub fn digest_sum(self, block: &Block<'_>) -> u32 {
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
