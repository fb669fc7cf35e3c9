//! The server's half: what a handler can know of its call, and how a call and a server end.

mod context;
mod deadlines;
mod drain;
mod layer;
mod timeout;

pub use context::{CallContext, CallEnd, CancelReason, StopFlag};
pub use drain::{Drain, Drained};
pub use layer::{CallBody, CallContextLayer, CallContextService, ResponseFuture};
