//! The server's half: the contexts of calls, and how calls and servers end.

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
