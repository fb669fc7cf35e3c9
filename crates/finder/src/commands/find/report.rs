//! What people read on stderr when a command has ended, and how they go on.

use anyhow::anyhow;
use hashfinder_search::Cursor;

use super::{result::Conclusion, status::Status};
use crate::exit::Exit;

/// Says why there is no answer and, if one can go on, what share of searches would have one, what is the
/// nearest, as its row or in words, and how to go on.
pub(super) fn tell(ended: &Conclusion, nearest: Option<Result<&str, &str>>, status: &Status) {
    let Some(why) = &ended.why else { return };
    if matches!(ended.exit, Exit::Failed | Exit::Impossible | Exit::Usage) {
        status.fail(why);
    } else {
        status.say(why);
    }
    let Some(go_on) = &ended.go_on else { return };
    if let Some(share) = &ended.share {
        status.say(share);
    }
    match nearest {
        Some(Ok(row)) => {
            status.say("the nearest so far:");
            status.line(row);
        }
        Some(Err(none)) => status.say(none),
        None => {}
    }
    status.say(go_on);
}

/// Returns how to resume a search that wants `left` more answers, given whether a session keeps its place.
pub(super) fn go_on(cursor: &Cursor, is_kept: bool, left: u64, server: Option<&str>) -> String {
    if is_kept {
        "go on with: the same command; the session keeps the place".to_owned()
    } else {
        go_on_at(cursor, left, server)
    }
}

/// The command that goes on for so many more answers.
pub(super) fn go_on_at(cursor: &Cursor, left: u64, server: Option<&str>) -> String {
    let server = server.map_or(String::new(), |flags| format!("{flags} "));
    let count = match left {
        0 | 1 => String::new(),
        more => format!("--count {more} "),
    };
    format!("go on with: hashfinder find {count}{server}--resume {cursor}")
}

/// What went wrong with keeping a session, and how to go on without it.
pub(super) fn not_kept(error: &anyhow::Error, go_on: &str) -> anyhow::Error {
    anyhow!("{error:#}; {go_on}")
}
