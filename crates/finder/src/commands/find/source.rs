//! Searches under way, wherever they run: what they report, and how they are stopped.

use std::time::Duration;

use anyhow::Result;
use hashfinder_search::{Cursor, Index};

use super::finding::Finding;

/// An event of a search.
pub(super) enum SearchEvent {
    /// A secret on the way to the answer.
    Candidate(Finding),
    /// An answer, but not the last that is wanted.
    Answer(Finding),
    /// The last event.
    Ended(SearchEnd),
}

impl SearchEvent {
    /// Returns the secret that the event reports, if any.
    pub(super) fn finding(&self) -> Option<&Finding> {
        match self {
            SearchEvent::Candidate(finding)
            | SearchEvent::Answer(finding)
            | SearchEvent::Ended(SearchEnd::Found(finding)) => Some(finding),
            SearchEvent::Ended(_) => None,
        }
    }
}

/// How a search ended.
pub(super) enum SearchEnd {
    /// The last of the answers that are wanted.
    Found(Finding),
    /// Every secret was tried.
    Exhausted,
    /// A limit was reached; the text says which.
    Limit(String, Cursor),
    /// The stopper was called.
    Stopped(Cursor),
    /// The server or the connection failed; the text says how.
    Failed(String, Cursor),
    /// The server rejects such a request, and would reject it again; the text says why.
    Refused(String, Cursor),
}

/// Stops a search, from any thread. The search reports its end when it has stopped.
pub(super) type Stopper = Box<dyn Fn() + Send>;

/// A search under way, in this process or at a server.
pub(super) trait Source {
    /// Waits for the next event. Dropping the future loses nothing.
    async fn next(&mut self) -> Result<SearchEvent>;

    /// Returns the function that stops it.
    fn stopper(&self) -> Stopper;

    /// Returns the frontier: every index below it was tried, and what was found there was reported.
    /// `None` if it is unknown.
    fn frontier(&mut self) -> Option<Index>;

    /// Returns for how long it has searched. A search in this process does not while the process is
    /// stopped.
    fn elapsed(&self) -> Duration;

    /// Returns a summary of a search that has ended: its hashes, time and rate.
    fn summary(&self) -> Option<String>;

    /// Returns the flags with which its cursor is resumed at its server; `None` for this process.
    fn resumes_at(&self) -> Option<&str>;

    /// Releases a search that has ended, and waits until the server knows.
    async fn close(self);
}
