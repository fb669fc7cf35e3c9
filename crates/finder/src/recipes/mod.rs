//! Recipes: searches whose secret is something that people use, and that say what to do with it.

mod git_commit;
mod hashcash;

use std::{num::NonZeroUsize, time::Duration};

use clap::Args;

pub(crate) use self::{
    git_commit::{GitCommitArguments, run as git_commit},
    hashcash::{HashcashArguments, run as hashcash},
};
use crate::cli;

/// What every recipe lets one say about its search.
#[derive(Args, Debug)]
pub(crate) struct SearchArguments {
    /// Stop after this long, for instance 90s, 5m or 1h30m
    #[arg(long, value_name = "DURATION", value_parser = cli::duration)]
    pub(crate) maximum_time: Option<Duration>,

    /// How many threads search [default: one for each core]
    #[arg(long, value_name = "N", value_parser = cli::threads)]
    pub(crate) threads: Option<NonZeroUsize>,

    /// Say nothing on stderr but what is wrong
    #[arg(long, short)]
    pub(crate) quiet: bool,
}
