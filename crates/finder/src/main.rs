//! The program `hashfinder`; all of it is in the library beside it.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// It gives back what a moment's many calls took, and does not creep up; its settings are in
/// `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    hashfinder::main()
}
