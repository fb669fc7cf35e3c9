//! The arguments for searches whose answer the command uses itself.

use std::{num::NonZeroUsize, time::Duration};

use clap::Args;

use super::values::{duration, threads};

/// Flags for the searches of `git-commit` and `hashcash`.
#[derive(Args, Debug)]
pub(crate) struct SearchArguments {
    /// Stop after this time, such as 90s, 5m or 1h30m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) maximum_time: Option<Duration>,

    /// Number of threads that search [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<NonZeroUsize>,

    /// Print nothing on stderr but errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
}
