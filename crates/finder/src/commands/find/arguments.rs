//! The arguments of `find`.

use std::{
    num::{NonZeroU64, NonZeroUsize},
    time::Duration,
};

use clap::{Args, ValueEnum};
use hashfinder_client::ServerAddress;
use hashfinder_search::{Cursor, Distance, Kernel, Query};

use super::session::SessionName;
use crate::arguments::{
    ConnectionArguments, QueryArguments, QueryError,
    values::{distance, duration, kernel, positive, threads},
};

/// Default of `--connect-timeout`: long enough for a server that is starting, short enough for a
/// user who mistyped the server's name.
const CONNECT_TIMEOUT: &str = "20s";

/// Search for an input (a "secret") whose hash contains NAME.
///
/// A secret is a byte string. Its hash is its digest as text: by default its SHA-1 in base64. Case
/// is ignored unless --case-sensitive is given. Secrets are tried in a fixed order, the shortest
/// first.
///
/// Each result is a line on stdout with six tab-separated columns: (1) the hash, (2) the secret in
/// base64, (3) the secret in hexadecimal, (4) the distance, (5) the position of the match in the
/// hash, from 0, and (6) the name. An empty secret is shown as `(empty)`. Progress and notes are
/// printed on stderr.
///
/// Ctrl-C, SIGHUP, SIGQUIT and SIGTERM stop the search. The nearest match so far is then printed,
/// with the command that resumes the search. A second signal, at least 0.3 s later, ends the
/// process at once.
#[derive(Args, Debug)]
// NAME is not required with --resume.
#[command(mut_arg("names", |names| names.required(false).required_unless_present("resume")))]
#[command(after_help = "\
Examples:
  hashfinder find doctor
  hashfinder find hashfinder --show-inferior 4 --session night
  hashfinder find c0ffee --algorithm sha256 --encoding hex --anchor prefix
  hashfinder find doctor --server localhost:50051 --maximum-time 30s
  hashfinder find hashfinder --server localhost:50051 --detach

Some servers offer only hash_name.HashFinder, the service of gRPC's cancellation example. They
report no progress, and support only a single NAME and the options --ideal-distance, --show-inferior
and --maximum-time.

If stdout is closed (>&-), results are lost without an error.

Exit codes:
    0  found, or started (--detach), or the reader of the output closed the pipe
    1  every secret was tried, and too few matched
    2  invalid command line, session of a different search, or request rejected by the server
    3  a limit was reached, or the search was cancelled on the server; it can be resumed
    4  no secret can ever match the name
    5  the server, connection, output or session failed, or no thread could be started
  130  stopped by ctrl-C (129: SIGHUP, 131: SIGQUIT, 143: SIGTERM); it can be resumed")]
pub(crate) struct FindArguments {
    /// Also print inexact matches along the way: all secrets at a distance less than K
    #[arg(long, value_name = "K", value_parser = distance, allow_negative_numbers = true)]
    pub(crate) show_inferior: Option<Distance>,

    /// Number of secrets to find, one after another
    ///
    /// --maximum-hashes and --maximum-time apply to all of them together.
    #[arg(long, value_name = "N", default_value = "1")]
    #[arg(value_parser = positive::<NonZeroU64>)]
    pub(crate) count: NonZeroU64,

    /// Hash budget: stop after N hashes
    #[arg(long, value_name = "N")]
    #[arg(value_parser = positive::<NonZeroU64>)]
    pub(crate) maximum_hashes: Option<NonZeroU64>,

    /// Stop after this time, such as 90s, 5m or 1h30m
    ///
    /// The time is measured from the start of the command, and includes connecting to a server.
    #[arg(long, alias = "timeout", value_name = "DURATION", value_parser = duration)]
    pub(crate) maximum_time: Option<Duration>,

    /// Number of threads that search [default: one for each core]
    #[arg(long, value_name = "N", conflicts_with = "server", value_parser = threads)]
    pub(crate) threads: Option<NonZeroUsize>,

