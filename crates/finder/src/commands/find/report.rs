//! The messages on stderr when a command has ended, and how to resume its search.

use anyhow::anyhow;
use hashfinder_search::Cursor;

use super::{result::CommandResult, status::Status};
use crate::exit::Exit;

/// Prints why the search has no answer. If it can be resumed, it also prints which share of such
/// searches would have ended by now, the nearest candidate (as its row, or the text that stands for
/// none) and how to resume.
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

/// Returns how to resume a search that wants `left` more answers, given whether a session keeps its
/// place.
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

/// Returns the command that resumes a search that wants `left` more answers.
pub(super) fn resume_command(cursor: &Cursor, left: u64, server: Option<&str>) -> String {
    let server = server.map_or(String::new(), |flags| format!("{flags} "));
    let count = match left {
        0 | 1 => String::new(),
        more => format!("--count {more} "),
    };
    format!("resume with: hashfinder find {count}{server}--resume {cursor}")
}

/// Adds to the error of a session how to resume without it.
pub(super) fn session_error(error: &anyhow::Error, how_to_resume: &str) -> anyhow::Error {
    anyhow!("{error:#}; {how_to_resume}")
}
