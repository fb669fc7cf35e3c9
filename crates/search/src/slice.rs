//! A slice of a search, and what became of it.

use std::{ops::Range, sync::Arc, time::Duration};

use crate::{group::Set, ids::JobId, keyspace::Index, matcher::Found, sync::AtomicBool};

/// How long a slice should take. A stop costs at most one slice on each worker, and a search that
/// has just arrived waits for one at most; much shorter ones would spend their time being set up.
pub(crate) const SLICE_TIME: Duration = Duration::from_micros(500);

/// The first slice of a search, until its speed is known, if a secret costs no more than a fast kernel's
/// hash. Small, because many a search is over within it.
pub(crate) const FIRST_SLICE: u64 = 1 << 10;

/// A slice for a worker to try.
pub(crate) struct Slice {
    pub(crate) id: JobId,
    pub(crate) range: Range<Index>,
    pub(crate) set: Arc<Set>,
    pub(crate) hit_limit: usize,
    /// Set when nobody wants it any more; looked at once, before the slice begins.
    pub(crate) stop: Arc<AtomicBool>,
}

/// What became of a slice.
pub(crate) enum Done {
    /// Every index of the slice below `tried` was tried.
    Tried { tried: Index, hits: Vec<Found> },
    /// The backend panicked.
    Panicked,
}
