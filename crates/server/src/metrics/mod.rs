//! The metrics of a server, for Prometheus.
//!
//! The values of labels come from this program, never from a client. So clients cannot create time
//! series at will, and the metrics reveal nothing that clients have sent.

mod calls;
mod collector;
mod counts;
mod exporter;
mod format;

pub(crate) use self::{
    calls::{Calls, CallsLayer, CallsService},
    collector::{Server, registry},
    counts::Counts,
    exporter::Exporter,
};
