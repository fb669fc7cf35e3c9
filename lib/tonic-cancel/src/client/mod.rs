//! The client's half: handles of running calls.

mod call;
mod handle;
mod options;
mod ready;
mod shared;
mod streaming;

pub use call::{Call, StillRunning};
pub use handle::Canceller;
pub use options::CallOptions;
pub use ready::{Backoff, ReadyChannel};
pub use shared::Done;
pub use streaming::StreamingCall;
