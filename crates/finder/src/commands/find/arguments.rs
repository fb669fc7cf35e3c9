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

/// Time that `find` waits for a server that does not answer: long enough for a server that is
/// starting, short enough for a user who mistyped its name.
const CONNECT_TIMEOUT: &str = "20s";

/// Find a secret, in this process or by asking a server.
///
/// A result is a line on stdout with six columns, separated by tabs: the hashed name, the secret in
/// base64 and in hexadecimal (`(empty)` if it is empty), the distance, where in the hashed name the
/// match begins (from 0), and the name. Everything else goes to stderr: on a terminal, three lines
/// of progress; elsewhere, a line now and then. Ctrl-C, SIGHUP, SIGQUIT and SIGTERM stop the search
/// and print the nearest candidate and a cursor to resume from; a second signal, if it comes later
/// than 0.3 s after the first, ends the process at once.
#[derive(Args, Debug)]
// NAME is not required with --resume.
#[command(mut_arg("names", |names| names.required(false).required_unless_present("resume")))]
#[command(after_help = "\
Examples:
  hashfinder find doctor
  hashfinder find doctor --ideal-distance 1 --show-inferior 3
  hashfinder find doctor --maximum-hashes 1000000
  hashfinder find docto --count 3
  hashfinder find tardis dalek
  hashfinder find c0ffee --algorithm sha256 --encoding hex --anchor prefix
  hashfinder find doc --secret-prefix 'I say: ' --alphabet alphanumeric
  hashfinder find hashfinder --show-inferior 4 --session night
  hashfinder find doc --quiet --json | jq -r 'select(.type == \"result\").hex'
  hashfinder find doctor --server localhost:50051 --maximum-time 30s
  hashfinder find doctor --server https://find.example:50051 --credential-file my.key

A server that speaks the reference contract alone (hash_name.HashFinder) can be asked too, but
only for what that has words for, and it does not tell how it comes on.

Exit codes:
    0  found, or whoever reads the results has seen enough
    1  the keyspace ended without an answer
    2  the command line is wrong, the session holds another search, or the server takes no such
       request
    3  a limit was reached (hash budget, quota, a full server, the time), or somebody cancelled
       the search at the server; go on with the cursor
    4  no secret can ever match the name
    5  the server, the connection, the output or the session failed (another process uses it, for
       example), or no thread could be started
  130  stopped by ctrl-C (129: SIGHUP, 131: SIGQUIT, 143: SIGTERM); go on with the cursor

Stdout must be open: a closed one (>&-) cannot be distinguished from /dev/null.")]
pub(crate) struct FindArguments {
    /// Also show every secret on the way whose distance is less than this
    #[arg(long, value_name = "K", value_parser = distance, allow_negative_numbers = true)]
    pub(crate) show_inferior: Option<Distance>,

    /// Find this many secrets within the ideal distance, one after another
    #[arg(long, value_name = "N", default_value = "1")]
    #[arg(value_parser = positive::<NonZeroU64>)]
    pub(crate) count: NonZeroU64,

    /// Stop after this many hashes
    #[arg(long, value_name = "N")]
    #[arg(value_parser = positive::<NonZeroU64>)]
    pub(crate) maximum_hashes: Option<NonZeroU64>,

    /// Stop this long after the start of the command, for instance 90s, 5m or 1h30m
    #[arg(long, alias = "timeout", value_name = "DURATION", value_parser = duration)]
    pub(crate) maximum_time: Option<Duration>,

    /// How many threads search [default: one for each core]
    #[arg(long, value_name = "N", conflicts_with = "server", value_parser = threads)]
    pub(crate) threads: Option<NonZeroUsize>,

    /// The kernel to search with in this process [default: the fastest that this machine runs]
    #[arg(long, value_name = "NAME", value_parser = kernel)]
    pub(crate) kernel: Option<Kernel>,

    /// Ask the server at HOST:PORT, https://HOST:PORT or unix:PATH instead of searching in this process
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) server: Option<ServerAddress>,

    /// How long to wait for the server, at the start and if the connection is lost
    #[arg(long, value_name = "DURATION", default_value = CONNECT_TIMEOUT, value_parser = duration)]
    pub(crate) connect_timeout: Duration,

    /// Go on from where a search was stopped
    #[arg(
        long,
        value_name = "CURSOR",
        conflicts_with_all = [
            "names", "ideal_distance", "show_inferior", "algorithm", "encoding", "anchor",
            "case_sensitive", "secret_prefix", "secret_prefix_file", "secret_suffix", "alphabet",
        ]
    )]
    pub(crate) resume: Option<Cursor>,

    /// Keep the search under this name, and go on with it when the same command is given again
    ///
    /// How far it came is written every half second, so that a kill costs a second at most, and
    /// what that found is printed again. It is removed when there is nothing left to search.
    #[arg(long, value_name = "NAME", conflicts_with = "resume")]
    pub(crate) session: Option<SessionName>,

    /// Print JSON, one object on each line
    ///
    /// docs/find.schema.json describes them; the last one tells how the search ended.
    #[arg(long)]
    pub(crate) json: bool,

    /// Say nothing on stderr but what is wrong
    #[arg(long, short)]
    pub(crate) quiet: bool,

    /// Whether results show where the name is in colour
    ///
    /// auto is: on a terminal, unless NO_COLOR is set.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub(crate) color: Color,

    // Last, because these flags have headings of their own.
    #[command(flatten)]
    pub(crate) query: QueryArguments,

    #[command(flatten)]
    pub(crate) connection: ConnectionArguments,
}

impl FindArguments {
    /// Returns the query, with its start.
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

/// Rejects distances at which every secret matches: one mistyped digit would print millions of
/// results.
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
