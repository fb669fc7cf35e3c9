//! The program `hashfinder`; all of it is in the library beside it.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// It gives back what a moment's many calls took, where glibc's keeps the most that each thread ever had.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    hashfinder::main()
}
