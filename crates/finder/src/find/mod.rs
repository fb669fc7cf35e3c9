//! `hashfinder find`: one search, from the command line to its last line.

mod local;
mod output;
mod remote;

use std::{pin::pin, time::Duration};

use anyhow::{Context, Result};
use hashfinder_search::{Cursor, Distance, Impossible, Query};
use tokio::{sync::oneshot, time::sleep};

pub(crate) use self::output::Finding;
use self::{local::LocalSearch, output::Output, remote::RemoteSearch};
use crate::{
    cli::{Exit, FindArguments, say},
    signals::{Signal, Signals},
};

/// How long a search that was told to stop may take before we say that it does. It takes a slice,
/// but whoever reads our output may be in the way.
const STOP_PATIENCE: Duration = Duration::from_millis(500);

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
    Signal(Signal),
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
            say(impossible);
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
            say(format_args!("stopped by {signal}; no search was started"));
            return Ok(exit_of(signal));
        }
    };
    let search = RemoteSearch::start(connection, &query, &arguments);
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
    let mut stopping = pin!(stop_when_told(signals, timeout, search.stopper()));
    let ending = loop {
        tokio::select! {
            // In this order, so that a search that was stopped does not end before we know why.
            biased;
            Ok(why) = &mut stopping, if cause.is_none() => cause = Some(why),
            told = search.next() => match told? {
                Told::Ended(ending) => break ending,
                Told::Candidate(finding) => {
                    if !output.candidate(finding)? {
                        cause = cause.or(Some(StopCause::NoReader));
                        search.stopper()();
                    }
                }
            },
        }
    };
    let summary = search.summary();
    search.close().await;
    if cause == Some(StopCause::NoReader) {
        // Who has seen enough, as `head` has, wants to hear no more.
        return Ok(Exit::Success);
    }
    if let Ending::Found(finding) = &ending {
        output.answer(finding)?;
    }
    if let Some(summary) = summary {
        say(summary);
    }
    Ok(conclude(ending, cause, &output))
}

/// Calls `stop` at the first signal or when the time is up, and tells which it was; leaves the
/// process at the second signal.
///
/// It happens on a task of its own, because whoever prints may be waiting for a reader who does
/// not read, and has no ear for either then.
fn stop_when_told(
    mut signals: Signals,
    timeout: Option<Duration>,
    stop: Stopper,
) -> oneshot::Receiver<StopCause> {
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        let expired = async {
            match timeout {
                Some(timeout) => {
                    sleep(timeout).await;
                    timeout
                }
                None => std::future::pending().await,
            }
        };
        let (cause, mut again) = tokio::select! {
            signal = signals.next() => (StopCause::Signal(signal), true),
            timeout = expired => (StopCause::Timeout(timeout), false),
        };
        // Nobody listens any more only when the search is over anyway.
        let _ = sender.send(cause);
        stop();
        loop {
            tokio::select! {
                signal = signals.next() => {
                    if again {
                        std::process::exit(exit_of(signal) as i32);
                    }
                    again = true;
                }
                () = sleep(STOP_PATIENCE) => break,
            }
        }
        say("still stopping; ctrl-C leaves at once");
        let signal = signals.next().await;
        std::process::exit(exit_of(signal) as i32);
    });
    receiver
}

/// Says why there is no answer, and how to go on.
fn conclude(ending: Ending, cause: Option<StopCause>, output: &Output) -> Exit {
    let (why, exit, cursor) = match (ending, cause) {
        (Ending::Found(_), _) => return Exit::Success,
        (Ending::Exhausted, _) => {
            say("every secret was tried, and none was near enough");
            return Exit::No;
        }
        (Ending::Limit(why, cursor), _) => (why, Exit::Limit, cursor),
        (Ending::Failed(why, cursor), _) => (why, Exit::Failed, cursor),
        (Ending::Stopped(cursor), Some(StopCause::Signal(signal))) => {
            (format!("stopped by {signal}"), exit_of(signal), cursor)
        }
        (Ending::Stopped(cursor), Some(StopCause::Timeout(timeout))) => {
            let timeout = humantime::format_duration(timeout);
            let why = format!("the timeout of {timeout} has passed");
            (why, Exit::Limit, cursor)
        }
        (Ending::Stopped(cursor), Some(StopCause::NoReader) | None) => {
            let why = "the search was stopped, though nobody asked for it".to_owned();
            (why, Exit::Failed, cursor)
        }
    };
    say(why);
    output.best();
    say(format_args!(
        "go on with: hashfinder find --resume {cursor}"
    ));
    exit
}

fn exit_of(signal: Signal) -> Exit {
    match signal {
        Signal::Interrupt => Exit::Interrupted,
        Signal::Terminate => Exit::Terminated,
    }
}
