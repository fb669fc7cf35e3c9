//! Times that several methods share.

use std::time::Duration;

use hashfinder_proto::limits::{DEFAULT_INTERVAL, LONGEST_INTERVAL, SHORTEST_INTERVAL};

/// Maximum time for which a search's first event waits for the odds. Mostly, computing them takes
/// less. While odds of other searches are computed, it can take seconds; then the first event has
/// none.
pub(super) const ODDS_PATIENCE: Duration = Duration::from_millis(20);

/// Returns the requested interval, or the nearest one that is allowed; without a request, the
/// default.
pub(super) fn interval(asked: Option<&prost_types::Duration>) -> Duration {
    let Some(asked) = asked else {
        return DEFAULT_INTERVAL;
    };
    // Only a negative interval is not a valid `Duration`.
    let asked = Duration::try_from(*asked).unwrap_or_default();
    asked.clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL)
}
