//! Synchronization primitives for the state of a call: from the standard library or,
//! under `--cfg loom`, from loom, which explores every interleaving of threads.

#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic::AtomicBool};
#[cfg(not(loom))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic::AtomicBool};
