//! The messages on stderr when a command has ended: why it ended, and how to resume its search.

use anyhow::anyhow;
use hashfinder_search::Cursor;

use super::{result::CommandResult, status::Status};
use crate::exit::Exit;

/// Prints why the search ended without its answers. If it can be resumed, also prints which share
/// of such searches finish within its number of hashes, the nearest candidate, and how to resume.
///
/// `nearest` is the nearest candidate in columns, or the text to print if there is none. With
/// `None`, nothing is printed about it.
pub(super) fn report(result: &CommandResult, nearest: Option<Result<&str, &str>>, status: &Status) {
    let Some(why) = &result.why else { return };
    if matches!(result.exit, Exit::Failed | Exit::Impossible | Exit::Usage) {
        status.fail(why);
    } else {
        status.say(why);
    }
    let Some(how_to_resume) = &result.how_to_resume else {
        return;
    };
    if let Some(share) = &result.share {
        status.say(share);
    }
    match nearest {
        Some(Ok(row)) => {
            status.say("nearest candidate so far:");
            status.line(row);
        }
        Some(Err(none)) => status.say(none),
        None => {}
    }
    status.say(how_to_resume);
}

/// Returns how to resume a search that needs `left` more answers. `is_kept` says whether a session
/// keeps its cursor.
pub(super) fn how_to_resume(
    cursor: &Cursor,
    is_kept: bool,
    left: u64,
    server: Option<&str>,
) -> String {
    if is_kept {
        "resume with: the same command (the session keeps the cursor)".to_owned()
    } else {
        resume_command(cursor, left, server)
    }
}

/// Returns the command that resumes a search for `left` more answers. `server` has the flags that
/// select the server, if any.
pub(super) fn resume_command(cursor: &Cursor, left: u64, server: Option<&str>) -> String {
    let server = server.map_or(String::new(), |flags| format!("{flags} "));
    let count = match left {
        0 | 1 => String::new(),
        more => format!("--count {more} "),
    };
    format!("resume with: hashfinder find {count}{server}--resume {cursor}")
}

/// Adds to an error about a session how to resume the search without the session.
pub(super) fn session_error(error: &anyhow::Error, how_to_resume: &str) -> anyhow::Error {
    anyhow!("{error:#}; {how_to_resume}")
}
