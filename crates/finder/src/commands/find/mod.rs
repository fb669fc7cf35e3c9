//! `hashfinder find`: one search, from the command line to the exit code.

mod arguments;
mod call_end;
mod detach;
mod finding;
mod first;
mod follow;
mod local;
mod output;
mod progress;
mod rate;
mod reference;
mod remote;
mod report;
mod result;
mod session;
mod source;
mod status;
mod stop;
mod watch;

use std::sync::Arc;

use anyhow::Result;
use hashfinder_search::{Cursor, Query};
use hashfinder_system::threads::aside;

pub(crate) use self::{
    arguments::{Color, FindArguments},
    finding::{EMPTY, Finding},
    first::first,
    stop::TimeLimit,
    watch::{WatchRequest, watch_operation},
};
use self::{
    detach::detach,
    follow::follow,
    local::LocalSearch,
    output::Output,
    rate::hashes,
    remote::RemoteSearch,
    report::{how_to_resume, report},
    result::CommandResult,
    session::Session,
    status::Status,
    stop::Stops,
};
use crate::{arguments::QueryError, exit::Exit};

/// Text that is added to the reason why a command was stopped before it searched.
const NOT_STARTED: &str = "; no search was started";

/// Runs the command. Dropping the future cancels the search.
pub(crate) async fn run(arguments: FindArguments) -> Result<Exit> {
    let arguments = Arc::new(arguments);
    let status = Arc::new(Status::new(arguments.quiet));
    let mut stops = Stops::new(TimeLimit::start(arguments.maximum_time))?;
    let query = match stops.unless_stopped(query(&arguments)).await {
        Ok(query) => match query? {
            Err(QueryError::Wrong(why)) => {
                status.fail(why);
                return Ok(Exit::Usage);
            }
            query => Ok(query),
        },
        Err(cause) => Err(cause),
    };
    if arguments.detach && arguments.server.is_none() {
        status.fail("--detach: give the server that runs the operation with --server HOST:PORT");
        return Ok(Exit::Usage);
    }
    let mut output = Output::new(&arguments, Arc::clone(&status));
    let result = match query {
        Ok(Ok(query)) => search(&arguments, query, stops, &status, &mut output).await,
        Ok(Err(impossible)) => {
            let why = impossible.to_string();
            Ok(CommandResult::new("impossible", why, Exit::Impossible))
        }
        Err(cause) => Ok(CommandResult::stopped(cause, NOT_STARTED)),
    };
    status.clear();
    match result {
        Ok(result) => {
            let best = output.best_row();
            let nearest = best.as_deref().ok_or(output.no_candidate());
            report(&result, Some(nearest), &status);
            let printed = output.end(&result);
            // If the command failed, possibly because of its output, one error is enough.
            if result.exit != Exit::Failed {
                printed?;
            }
            Ok(result.exit)
        }
        Err(error) => {
            let failed = CommandResult::new("failed", format!("{error:#}"), Exit::Failed);
            // The command may have failed because of its output, and one error is enough.
            let _ = output.end(&failed);
            Err(error)
        }
    }
}

/// Returns the query. Reads the file of `--secret-prefix-file` on a separate thread, because it may
/// be a pipe to which nothing is ever written.
async fn query(arguments: &Arc<FindArguments>) -> Result<Result<Query, QueryError>> {
    if arguments.query.keyspace.secret_prefix_file.is_none() {
        return Ok(arguments.query());
    }
    let arguments = Arc::clone(arguments);
    Ok(aside("read", move || arguments.query()).await?)
}

async fn search(
    arguments: &Arc<FindArguments>,
    mut query: Query,
    mut stops: Stops,
    status: &Arc<Status>,
    output: &mut Output,
) -> Result<CommandResult> {
    let mut wanted = arguments.count.get();
    let mut nearest = arguments.resume.as_ref().and_then(Cursor::nearest);
    let session = if let Some(name) = &arguments.session {
        let opening = aside("session", {
            let (name, query) = (name.clone(), query.clone());
            move || Session::open(&name, &query, wanted)
        });
        let opened = match stops.unless_stopped(opening).await {
            Ok(opened) => opened??,
            Err(cause) => return Ok(CommandResult::stopped(cause, NOT_STARTED)),
        };
        let session = match opened {
            Ok(session) => session,
            Err(why) => return Ok(CommandResult::new("refused", why, Exit::Usage)),
        };
        if session.frontier() > query.start() {
            let (tried, answers) = (hashes(session.frontier()), session.answers());
            status.say(format_args!(
                "session {name}: resuming after {tried}, {answers} of {wanted} found"
            ));
        }
        wanted -= session.answers();
        query = query.starting_at(session.frontier());
        nearest = session.nearest();
        Some(session)
    } else {
        None
    };
    output.begin_with(&query, nearest);
    let Some(server) = &arguments.server else {
        let (threads, kernel) = (arguments.threads, arguments.kernel);
        let search = LocalSearch::start(&query, wanted, threads, kernel, status)?;
        return follow(
            search,
            &query,
            0..query.start(),
            stops,
            session,
            output,
            status,
        )
        .await;
    };
    if arguments.detach {
        let starting = detach(server, &query, arguments, status);
        return match stops.unless_stopped(starting).await {
            Ok(Ok(name)) => {
                output.started(&name)?;
                Ok(CommandResult::new("detached", None, Exit::Success))
            }
            Ok(Err(end)) => Ok(CommandResult::of(end?, None, 0)),
            // The server may have started it; then `operations list` shows it.
            Err(cause) => Ok(CommandResult::stopped(
                cause,
                "; the operation may have started",
            )),
        };
    }
    let limit = stops.limit();
    let starting = RemoteSearch::start(server, &query, wanted, arguments, limit, status);
    let search = match stops.unless_stopped(starting).await {
        Ok(search) => search?,
        Err(cause) => {
            let cursor = Cursor::new(&query, query.start()).with_nearest(nearest);
            let at = arguments
                .connection
                .flags(&arguments.connection.address(server));
            let how_to_resume = how_to_resume(&cursor, session.is_some(), output.left(), Some(&at));
            return Ok(CommandResult {
                how_to_resume: Some(how_to_resume),
                ..CommandResult::stopped(cause, NOT_STARTED).at(cursor)
            });
        }
    };
    // From now on, the search itself enforces the maximum time, which it sends to the server as the
    // deadline of its calls.
    let stops = stops.without_limit();
    match search {
        RemoteSearch::Finder(search) => {
            follow(
                *search,
                &query,
                0..query.start(),
                stops,
                session,
                output,
                status,
            )
            .await
        }
        RemoteSearch::Reference(search) => {
            follow(
                *search,
                &query,
                0..query.start(),
                stops,
                session,
                output,
                status,
            )
            .await
        }
    }
}
