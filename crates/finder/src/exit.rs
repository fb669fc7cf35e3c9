//! The program's exit codes.

use std::process::ExitCode;

/// How the program ended: its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The answer was found, or the server was shut down as asked.
    Success = 0,
    /// The answer is no: the keyspace ended without one, or a secret is not near enough.
    No = 1,
    /// The command line is wrong in a way that only the command itself can check.
    Usage = 2,
    /// A limit was reached: the hash budget or the timeout.
    Limit = 3,
    /// No secret can ever match.
    Impossible = 4,
    /// The server, the connection or the output failed.
    Failed = 5,
    /// Stopped by SIGHUP. This code and those below are 128 plus the signal's number, as in shells.
    HungUp = 129,
    /// Stopped by SIGINT, which ctrl-C sends.
    Interrupted = 130,
    /// Stopped by SIGQUIT, which ctrl-\ sends.
    Quit = 131,
    /// Stopped by SIGTERM.
    Terminated = 143,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}
