//! The program `hashfinder`, which calls the library of this package.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// It returns memory to the system after a burst of calls, and its memory use does not grow over
/// time. Its settings are in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    hashfinder::main()
}
