//! Warnings that could be logged thousands of times.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Minimum time between two warnings.
const WARNS_EVERY: Duration = Duration::from_secs(10);

/// Limits warnings of one kind. Holds when the last one was logged.
#[derive(Debug, Default)]
pub(crate) struct Warnings(Mutex<Option<Instant>>);

impl Warnings {
    /// Whether a warning may be logged now. It then counts as logged.
    pub(crate) fn may_warn(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let may_warn = last.is_none_or(|at| at.elapsed() >= WARNS_EVERY);
        if may_warn {
            *last = Some(Instant::now());
        }
        may_warn
    }
}
