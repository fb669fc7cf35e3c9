//! What a change in the scheduler requires outside of its lock.

use std::{sync::Arc, task::Waker};

use crate::{
    ids::JobId,
    matcher::Matcher,
    outcome::{Release, Report},
};

/// What the caller has to do once it has released the lock: wakers and releases run code that the
/// scheduler does not know.
#[derive(Default)]
#[must_use]
pub(crate) struct Effects {
    pub(crate) wake: Vec<Waker>,
    /// Wakers that are not needed any more. Dropping a waker can run any code.
    pub(crate) stale: Vec<Waker>,
    /// Matchers that are not needed any more. Freeing a large one takes time.
    pub(crate) stale_matchers: Vec<Arc<Matcher>>,
    pub(crate) released: Vec<(Release, Report)>,
    /// Slices in flight to bring back now, as far as they are tried: no search wants them any more,
    /// or an ideal hit has to wait for them. Threads need not be told, because their slices are
    /// short.
    pub(crate) recalls: Vec<JobId>,
    /// Whether there may be work for another worker.
    pub(crate) work: bool,
}

impl Effects {
    /// Whether there is nothing to wake, to drop or to release.
    pub(crate) fn is_empty(&self) -> bool {
        self.wake.is_empty()
            && self.released.is_empty()
            && self.stale.is_empty()
            && self.stale_matchers.is_empty()
    }
}
