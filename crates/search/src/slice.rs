//! A slice of a search, and its result.

use std::{ops::Range, sync::Arc, time::Duration};

use crate::{group::Group, ids::JobId, keyspace::Index, matcher::Found, sync::AtomicBool};

/// How long a slice should take. A stop costs at most one slice on each worker, and a new search
/// waits for at most one. Much shorter slices would spend their time being set up.
pub(crate) const SLICE_TIME: Duration = Duration::from_micros(500);

/// Length of a search's first slice, until its speed is known, if a secret costs no more than a
/// fast kernel's hash. It is short because many searches end within it.
pub(crate) const FIRST_SLICE: u64 = 1 << 10;

/// A slice for a worker to try.
pub(crate) struct Slice {
    pub(crate) id: JobId,
    pub(crate) range: Range<Index>,
    pub(crate) group: Arc<Group>,
    pub(crate) hit_limit: usize,
    /// Set when no search needs the slice any more. The worker reads it once, before the slice
    /// begins.
    pub(crate) stop: Arc<AtomicBool>,
}

/// Result of a slice.
pub(crate) enum SliceResult {
    /// Every index of the slice below `tried` was tried.
    Tried { tried: Index, hits: Vec<Found> },
    /// The backend panicked.
    Panicked,
}
