//! `hashfinder find`: one search, from the command line to its last line.

mod local;
mod output;
mod remote;

use std::{pin::pin, time::Duration};

use anyhow::{Context, Result};
use hashfinder_search::{Cursor, Distance, Impossible, Query};
use tokio::sync::oneshot;

use self::{
    local::LocalSearch,
    output::{Finding, Output},
    remote::RemoteSearch,
};
use crate::{
    cli::{Exit, FindArguments},
    serve::Signals,
};

/// What a search tells, wherever it runs.
enum Told {
    /// A secret on the way to the answer.
    Candidate(Finding),
    /// Nothing follows.
    Ended(Ending),
}

/// How a search ended.
enum Ending {
    Found(Finding),
    Exhausted,
    /// A limit was reached; says which.
    Limit(String, Cursor),
    /// It was stopped as we asked.
    Stopped(Cursor),
    /// The server or the connection failed; says how.
    Failed(String, Cursor),
}

type Stopper = Box<dyn Fn() + Send>;

/// A search that is going on somewhere.
trait Source {
    /// Waits for what it tells next. Dropping the future loses nothing.
    async fn next(&mut self) -> Result<Told>;

    /// What tells it to stop, from anywhere; it will say when it has.
    fn stopper(&self) -> Stopper;

    /// What it took, once it has ended, for people who like to know.
    fn summary(&self) -> Option<String>;

    /// Lets go of it, once it has ended, and waits until whoever worked for it knows.
    async fn close(self);
}

/// Why a search was told to stop.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StopCause {
    Signal(&'static str),
    Timeout(Duration),
    /// Nobody reads what it finds.
    NoReader,
}

/// Runs the command. Dropping the future cancels the search.
pub(crate) async fn run(arguments: FindArguments) -> Result<Exit> {
    let mut signals = Signals::new().context("cannot listen to signals")?;
    let query = match query(&arguments) {
        Ok(query) => query,
        Err(impossible) => {
            eprintln!("hashfinder: {impossible}");
            return Ok(Exit::Impossible);
        }
    };
    let Some(server) = &arguments.server else {
        let search = LocalSearch::start(&query, &arguments)?;
        return follow(search, &query, arguments.timeout, signals).await;
    };
    let connecting = remote::connect(server, arguments.connect_timeout);
    let connection = tokio::select! {
        connection = connecting => connection?,
        signal = signals.next() => {
            eprintln!("hashfinder: stopped by {signal}; no search was started");
            return Ok(exit_of(signal));
        }
    };
    let search = RemoteSearch::start(connection, &query, arguments.timeout);
    // The server is told the timeout, and the call's handle keeps it.
    follow(search, &query, None, signals).await
}

fn query(arguments: &FindArguments) -> Result<Query, Impossible> {
    let query = match (&arguments.resume, &arguments.name) {
        (Some(cursor), _) => cursor.query(),
        (None, Some(name)) => {
            let interesting = arguments.show_inferior.unwrap_or(Distance::ZERO);
            Query::new(name.clone(), arguments.ideal_distance)?.interesting(interesting)
        }
        // The command line asks for one of them.
        (None, None) => unreachable!("neither a name nor a cursor"),
    };
    Ok(match arguments.maximum_hashes {
        Some(hashes) => query.hash_budget(hashes),
        None => query,
    })
}

/// Prints what a search tells until it ends, and stops it when it should be.
async fn follow<S: Source>(
    mut search: S,
    query: &Query,
    timeout: Option<Duration>,
    signals: Signals,
) -> Result<Exit> {
    let mut output = Output::new(query);
    let mut cause = None;
    let mut interrupted = pin!(on_signal(signals, search.stopper()));
    let mut expired = pin!(async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    });
    let ending = loop {
        let stop = tokio::select! {
            // In this order, so that a search that was stopped by a signal does not end before we
            // have seen the signal.
            biased;
            Ok(signal) = &mut interrupted, if cause.is_none() => StopCause::Signal(signal),
            () = &mut expired, if cause.is_none() => {
                StopCause::Timeout(timeout.unwrap_or_default())
            }
            told = search.next() => match told? {
                Told::Ended(ending) => break ending,
                Told::Candidate(finding) => {
                    if output.candidate(finding)? {
                        continue;
                    }
                    StopCause::NoReader
                }
            },
        };
        cause = cause.or(Some(stop));
        search.stopper()();
    };
    let summary = search.summary();
    search.close().await;
    if cause == Some(StopCause::NoReader) {
        // Who has seen enough, as `head` has, wants to hear no more.
        return Ok(Exit::Success);
    }
    if let Some(summary) = summary {
        output.say(&summary);
    }
    conclude(ending, cause, output)
}

/// At the first signal tells its name and calls `stop`; leaves the process at the second.
///
/// It happens on a task of its own, because whoever prints may be waiting for a reader who does
/// not read, and has no ear for signals then.
fn on_signal(mut signals: Signals, stop: Stopper) -> oneshot::Receiver<&'static str> {
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        let signal = signals.next().await;
        // Nobody listens any more only when the search is over anyway.
        let _ = sender.send(signal);
        stop();
        let again = signals.next().await;
        std::process::exit(exit_of(again) as i32);
    });
    receiver
}

fn conclude(ending: Ending, cause: Option<StopCause>, mut output: Output) -> Result<Exit> {
    let (why, exit, cursor) = match (ending, cause) {
        (Ending::Found(finding), _) => {
            output.answer(&finding)?;
            return Ok(Exit::Success);
        }
        (Ending::Exhausted, _) => {
            output.say("every secret was tried, and none was near enough");
            return Ok(Exit::Exhausted);
        }
        (Ending::Limit(why, cursor), _) => (why, Exit::Limit, cursor),
        (Ending::Failed(why, cursor), _) => (why, Exit::Failed, cursor),
        (Ending::Stopped(cursor), Some(StopCause::Signal(signal))) => {
            (format!("stopped by {signal}"), exit_of(signal), cursor)
        }
        (Ending::Stopped(cursor), Some(StopCause::Timeout(timeout))) => {
            let timeout = humantime::format_duration(timeout);
            (
                format!("the timeout of {timeout} has passed"),
                Exit::Limit,
                cursor,
            )
        }
        (Ending::Stopped(cursor), Some(StopCause::NoReader) | None) => {
            let why = "the search was stopped, though nobody asked for it".to_owned();
            (why, Exit::Failed, cursor)
        }
    };
    output.say(&why);
    output.best();
    output.resume(&cursor);
    Ok(exit)
}

fn exit_of(signal: &str) -> Exit {
    match signal {
        "SIGTERM" => Exit::Terminated,
        _ => Exit::Interrupted,
    }
}
