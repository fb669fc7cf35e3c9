//! The arguments of `serve`: TLS, on both sides.

use clap::Args;

/// TLS, on both sides.
#[derive(Args, Debug)]
pub(crate) struct TlsArguments {}
