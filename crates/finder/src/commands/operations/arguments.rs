//! The arguments of `operations`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

use crate::{
    arguments::{ConnectionArguments, ServerArguments, values},
    commands::find::Color,
};

/// Default of `--connect-timeout` of `watch` and `wait`: long enough for a server that restarts.
const CONNECT_TIMEOUT: &str = "1m";

/// Manage the operations of a server.
///
/// An operation is a search that continues on its server without its client, and after a restart of
/// the server. `hashfinder find --detach` starts one.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder find hashfinder --server localhost:50051 --detach
  hashfinder operations list
  hashfinder operations watch operations/8ffaa5e2b9c0c5e31c9d3a6f0e4b7d12

Exit codes, except of watch and wait:
    0  done
    1  an operation does not exist, belongs to another client, or (delete) has not ended
    2  the command line is wrong
    5  the server, the connection, the folder or the output failed
  130  stopped by ctrl-C (129: SIGHUP, 131: SIGQUIT, 143: SIGTERM)")]
pub(crate) struct OperationsArguments {
    #[command(subcommand)]
    pub(super) command: OperationsCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum OperationsCommand {
    Watch(WatchArguments),
    Wait(WaitArguments),
    #[command(flatten)]
    Quick(QuickCommand),
}

/// Commands that a signal may end at any time.
#[derive(Debug, Subcommand)]
pub(super) enum QuickCommand {
    List(ListArguments),
    Show(ShowArguments),
    Candidates(CandidatesArguments),
    Cancel(NamesArguments),
    Delete(DeleteArguments),
    Export(ExportArguments),
    Backup(BackupArguments),
    Recover(RecoverArguments),
}

/// List operations, the oldest first.
///
/// Prints a table on a terminal. Otherwise prints a line for each operation, with nine columns
/// separated by tabs: the name, the state, the client, the time of creation, the hashes, the number
/// of candidates, the names (separated by commas; a comma in a name has a backslash before it), how
/// the operation ended, and the cursor to resume it.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder operations list
  hashfinder operations list --state ended --json | jq -r .name")]
pub(super) struct ListArguments {
    #[command(flatten)]
    pub(super) at: ServerArguments,

    /// Show only operations in this state
    #[arg(long, value_name = "STATE", value_enum)]
    pub(super) state: Option<State>,

    /// Show only operations of this client, such as key:ID; operators can give any client
    #[arg(
        long,
        value_name = "CLIENT",
        default_value = "",
        hide_default_value = true,
        value_parser = client
    )]
    pub(super) client: String,

    /// Print JSON, one object per line (schema: docs/operations.schema.json)
    #[arg(long)]
    pub(super) json: bool,
}

/// Show an operation.
#[derive(Args, Debug)]
pub(super) struct ShowArguments {
    /// Name of the operation
    #[arg(value_name = "NAME", value_parser = name)]
    pub(super) name: String,

    #[command(flatten)]
    pub(super) at: ServerArguments,

    /// Print JSON (schema: docs/operations.schema.json)
    #[arg(long)]
    pub(super) json: bool,
}

/// Watch an operation until it ends: print its candidates, its result and its progress.
///
/// Prints what `find` prints, from the beginning of the operation. Ctrl-C ends only this command:
/// the operation continues. If the server restarts, the command waits and continues.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder operations watch operations/8ffaa5e2b9c0c5e31c9d3a6f0e4b7d12

Exit codes: those of `hashfinder find`. 130, 129, 131 and 143 mean that a signal ended this command,
and not the operation.")]
pub(super) struct WatchArguments {
    #[command(flatten)]
    pub(super) follow: FollowArguments,
}

/// Wait until an operation ends, and print its result.
///
/// Prints the result as `find` does, and exits like it. Ctrl-C ends only this command: the
/// operation continues.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder operations wait operations/8ffaa5e2b9c0c5e31c9d3a6f0e4b7d12
  hashfinder operations wait \"$name\" --exec 'notify-send \"$HASHFINDER_STATE\"'

Exit codes: those of `hashfinder find`. 5 if the command of --exec fails.")]
pub(super) struct WaitArguments {
    #[command(flatten)]
    pub(super) follow: FollowArguments,

    /// Command to run with `sh -c` when the operation has ended
    ///
    /// Its environment has HASHFINDER_NAME (the operation), HASHFINDER_STATE (how it ended, such as
    /// found or cancelled_by_client) and, if it found a secret, HASHFINDER_SECRET_HEX and
    /// HASHFINDER_HASHED_NAME, which are otherwise empty.
    #[arg(long, value_name = "CMD")]
    pub(super) exec: Option<String>,
}

/// Which operation to follow, and how.
#[derive(Args, Debug)]
pub(super) struct FollowArguments {
    /// Name of the operation
    #[arg(value_name = "NAME", value_parser = name)]
    pub(super) name: String,