    /// Hashing kernel, such as avx2 [default: the fastest on this machine]
    ///
    /// A kernel is code for one kind of CPU; `hashfinder bench` lists those of this machine. This
    /// option has no effect with --server.
    #[arg(long, value_name = "NAME", value_parser = kernel)]
    pub(crate) kernel: Option<Kernel>,

    /// Search on this server: HOST:PORT, https://HOST:PORT or unix:PATH
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) server: Option<ServerAddress>,

    /// Maximum time to wait for the server
    ///
    /// It applies to the first connection, and to each reconnection.
    #[arg(long, value_name = "DURATION", default_value = CONNECT_TIMEOUT, value_parser = duration)]
    pub(crate) connect_timeout: Duration,

    /// Resume a stopped search from its cursor
    #[arg(
        long,
        value_name = "CURSOR",
        conflicts_with_all = [
            "names", "ideal_distance", "show_inferior", "algorithm", "encoding", "anchor",
            "case_sensitive", "secret_prefix", "secret_prefix_file", "secret_suffix", "alphabet",
        ]
    )]
    pub(crate) resume: Option<Cursor>,

    /// Save the search as SESSION; the same command resumes it
    ///
    /// The search is saved every half second. If the process is killed, at most the last second of
    /// work is repeated, and its results may be printed twice. The session is removed when the
    /// search has found --count secrets, or has tried every secret.
    #[arg(long, value_name = "SESSION", conflicts_with = "resume")]
    pub(crate) session: Option<SessionName>,

    /// Start an operation on the server, print its name, and exit
    ///
    /// An operation is a search that continues without this command, and after a restart of the
    /// server. `hashfinder operations` watches it, waits for it and cancels it. --maximum-hashes
    /// applies to it. The server must save operations (`serve --state`).
    #[arg(long)]
    #[arg(conflicts_with_all = ["session", "count", "maximum_time"])]
    pub(crate) detach: bool,

    /// Print JSON, one object per line
    ///
    /// The last object describes how the search ended. The schema is docs/find.schema.json in the
    /// source.
    #[arg(long)]
    pub(crate) json: bool,

    /// Print nothing on stderr but errors
    ///
    /// The command that resumes a stopped search is not printed. Use --json or --session to keep
    /// its cursor.
    #[arg(long, short)]
    pub(crate) quiet: bool,

    /// When to highlight the match in results
    ///
    /// auto highlights it on a terminal, unless NO_COLOR is set.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub(crate) color: Color,

    // Last, because these flags have their own headings.
    #[command(flatten)]
    pub(crate) query: QueryArguments,

    #[command(flatten)]
    pub(crate) connection: ConnectionArguments,
}

impl FindArguments {
    /// Returns the query, with its start and its hash budget.
    pub(crate) fn query(&self) -> Result<Query, QueryError> {
        let query = match &self.resume {
            Some(cursor) => cursor.query(),
            None => {
                let interesting = self.show_inferior.unwrap_or(Distance::ZERO);
                let query = self.query.query()?.interesting(interesting);
                check_distances(&query)?;
                query
            }
        };
        Ok(match self.maximum_hashes {
            Some(hashes) => query.hash_budget(hashes),
            None => query,
        })
    }
}

/// Rejects distances at which every secret matches. A mistyped `--ideal-distance` would otherwise
/// accept the first secret, and a mistyped `--show-inferior` would print millions of secrets.
fn check_distances(query: &Query) -> Result<(), QueryError> {
    let Some(shortest) = query
        .names()
        .iter()
        .min_by_key(|name| name.character_count())
    else {
        return Ok(());
    };
    let length = shortest.character_count();
    let (ideal, interesting) = (query.ideal_distance(), query.interesting_distance());
    let (distance, most, flag) = if usize::from(ideal.get()) >= length {
        (ideal, length - 1, "--ideal-distance")
    } else if usize::from(interesting.get()) > length {
        (interesting, length, "--show-inferior")
    } else {
        return Ok(());
    };
    Err(QueryError::Wrong(format!(
        "{flag} {distance}: every secret matches {:?} ({length} characters) at this distance; give at most {most}",
        shortest.as_str()
    )))
}

/// When results are coloured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    #[default]
    Auto,
    Always,
    Never,
}
