//! Limits and defaults that `proto/hashfinder/v1/finder.proto` states.

use std::time::Duration;

/// Interval between two progress events, or two messages of a watch, for a request that sets none.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);

/// Shortest such interval. A server raises shorter ones to this: ten updates a second look
/// continuous.
pub const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// Longest such interval. A server lowers longer ones to this: after more silence, a reader would
/// take the server for dead.
pub const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

/// Maximum length of the reason in a `CancelSearchRequest`, in bytes of UTF-8.
///
/// The reason appears three times in the trailers of the cancelled search, once percent-encoded at
/// three bytes per byte, next to the cursor. Clients commonly accept 8 KiB of trailers.
pub const MAX_REASON_LEN: usize = 256;
