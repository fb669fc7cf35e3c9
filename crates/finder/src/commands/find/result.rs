//! How a command ends: for people, programs and the shell.

use hashfinder_search::Cursor;

use super::{source::Ending, stop::StopCause};
use crate::exit::Exit;

/// How the command ended, for people, programs and the shell.
pub(super) struct Conclusion {
    /// In a word, for programs.
    pub(super) how: &'static str,
    /// In a sentence, where there is more to say.
    pub(super) why: Option<String>,
    pub(super) exit: Exit,
    /// From where it goes on.
    pub(super) cursor: Option<Cursor>,
    /// How, in words, and what share of such searches would have ended by now, if that is known.
    pub(super) go_on: Option<String>,
    pub(super) share: Option<String>,
    /// How many secrets were tried, if that is known.
    pub(super) hashes: Option<u64>,
}

impl Conclusion {
    pub(super) fn new(how: &'static str, why: impl Into<Option<String>>, exit: Exit) -> Conclusion {
        Conclusion {
            how,
            why: why.into(),
            exit,
            cursor: None,
            go_on: None,
            share: None,
            hashes: None,
        }
    }

    pub(super) fn at(self, cursor: Cursor) -> Conclusion {
        Conclusion {
            cursor: Some(cursor),
            ..self
        }
    }

    /// Of a command that was stopped, with `what` about the search.
    pub(super) fn stopped(cause: StopCause, what: &str) -> Conclusion {
        match cause {
            StopCause::Signal(signal) => {
                let why = format!("stopped by {signal}{what}");
                Conclusion::new("stopped", why, signal.exit())
            }
            StopCause::MaximumTime(limit) => {
                Conclusion::new("limit", format!("{limit}{what}"), Exit::Limit)
            }
        }
    }
}

/// What an ending comes to, given why the search was stopped, if it was, and how many answers it had.
pub(super) fn conclude(ending: Ending, cause: Option<StopCause>, answers: u64) -> Conclusion {
    match (ending, cause) {
        (Ending::Found(_), _) => Conclusion::new("found", None, Exit::Success),
        (Ending::Exhausted, _) => {
            let why = match answers {
                0 => "every secret was tried, and none was near enough".to_owned(),
                _ => format!("every secret was tried; near enough were only {answers}"),
            };
            Conclusion::new("exhausted", why, Exit::No)
        }
        (Ending::Limit(why, cursor), _) => Conclusion::new("limit", why, Exit::Limit).at(cursor),
        (Ending::Failed(why, cursor), _) => Conclusion::new("failed", why, Exit::Failed).at(cursor),
        (Ending::Refused(why, cursor), _) => {
            Conclusion::new("refused", why, Exit::Usage).at(cursor)
        }
        (Ending::Stopped(cursor), Some(cause)) => Conclusion::stopped(cause, "").at(cursor),
        (Ending::Stopped(cursor), None) => {
            let why = "the search was stopped, though nobody asked for it".to_owned();
            Conclusion::new("failed", why, Exit::Failed).at(cursor)
        }
    }
}
