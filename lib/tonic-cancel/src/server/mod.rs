//! The server's half: what a handler can know of its call, and how a call and a server end.

mod context;
mod deadlines;
mod drain;
mod layer;
mod policy;
mod requests;
mod state;
mod sync;
mod work;

#[cfg(all(test, loom))]
mod loom;

pub use context::CallContext;
pub use drain::{Drain, DrainOptions, Drained, Shutdown};
pub use layer::{CallBody, CallContextLayer, CallContextService, ResponseFuture};
pub use policy::DeadlinePolicy;
pub use requests::Requests;
pub use state::{CallEnd, CancelReason, StopFlag};
pub use work::{Job, WorkGuard, WorkLimit};
