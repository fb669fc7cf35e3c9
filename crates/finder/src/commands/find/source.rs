//! Searches under way, wherever they run: what they report, and how they are stopped.

use std::time::Duration;

use anyhow::Result;
use hashfinder_search::{Cursor, Index};

use super::finding::Finding;

/// An event of a search.
pub(super) enum SearchEvent {
    /// A secret that is near, but not near enough to be an answer.
    Candidate(Finding),
    /// An answer that is not the last one wanted.
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
    /// The last answer that was wanted was found.
    Found(Finding),
    /// Every secret was tried.
    Exhausted,
    /// A limit was reached; the text says which.
    Limit(String, Cursor),
    /// The stopper was called.
    Stopped(Cursor),
    /// The server or the connection failed; the text says how.
    Failed(String, Cursor),
    /// The server rejected the request, and would reject it again; the text says why.
    Refused(String, Cursor),
}

/// Stops a search, from any thread. The search reports its end when it has stopped.
pub(super) type Stopper = Box<dyn Fn() + Send>;

/// A search under way, in this process or at a server.
pub(super) trait Source {
    /// Waits for the next event. Dropping the future loses nothing.
    async fn next(&mut self) -> Result<SearchEvent>;

    /// Returns the function that stops the search.
    fn stopper(&self) -> Stopper;

    /// Returns the frontier: every index below it was tried, and what was found there was reported.
    /// `None` if it is unknown.
    fn frontier(&mut self) -> Option<Index>;

    /// Returns the time since the search began. For a search in this process, time for which the
    /// process is stopped does not count.
    fn elapsed(&self) -> Duration;

    /// Returns a summary of a search that has ended: its hashes, time and rate. `None` if the
    /// hashes are unknown.
    fn summary(&self) -> Option<String>;

    /// Returns the flags that resume the search's cursor at its server; `None` if the cursor is
    /// resumed without a server.
    fn resumes_at(&self) -> Option<&str>;

    /// Releases the search. If it has not ended, cancels it, and waits until the server was
    /// notified.
    async fn close(self);
}
