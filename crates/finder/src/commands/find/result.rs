//! The result of a command: for people, programs and the shell.

use hashfinder_search::Cursor;

use super::{source::SearchEnd, stop::Interruption};
use crate::exit::Exit;

/// The result of a command.
pub(super) struct CommandResult {
    /// How the command ended, as one word for programs.
    pub(super) how: &'static str,
    /// Why the command ended, for people; `None` if `how` is enough.
    pub(super) why: Option<String>,
    pub(super) exit: Exit,
    /// Where the search can be resumed.
    pub(super) cursor: Option<Cursor>,
    /// How to resume the search, in words.
    pub(super) how_to_resume: Option<String>,
    /// Which share of such searches finish within this search's number of hashes, as a sentence, if
    /// that is known.
    pub(super) share: Option<String>,
    /// Number of secrets that this run tried, if that is known.
    pub(super) hashes: Option<u64>,
}

impl CommandResult {
    pub(super) fn new(
        how: &'static str,
        why: impl Into<Option<String>>,
        exit: Exit,
    ) -> CommandResult {
        CommandResult {
            how,
            why: why.into(),
            exit,
            cursor: None,
            how_to_resume: None,
            share: None,
            hashes: None,
        }
    }

    pub(super) fn at(self, cursor: Cursor) -> CommandResult {
        CommandResult {
            cursor: Some(cursor),
            ..self
        }
    }

    /// Returns the result of a command that was stopped. `what` is added to the reason.
    pub(super) fn stopped(cause: Interruption, what: &str) -> CommandResult {
        match cause {
            Interruption::Signal(signal) => {
                let why = format!("stopped by {signal}{what}");
                CommandResult::new("stopped", why, signal.exit())
            }
            Interruption::MaximumTime(limit) => {
                CommandResult::new("limit", format!("{limit}{what}"), Exit::Limit)
            }
        }
    }

    /// Returns the result of a search. `cause` is why the command stopped it, if it did, and
    /// `answers` is the number of answers that this run printed.
    pub(super) fn of(end: SearchEnd, cause: Option<Interruption>, answers: u64) -> CommandResult {
        match (end, cause) {
            (SearchEnd::Found(_), _) => CommandResult::new("found", None, Exit::Success),
            (SearchEnd::Exhausted, _) => {
                let why = match answers {
                    0 => "every secret was tried, and none matches".to_owned(),
                    _ => format!("every secret was tried, and only {answers} found"),
                };
                CommandResult::new("exhausted", why, Exit::No)
            }
            (SearchEnd::Limit(why, cursor), _) => {
                CommandResult::new("limit", why, Exit::Limit).at(cursor)
            }
            (SearchEnd::Failed(why, cursor), _) => {
                CommandResult::new("failed", why, Exit::Failed).at(cursor)
            }
            (SearchEnd::Refused(why, cursor), _) => {
                CommandResult::new("refused", why, Exit::Usage).at(cursor)
            }
            (SearchEnd::Stopped(cursor), Some(cause)) => {
                CommandResult::stopped(cause, "").at(cursor)
            }
            (SearchEnd::Stopped(cursor), None) => {
                let why = "the search was stopped, but not by this command".to_owned();
                CommandResult::new("failed", why, Exit::Failed).at(cursor)
            }
        }
    }
}
