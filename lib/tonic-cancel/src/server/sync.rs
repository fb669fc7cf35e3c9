//! What the state of a call is built on, from the standard library or, under `--cfg loom`, from
//! loom, which tries every order in which threads can come to it.

#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic::AtomicBool};
#[cfg(not(loom))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic::AtomicBool};
