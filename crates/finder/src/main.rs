//! The program `hashfinder`, which calls the library of this package.

#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Allocator of the process. It returns memory to the system after a burst of calls, and its memory
/// use does not grow over time.
///
/// Its settings are in `.cargo/config.toml`.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    hashfinder::main()
}
