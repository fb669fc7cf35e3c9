//! What a search reports, wherever it runs.

use std::time::Duration;

use anyhow::Result;
use hashfinder_search::{Cursor, Index};

use super::finding::Finding;

/// What a search tells, wherever it runs.
pub(super) enum Told {
    /// A secret on the way to the answer.
    Candidate(Finding),
    /// An answer, but not the last that is wanted.
    Answer(Finding),
    /// Nothing follows.
    Ended(Ending),
}

impl Told {
    /// The secret that it tells.
    pub(super) fn finding(&self) -> Option<&Finding> {
        match self {
            Told::Candidate(finding)
            | Told::Answer(finding)
            | Told::Ended(Ending::Found(finding)) => Some(finding),
            Told::Ended(_) => None,
        }
    }
}

/// How a search ended.
pub(super) enum Ending {
    Found(Finding),
    Exhausted,
    /// A limit was reached; says which.
    Limit(String, Cursor),
    /// It was stopped as we asked.
    Stopped(Cursor),
    /// The server or the connection failed; says how.
    Failed(String, Cursor),
    /// The server takes no such request, and would not take it again; says why.
    Refused(String, Cursor),
}

pub(super) type Stopper = Box<dyn Fn() + Send>;

/// A search that is going on somewhere.
pub(super) trait Source {
    /// Waits for what it tells next. Dropping the future loses nothing.
    async fn next(&mut self) -> Result<Told>;

    /// What tells it to stop, from anywhere; it will say when it has.
    fn stopper(&self) -> Stopper;

    /// Every index below this one was tried, and what was found there was told; `None` if nobody knows.
    fn frontier(&mut self) -> Option<Index>;

    /// For how long it has searched. A search in this process does not while the process is stopped.
    fn elapsed(&self) -> Duration;

    /// What it took, once it has ended, for people who like to know.
    fn summary(&self) -> Option<String>;

    /// The flags by which its cursor goes on at its server; `None` for this process.
    fn resumes_at(&self) -> Option<&str>;

    /// Lets go of it, once it has ended, and waits until whoever worked for it knows.
    async fn close(self);
}
