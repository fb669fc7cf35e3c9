//! Limits and defaults that `proto/hashfinder/v1/finder.proto` states.

use std::time::Duration;

/// Interval between two progress events, or two messages of a watch, for a request that sets none.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);

/// Minimum interval between two progress events, or two messages of a watch. A server raises
/// shorter ones to this: ten updates a second look continuous.
pub const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// Maximum interval between two progress events, or two messages of a watch. A server lowers longer
/// ones to this: after a longer silence, a client might take the server for dead.
pub const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

/// Maximum length of the reason in a `CancelSearchRequest`, in bytes of UTF-8.
///
/// The reason appears three times in the trailers of the cancelled search, next to the cursor. One
/// of the three is percent-encoded and may take three bytes per byte. Clients commonly accept 8 KiB
/// of trailers.
pub const MAX_REASON_LEN: usize = 256;
