//! A slice for a worker to try, and its result.

use std::{ops::Range, sync::Arc};

use crate::{group::Group, ids::JobId, keyspace::Index, matcher::Found, sync::AtomicBool};

/// Number of secrets in a search's first slice, while its speed is unknown, if a secret costs no
/// more than a fast kernel's hash. More expensive secrets make the slice shorter. It is short
/// because many searches end within it.
pub(crate) const FIRST_SLICE: u64 = 1 << 10;

/// A slice for a worker to try.
pub(crate) struct Slice {
    pub(crate) id: JobId,
    pub(crate) range: Range<Index>,
    pub(crate) group: Arc<Group>,
    pub(crate) hit_limit: usize,
    /// Whether an ideal hit waits for it.
    pub(crate) is_urgent: bool,
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
