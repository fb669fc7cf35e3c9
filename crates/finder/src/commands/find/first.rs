//! Finds one answer, for commands that use it themselves.

use std::sync::Arc;

use anyhow::Result;
use hashfinder_search::{Cursor, Index, Query};

use super::{
    finding::Finding,
    follow::follow,
    local::LocalSearch,
    output::Output,
    report::report,
    result::CommandResult,
    status::Status,
    stop::{Stops, TimeLimit},
};
use crate::{arguments::SearchArguments, exit::Exit};

/// Searches in this process for a command that uses the answer itself. Returns the answer, or the
/// exit code of the command if there is none.
///
/// The queries are searched one after another. Each but the last has a budget, and each begins at
/// the index at which the one before it ends. Otherwise they differ only in the prefix and the
/// suffix of their secrets.
///
/// Prints progress, and why the search ended without an answer, as `find` does. `how_to_resume`
/// returns the text that says how to resume at an index. Dropping the future cancels the search.
///
/// # Errors
///
/// If signals cannot be received, or a search cannot be started.
///
/// # Panics
///
/// If `queries` is empty.
pub(crate) async fn first(
    queries: Vec<Query>,
    arguments: &SearchArguments,
    limit: Option<TimeLimit>,
    how_to_resume: impl FnOnce(Index) -> String,
) -> Result<Result<Finding, Exit>> {
    let mut queries = queries.into_iter();
    let query = queries.next().expect("the command searches for something");
    let stops = Stops::new(limit)?.ending_with_search();
    let status = Arc::new(Status::new(arguments.quiet));
    let mut output = Output::silent(&query, Arc::clone(&status));
    let search = LocalSearch::start(&query, 1, arguments.threads, None, &status)?.then(queries);
    let tried = query.start()..query.start();
    let result = follow(search, &query, tried, stops, None, &mut output, &status).await;
    status.clear();
    let result = result?;
    if let (Exit::Success, Some(answer)) = (result.exit, output.best()) {
        return Ok(Ok(answer.clone()));
    }
    let frontier = result.cursor.as_ref().map(Cursor::frontier);
    let result = CommandResult {
        how_to_resume: frontier.map(how_to_resume),
        ..result
    };
    report(&result, None, &status);
    Ok(Err(result.exit))
}
