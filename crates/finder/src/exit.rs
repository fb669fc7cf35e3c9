//! The program's exit codes.

use std::process::ExitCode;

/// How the program ended: its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The command succeeded: it found an answer, for example, or the server shut down after a
    /// signal.
    Success = 0,
    /// The result is negative: every secret was tried without success, for example, or a secret is
    /// not near enough.
    No = 1,
    /// The command line or the settings are wrong, or do not fit what they apply to, such as a
    /// session, a repository or a server.
    Usage = 2,
    /// A limit was reached, such as the hash budget or the maximum time, or the search was
    /// cancelled on the server.
    Limit = 3,
    /// No secret can ever match.
    Impossible = 4,
    /// Anything else failed, such as the server, the connection or the output.
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
