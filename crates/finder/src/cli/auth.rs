//! The arguments of `serve`: Who may do what.

use clap::Args;

/// Who may do what.
#[derive(Args, Debug)]
pub(crate) struct AuthArguments {}
