//! Metrics that are updated where the events happen.

use std::time::Duration;

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::{errors::CallError, searches::stop_cause::StopCause, violation::Violation};

/// First bound of the histogram of stop latencies, in seconds. Each further bound is twice the one
/// before. A slice takes half a millisecond; a stop takes a second only on a very busy machine.
const SHORTEST_STOP: f64 = 16e-6;

/// Number of bounds. The last one is half a second.
const STOP_BUCKETS: u16 = 16;

/// Metrics that are updated where the events happen. Clones share the counts.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    refused: Family<[(&'static str, &'static str); 1], Counter>,
    /// Searches that were stopped, by cause.
    stopped: [Counter; StopCause::ALL.len()],
    stop_seconds: Histogram,
}

impl Default for Counts {
    fn default() -> Counts {
        let buckets = exponential_buckets(SHORTEST_STOP, 2.0, STOP_BUCKETS);
        let refused = Family::<_, Counter>::default();
        // These exist from the start, so that the first rejection is seen as an increase.
        let violations = Violation::ALL.map(Violation::reason);
        for reason in CallError::rejections().chain(violations) {
            let _ = refused.get_or_create(&[("reason", reason)]);
        }
        Counts {
            refused,
            stopped: Default::default(),
            stop_seconds: Histogram::new(buckets),
        }
    }
}

impl Counts {
    /// Counts a call that was rejected for this reason.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }

    /// Counts a search that was stopped.
    pub(crate) fn search_stopped(&self, cause: StopCause) {
        self.stopped[cause as usize].inc();
    }

    /// Returns how many searches were stopped, by cause.
    pub(crate) fn stopped(&self) -> [(StopCause, u64); StopCause::ALL.len()] {
        StopCause::ALL.map(|cause| (cause, self.stopped[cause as usize].get()))
    }

    /// Adds the time from a stop request to the release of the search by its last worker.
    pub(crate) fn stop_took(&self, time: Duration) {
        self.stop_seconds.observe(time.as_secs_f64());
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "refused",
            "Rejected calls, by reason; DRAINING includes calls that a drain ended without their \
             handlers",
            self.refused.clone(),
        );
        registry.register(
            "stop_seconds",
            "Time in seconds from a stop request until the last worker released the search",
            self.stop_seconds.clone(),
        );
    }
}