    /// Server to connect to: HOST:PORT, https://HOST:PORT or unix:PATH
    #[arg(long, value_name = "HOST:PORT", default_value = "localhost:50051")]
    pub(super) server: hashfinder_client::ServerAddress,

    /// Maximum time to wait for the server, also when it restarts
    #[arg(long, value_name = "DURATION", default_value = CONNECT_TIMEOUT, value_parser = values::duration)]
    pub(super) connect_timeout: Duration,

    /// Print JSON, one object per line (schema: docs/find.schema.json)
    #[arg(long)]
    pub(super) json: bool,

    /// Print nothing on stderr but errors
    #[arg(long, short)]
    pub(super) quiet: bool,

    /// When to highlight the match in results
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub(super) color: Color,

    #[command(flatten)]
    pub(super) connection: ConnectionArguments,
}

/// Print the candidates of an operation, and the secret that it found.
///
/// Prints the columns of `find`.
#[derive(Args, Debug)]
pub(super) struct CandidatesArguments {
    /// Name of the operation
    #[arg(value_name = "NAME", value_parser = name)]
    pub(super) name: String,

    #[command(flatten)]
    pub(super) at: ServerArguments,

    /// Print JSON, one object per line (schema: docs/find.schema.json)
    #[arg(long)]
    pub(super) json: bool,
}

/// Cancel operations.
///
/// Prints the name of each operation once its end is saved. Its candidates are kept, and so is a
/// cursor to resume it. An operation that has ended does not change.
#[derive(Args, Debug)]
pub(super) struct NamesArguments {
    /// Names of the operations
    #[arg(value_name = "NAME", required = true, value_parser = name)]
    pub(super) names: Vec<String>,

    #[command(flatten)]
    pub(super) at: ServerArguments,
}

/// Delete operations that have ended, and their candidates.
#[derive(Args, Debug)]
pub(super) struct DeleteArguments {
    /// Names of the operations
    #[arg(value_name = "NAME", required = true, value_parser = name)]
    pub(super) names: Vec<String>,

    #[command(flatten)]
    pub(super) at: ServerArguments,
}

/// Print all operations in a server's folder as JSON.
///
/// Prints an object per line, with the candidates (schema: docs/operations.schema.json). The server
/// may be running, or not.
#[derive(Args, Debug)]
pub(super) struct ExportArguments {
    #[command(flatten)]
    pub(super) folder: FolderArguments,
}

/// Copy the operations in a server's folder to a file.
///
/// The server may be running, or not. To restore the copy, stop the server and put the copy in
/// place of operations.db in its folder, without the files operations.db-wal and operations.db-shm.
/// Do not copy operations.db itself while the server runs: the copy would lack what is in its log.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder operations backup --state /var/lib/hashfinder /backup/operations.db")]
pub(super) struct BackupArguments {
    #[command(flatten)]
    pub(super) folder: FolderArguments,

    /// File to write; it must not exist
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
}

/// Recover the operations in a damaged folder of a server.
///
/// Copies every operation that can be read to a new file, which takes the place of operations.db.
/// The damaged file is kept beside it. The server must be stopped.
#[derive(Args, Debug)]
pub(super) struct RecoverArguments {
    #[command(flatten)]
    pub(super) folder: FolderArguments,
}

/// The folder of a server.
#[derive(Args, Debug)]
pub(super) struct FolderArguments {
    /// Folder of the server: the value of `serve --state`
    #[arg(long, value_name = "FOLDER", required = true)]
    pub(super) state: PathBuf,
}

/// What an operation is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum State {
    /// It waits for its search to begin
    Queued,
    /// Searching
    Running,
    /// Paused; it continues by itself
    Paused,
    /// Ended
    Ended,
}

impl State {
    /// Returns its name in the filter of a list.
    pub(super) fn name(self) -> &'static str {
        match self {
            State::Queued => "QUEUED",
            State::Running => "RUNNING",
            State::Paused => "PAUSED",
            State::Ended => "ENDED",
        }
    }
}

/// Parses the name of a client, which is sent in quotes.
fn client(text: &str) -> Result<String, String> {
    if text.contains('"') {
        return Err("expected a client such as key:ID, without quotes".to_owned());
    }
    Ok(text.to_owned())
}

/// Parses the name of an operation. The collection may be left out.
fn name(text: &str) -> Result<String, String> {
    let name = match text.contains('/') {
        true => text.to_owned(),
        false => format!("{}/{text}", hashfinder_operations::COLLECTION),
    };
    let parsed: Result<hashfinder_operations::Name, _> = name.parse();
    match parsed {
        Ok(name) => Ok(name.to_string()),
        Err(_) => Err(
            "expected a name such as operations/8ffa..., with 32 hexadecimal digits; \
                       `hashfinder operations list` prints the names"
                .to_owned(),
        ),
    }
}
