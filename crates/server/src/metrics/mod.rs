//! The metrics of a server, for Prometheus.
//!
//! The value of every label is a word of this program. No text from a client becomes one, so
//! clients cannot create time series at will, and cannot read other clients' names in the metrics.

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
