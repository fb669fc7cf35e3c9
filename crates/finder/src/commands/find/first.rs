//! One answer, for the commands that make something of it.

use std::sync::Arc;

use anyhow::Result;
use hashfinder_search::{Cursor, Index, Query};

use super::{
    finding::Finding,
    follow::follow,
    local::LocalSearch,
    output::Output,
    report::tell,
    result::Conclusion,
    status::Status,
    stop::{Stops, TimeLimit},
};
use crate::{arguments::SearchArguments, exit::Exit};

/// Searches in this process, for a recipe, and gives the answer, or how the command ends without one.
///
/// The queries are searched one after another: each has a budget, but for the last, and begins at the
/// index at which the one before ends; they differ in nothing but what stands around the searched part of
/// their secrets. How that comes on and why it ends is told as `find` does; `go_on` says how to go on from
/// an index. Dropping the future cancels the search.
///
/// # Errors
///
/// If the search cannot be started.
///
/// # Panics
///
/// If there are no queries.
pub(crate) async fn first(
    queries: Vec<Query>,
    arguments: &SearchArguments,
    limit: Option<TimeLimit>,
    go_on: impl FnOnce(Index) -> String,
) -> Result<Result<Finding, Exit>> {
    let mut queries = queries.into_iter();
    let query = queries.next().expect("a recipe searches for something");
    let stops = Stops::new(limit)?.ending_with_search();
    let status = Arc::new(Status::new(arguments.quiet));
    let mut output = Output::kept(&query, Arc::clone(&status));
    let search = LocalSearch::start(&query, 1, arguments.threads, None, &status)?.then(queries);
    let begins = query.start();
    let ended = follow(search, &query, begins, stops, None, &mut output, &status).await;
    status.clear();
    let ended = ended?;
    if let (Exit::Success, Some(answer)) = (ended.exit, output.best()) {
        return Ok(Ok(answer.clone()));
    }
    let frontier = ended.cursor.as_ref().map(Cursor::frontier);
    let ended = Conclusion {
        go_on: frontier.map(go_on),
        ..ended
    };
    tell(&ended, None, &status);
    Ok(Err(ended.exit))
}
