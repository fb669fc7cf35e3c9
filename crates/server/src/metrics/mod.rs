//! What a server counts, as Prometheus reads it.
//!
//! Every label's value is a word of this program's: nothing that a client sends becomes one, so that
//! nobody can make time series at will, or read another's names here.

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
