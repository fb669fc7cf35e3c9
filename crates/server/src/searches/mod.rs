//! The searches of calls, on the engine that all of them share.

pub(crate) mod answer;
mod call;
pub(crate) mod cancelled;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
pub(crate) mod owner_client;
pub(crate) mod query;
pub(crate) mod record;
pub(crate) mod registry;
pub(crate) mod run;
pub(crate) mod shared;
pub(crate) mod stop_cause;
pub(crate) mod stopper;
