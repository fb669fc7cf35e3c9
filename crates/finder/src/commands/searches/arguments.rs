//! The arguments of `searches`.

use clap::{Args, Subcommand, ValueEnum};
use hashfinder_proto::{
    limits::{DEFAULT_INTERVAL, LONGEST_INTERVAL, MAX_REASON_LEN, SHORTEST_INTERVAL},
    v1::SearchState,
};

use crate::arguments::{ServerArguments, values};

/// List, watch and cancel the searches of a server.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder searches list --server localhost:50051
  hashfinder searches watch
  hashfinder searches cancel 8ffaa5e2b9c0c5e31c9d3a6f0e4b7d12

Exit codes:
    0  done
    1  a search to cancel does not exist, or belongs to another client
    2  the command line is wrong
    5  the server, the connection or the output failed
  130  list and cancel: stopped by ctrl-C (129: SIGHUP, 131: SIGQUIT, 143: SIGTERM)")]
pub(crate) struct SearchesArguments {
    #[command(subcommand)]
    pub(super) command: SearchesCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum SearchesCommand {
    List(ListArguments),
    Watch(WatchArguments),
    Cancel(CancelArguments),
}

/// List searches, the oldest first.
///
/// Prints a table on a terminal. Otherwise prints a line for each search, with nine columns
/// separated by tabs: the ID, the state, the client, the start time, the hashes, the ideal
/// distance, the names (separated by commas; a comma in a name has a backslash before it), how the
/// search ended, and the cursor to resume it. The server keeps ended searches for a while.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder searches list
  hashfinder searches list --state running,queued --server localhost:50051
  hashfinder searches list --state ended --json | jq -r .cursor

Exit codes:
    0  listed
    2  the command line is wrong
    5  the server, the connection or the output failed
  130  stopped by ctrl-C (129: SIGHUP, 131: SIGQUIT, 143: SIGTERM)")]
pub(super) struct ListArguments {
    #[command(flatten)]
    pub(super) at: ServerArguments,

    #[command(flatten)]
    pub(super) which: FilterArguments,

    /// Print JSON, one object per line (schema: docs/searches.schema.json)
    #[arg(long)]
    pub(super) json: bool,
}

/// Watch searches as they change.
///
/// Redraws a table on a terminal, with as many searches as fit: those that have not ended, then
/// those that began last. Otherwise, and with --json, prints a line like those of `list` for each
/// change. Ends at ctrl-C, or when the server shuts down.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder searches watch
  hashfinder searches watch --json | jq -r 'select(.end_reason == \"found\").search_id'

Exit codes:
  0  stopped by ctrl-C, SIGHUP, SIGQUIT or SIGTERM, the reader closed the pipe, or the server
     shut down
  2  the command line is wrong
  5  the server, the connection or the output failed")]
pub(super) struct WatchArguments {
    #[command(flatten)]
    pub(super) at: ServerArguments,

    #[command(flatten)]
    pub(super) which: FilterArguments,

    /// Interval of updates, 100ms to 1m
    #[arg(long, value_name = "DURATION", value_parser = watch_interval, default_value_t = DEFAULT_INTERVAL.into())]
    pub(super) interval: humantime::Duration,

    /// Print JSON, one object per line (schema: docs/searches.schema.json)
    #[arg(long)]
    pub(super) json: bool,
}

/// Cancel searches by their IDs.
///
/// Prints a line for each search: its ID and the result. The client of the search receives the
/// reason and a cursor to resume it. Cancelling a search that has already ended changes nothing.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder searches cancel 8ffaa5e2b9c0c5e31c9d3a6f0e4b7d12 --reason 'the machine is needed'
  hashfinder searches list --state running | cut -f 1 | xargs -r hashfinder searches cancel

Exit codes:
    0  each search was cancelled, or had ended already
    1  a search does not exist, or belongs to another client; the others were cancelled
    2  the command line is wrong
    5  the server, the connection or the output failed
  130  stopped by ctrl-C (129: SIGHUP, 131: SIGQUIT, 143: SIGTERM); searches that
       were not printed may still run")]
pub(super) struct CancelArguments {
    /// IDs of the searches, as `searches list` prints them
    #[arg(value_name = "ID", required = true, value_parser = search_id)]
    pub(super) ids: Vec<String>,

    #[command(flatten)]
    pub(super) at: ServerArguments,

    /// Reason that the clients receive: at most 256 bytes of UTF-8
    #[arg(
        long,
        value_name = "TEXT",
        value_parser = reason,
        default_value = "",
        hide_default_value = true
    )]
    pub(super) reason: String,
}

fn watch_interval(text: &str) -> Result<humantime::Duration, String> {
    let interval = values::duration(text).ok();
    let interval = interval.filter(|it| (SHORTEST_INTERVAL..=LONGEST_INTERVAL).contains(it));
    let interval = interval.map(humantime::Duration::from);
    interval.ok_or_else(|| "expected a time from 100ms to 1m".to_owned())
}

fn search_id(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("expected an ID; `hashfinder searches list` prints them".to_owned());
    }
    Ok(text.to_owned())
}

fn reason(text: &str) -> Result<String, String> {
    let length = text.len();
    if length > MAX_REASON_LEN {
        return Err(format!(
            "it has {length} bytes; use at most {MAX_REASON_LEN}"
        ));
    }
    if text.chars().any(char::is_control) {
        return Err("it contains a control character, such as a line break; remove it".to_owned());
    }
    Ok(text.to_owned())
}

/// Which searches are meant.
#[derive(Args, Debug)]
pub(super) struct FilterArguments {
    /// Only searches in this state; repeatable, or separated by commas
    #[arg(
        long = "state",
        value_name = "STATE",
        value_enum,
        value_delimiter = ','
    )]
    pub(super) states: Vec<State>,

    /// Only searches of this client, such as ip:10.0.0.7 (for operators)
    ///
    /// CLIENT is written as `list` prints it. Clients that are not operators can list only their
    /// own searches.
    #[arg(
        long,
        value_name = "CLIENT",
        default_value = "",
        hide_default_value = true
    )]
    pub(super) client: String,
}

impl FilterArguments {
    pub(super) fn states(&self) -> Vec<i32> {
        let states = self.states.iter();
        states.map(|state| state.to_proto() as i32).collect()
    }
}

/// What a search is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum State {
    /// Waiting for its turn
    Queued,
    /// Trying secrets
    Running,
    /// Waiting for its reader
    Parked,
    /// Ended
    Ended,
}

impl State {
    pub(super) fn to_proto(self) -> SearchState {
        match self {
            State::Queued => SearchState::Queued,
            State::Running => SearchState::Running,
            State::Parked => SearchState::Parked,
            State::Ended => SearchState::Ended,
        }
    }
}
