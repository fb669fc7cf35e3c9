//! The arguments of `serve`: its log.

use clap::ValueEnum;

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// An object on each line, for programs
    Json,
}
