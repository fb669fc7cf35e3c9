//! The arguments of `serve`: What connections may do.

use clap::Args;

/// What connections may do.
#[derive(Args, Debug)]
pub(crate) struct TransportArguments {}
