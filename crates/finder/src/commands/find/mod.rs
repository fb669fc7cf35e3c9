//! `hashfinder find`: one search, from the command line to its last line.

mod arguments;
mod local;
mod output;
mod reference;
mod remote;
mod session;
mod status;
mod stop;

use std::{sync::Arc, time::Duration};

use anyhow::{Result, anyhow};
use hashfinder_search::{Cursor, Index, Odds, Query};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

pub(crate) use self::arguments::FindArguments;
pub(crate) use self::output::{EMPTY, Finding};
pub(crate) use self::stop::TimeLimit;
use self::{
    local::LocalSearch,
    output::Output,
    remote::RemoteSearch,
    session::Session,
    status::{Progress, REDRAW_EVERY, Status},
    stop::{StopCause, Stops},
};
use crate::{
    arguments::{QueryError, SearchArguments},
    exit::Exit,
    threads::aside,
};

/// The shortest time for which a rate is shown, in seconds: that of a few milliseconds is noise.
const SHORTEST_RATE: f64 = 0.1;

/// What is added to the reason why a command was stopped before it searched.
const NOT_STARTED: &str = "; no search was started";

/// What a search tells, wherever it runs.
enum Told {
    /// A secret on the way to the answer.
    Candidate(Finding),
    /// An answer, but not the last that is wanted.
    Answer(Finding),
    /// Nothing follows.
    Ended(Ending),
}

impl Told {
    /// The secret that it tells.
    fn finding(&self) -> Option<&Finding> {
        match self {
            Told::Candidate(finding)
            | Told::Answer(finding)
            | Told::Ended(Ending::Found(finding)) => Some(finding),
            Told::Ended(_) => None,
        }
    }
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
    /// The server takes no such request, and would not take it again; says why.
    Refused(String, Cursor),
}

type Stopper = Box<dyn Fn() + Send>;

/// A search that is going on somewhere.
trait Source {
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

/// How the command ended, for people, programs and the shell.
struct Conclusion {
    /// In a word, for programs.
    how: &'static str,
    /// In a sentence, where there is more to say.
    why: Option<String>,
    exit: Exit,
    /// From where it goes on.
    cursor: Option<Cursor>,
    /// How, in words, and what share of such searches would have ended by now, if that is known.
    go_on: Option<String>,
    share: Option<String>,
    /// How many secrets were tried, if that is known.
    hashes: Option<u64>,
}

impl Conclusion {
    fn new(how: &'static str, why: impl Into<Option<String>>, exit: Exit) -> Conclusion {
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

    fn at(self, cursor: Cursor) -> Conclusion {
        Conclusion {
            cursor: Some(cursor),
            ..self
        }
    }

    /// Of a command that was stopped, with `what` about the search.
    fn stopped(cause: StopCause, what: &str) -> Conclusion {
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
    let mut output = Output::new(&arguments, Arc::clone(&status));
    let ended = match query {
        Ok(Ok(query)) => search(&arguments, query, stops, &status, &mut output).await,
        Ok(Err(impossible)) => {
            let why = impossible.to_string();
            Ok(Conclusion::new("impossible", why, Exit::Impossible))
        }
        Err(cause) => Ok(Conclusion::stopped(cause, NOT_STARTED)),
    };
    status.clear();
    match ended {
        Ok(ended) => {
            let best = output.best_row();
            let nearest = best.as_deref().ok_or(output.none_near());
            tell(&ended, Some(nearest), &status);
            let told = output.end(&ended);
            // It may be the output that failed, and one error is enough.
            if ended.exit != Exit::Failed {
                told?;
            }
            Ok(ended.exit)
        }
        Err(error) => {
            let failed = Conclusion::new("failed", format!("{error:#}"), Exit::Failed);
            // It may be the output that failed, and one error is enough.
            let _ = output.end(&failed);
            Err(error)
        }
    }
}

/// Returns what is searched for. A file that the secrets begin with is read on a thread of its own, for it may be a
/// pipe into which nothing is written.
async fn query(arguments: &Arc<FindArguments>) -> Result<Result<Query, QueryError>> {
    if arguments.query.keyspace.secret_prefix_file.is_none() {
        return Ok(arguments.query());
    }
    let arguments = Arc::clone(arguments);
    Ok(aside("read", move || arguments.query()).await?)
}

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

async fn search(
    arguments: &Arc<FindArguments>,
    mut query: Query,
    mut stops: Stops,
    status: &Arc<Status>,
    output: &mut Output,
) -> Result<Conclusion> {
    let mut wanted = arguments.count.get();
    let mut nearest = arguments.resume.as_ref().and_then(Cursor::nearest);
    let mut session = None;
    if let Some(name) = &arguments.session {
        let opening = aside("session", {
            let (name, query) = (name.clone(), query.clone());
            move || Session::open(&name, &query, wanted)
        });
        let held = match stops.unless_stopped(opening).await {
            Ok(held) => held??,
            Err(cause) => return Ok(Conclusion::stopped(cause, NOT_STARTED)),
        };
        let held = match held {
            Ok(held) => held,
            Err(why) => return Ok(Conclusion::new("refused", why, Exit::Usage)),
        };
        if held.frontier() > query.start() {
            let (tried, answers) = (held.frontier(), held.answers());
            status.say(format_args!(
                "session {name}: going on after {tried} hashes, {answers} of {wanted} found"
            ));
        }
        wanted -= held.answers();
        query = query.starting_at(held.frontier());
        nearest = held.nearest();
        session = Some(held);
    }
    output.begin_with(&query, nearest);
    let Some(server) = &arguments.server else {
        let (threads, kernel) = (arguments.threads, arguments.kernel);
        let search = LocalSearch::start(&query, wanted, threads, kernel, status)?;
        return follow(search, &query, 0, stops, session, output, status).await;
    };
    let limit = stops.limit();
    let starting = RemoteSearch::start(server, &query, wanted, arguments, limit, status);
    let search = match stops.unless_stopped(starting).await {
        Ok(search) => search?,
        Err(cause) => {
            let cursor = Cursor::new(&query, query.start()).with_nearest(nearest);
            let at = arguments
                .connection
                .flags(&arguments.connection.address(server));
            let go_on = go_on(&cursor, session.is_some(), output.left(), Some(&at));
            return Ok(Conclusion {
                go_on: Some(go_on),
                ..Conclusion::stopped(cause, NOT_STARTED).at(cursor)
            });
        }
    };
    // From now on the search enforces the maximum time, which the server knows as the call's deadline.
    let stops = stops.without_limit();
    match search {
        RemoteSearch::Finder(search) => {
            follow(*search, &query, 0, stops, session, output, status).await
        }
        RemoteSearch::Reference(search) => {
            follow(*search, &query, 0, stops, session, output, status).await
        }
    }
}

/// Prints what a search tells until it ends, keeps its session, and stops it when it should be: at a
/// signal, or when the time is up. `first` is the index at which the first such search began that this
/// one goes on with.
async fn follow<S: Source>(
    mut search: S,
    query: &Query,
    first: Index,
    stops: Stops,
    mut session: Option<Session>,
    output: &mut Output,
    status: &Arc<Status>,
) -> Result<Conclusion> {
    let over = CancellationToken::new();
    let mut stopping = stops.stop(search.stopper(), over.clone(), Arc::clone(status));
    let _over = over.drop_guard();
    // Some tens of milliseconds at most, while the search goes on.
    let odds = Odds::any(query.names(), query.ideal_distance());
    let before = session.as_ref().map_or(0, Session::answers);
    let mut progress = Progress::new(
        odds,
        output.wanted(),
        first,
        query.start()..query.keyspace().end(),
    );
    let mut ticks = interval(REDRAW_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first comes at once, when there is nothing to show yet.
    ticks.tick().await;
    let mut cause = None;
    let ending = loop {
        let told = tokio::select! {
            // Who is told to stop hears it before anything else, however much there is to print.
            biased;
            Ok(why) = &mut stopping, if cause.is_none() => {
                cause = Some(why);
                continue;
            }
            _ = ticks.tick() => {
                let frontier = search.frontier();
                let answers = before + output.answers();
                let best = output.best().ok_or(output.none_near());
                progress.show(status, search.elapsed(), frontier, answers, best);
                if let (Some(session), Some(frontier)) = (&mut session, frontier) {
                    // Everything below the frontier was printed by now.
                    let cursor = output.cursor(query, frontier);
                    let kept = session.keep_at_times(&cursor, output.answers());
                    kept.map_err(|error| {
                        let server = search.resumes_at();
                        not_kept(&error, &go_on_at(&cursor, output.left(), server))
                    })?;
                }
                continue;
            }
            told = search.next() => told?,
        };
        let read = match &told {
            Told::Candidate(finding) => output.candidate(finding),
            Told::Answer(finding) | Told::Ended(Ending::Found(finding)) => output.answer(finding),
            Told::Ended(_) => Ok(true),
        };
        if let Ok(true) = read {
            match told {
                Told::Ended(ending) => break ending,
                Told::Candidate(_) | Told::Answer(_) => continue,
            }
        }
        // What nobody has seen is told again, where one can go on.
        let frontier = search.frontier();
        let unseen = told.finding().filter(|_| frontier.is_some());
        let unseen = unseen.and_then(|finding| query.keyspace().index_of(&finding.secret));
        let cursor = output.cursor(query, unseen.unwrap_or(query.start()));
        if let Err(error) = read {
            break Ending::Failed(format!("{error:#}"), cursor);
        }
        // Who has seen enough, as `head` has, wants to hear no more.
        search.close().await;
        if let Some(session) = &mut session {
            session.keep(&cursor, output.answers())?;
        }
        return Ok(Conclusion::new("unread", None, Exit::Success));
    };
    let hashes = search.frontier().map(|frontier| frontier - query.start());
    let summary = search.summary();
    let server = search.resumes_at().map(str::to_owned);
    search.close().await;
    if let Some(summary) = summary {
        status.say(summary);
    }
    // The search may have been stopped since we last asked; why was told before.
    let cause = cause.or_else(|| stopping.try_recv().ok());
    let ended = conclude(ending, cause, output.answers());
    let ended = Conclusion {
        cursor: ended
            .cursor
            .map(|cursor| output.cursor(query, cursor.frontier())),
        ..ended
    };
    let kept = session.is_some();
    if let Some(mut session) = session {
        match &ended.cursor {
            Some(cursor) => session.keep(cursor, output.answers()).map_err(|error| {
                not_kept(&error, &go_on_at(cursor, output.left(), server.as_deref()))
            })?,
            None => session.finish()?,
        }
    }
    // What was refused would be refused again.
    let cursor = ended.cursor.as_ref().filter(|_| ended.exit != Exit::Usage);
    let go_on = cursor.map(|cursor| go_on(cursor, kept, output.left(), server.as_deref()));
    let share = hashes.and(ended.cursor.as_ref());
    let share = share.and_then(|cursor| progress.share_of_ended(cursor.frontier()));
    Ok(Conclusion {
        go_on,
        share,
        hashes,
        ..ended
    })
}

/// What an ending comes to, given why the search was stopped, if it was, and how many answers it had.
fn conclude(ending: Ending, cause: Option<StopCause>, answers: u64) -> Conclusion {
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

/// Says why there is no answer and, if one can go on, what share of searches would have one, what is the
/// nearest, as its row or in words, and how to go on.
fn tell(ended: &Conclusion, nearest: Option<Result<&str, &str>>, status: &Status) {
    let Some(why) = &ended.why else { return };
    if matches!(ended.exit, Exit::Failed | Exit::Impossible | Exit::Usage) {
        status.fail(why);
    } else {
        status.say(why);
    }
    let Some(go_on) = &ended.go_on else { return };
    if let Some(share) = &ended.share {
        status.say(share);
    }
    match nearest {
        Some(Ok(row)) => {
            status.say("the nearest so far:");
            status.line(row);
        }
        Some(Err(none)) => status.say(none),
        None => {}
    }
    status.say(go_on);
}

/// What a search took, by some means.
fn summary_of(tried: u64, took: Duration, means: &str) -> String {
    let hashes = match tried {
        1 => "1 hash".to_owned(),
        many => format!("{many} hashes"),
    };
    let rate = rate(tried, took).map(|rate| format!(", {:.1} million a second", rate / 1e6));
    let rate = rate.unwrap_or_default();
    format!("{hashes} in {took:.2?}{rate} ({means})")
}

/// Returns how many hashes a second there were; `None` if the time is too short to tell.
fn rate(hashes: u64, time: Duration) -> Option<f64> {
    let seconds = time.as_secs_f64();
    (seconds >= SHORTEST_RATE).then(|| hashes as f64 / seconds)
}

/// Returns how to resume a search that wants `left` more answers, given whether a session keeps its place.
fn go_on(cursor: &Cursor, is_kept: bool, left: u64, server: Option<&str>) -> String {
    if is_kept {
        "go on with: the same command; the session keeps the place".to_owned()
    } else {
        go_on_at(cursor, left, server)
    }
}

/// The command that goes on for so many more answers.
fn go_on_at(cursor: &Cursor, left: u64, server: Option<&str>) -> String {
    let server = server.map_or(String::new(), |flags| format!("{flags} "));
    let count = match left {
        0 | 1 => String::new(),
        more => format!("--count {more} "),
    };
    format!("go on with: hashfinder find {count}{server}--resume {cursor}")
}

/// What went wrong with keeping a session, and how to go on without it.
fn not_kept(error: &anyhow::Error, go_on: &str) -> anyhow::Error {
    anyhow!("{error:#}; {go_on}")
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    /// A search that ends in the very moment in which it is stopped.
    struct Prompt(Cursor, Arc<(Mutex<bool>, Condvar)>);

    impl Source for Prompt {
        async fn next(&mut self) -> Result<Told> {
            let (stopped, changed) = &*self.1;
            let stopped = stopped.lock().unwrap();
            drop(changed.wait_while(stopped, |stopped| !*stopped).unwrap());
            Ok(Told::Ended(Ending::Stopped(self.0.clone())))
        }

        fn stopper(&self) -> Stopper {
            let shared = Arc::clone(&self.1);
            Box::new(move || {
                *shared.0.lock().unwrap() = true;
                shared.1.notify_all();
            })
        }

        fn frontier(&mut self) -> Option<Index> {
            None
        }

        fn elapsed(&self) -> Duration {
            Duration::ZERO
        }

        fn summary(&self) -> Option<String> {
            None
        }

        fn resumes_at(&self) -> Option<&str> {
            None
        }

        async fn close(self) {}
    }

    #[test]
    fn a_rate_takes_a_tenth_of_a_second() {
        let summary = |ms, tried| summary_of(tried, Duration::from_millis(ms), "avx512");
        assert_eq!(summary(3, 1_000), "1000 hashes in 3.00ms (avx512)");
        assert_eq!(summary(99, 1), "1 hash in 99.00ms (avx512)");
        assert_eq!(
            summary(100, 30_000_000),
            "30000000 hashes in 100.00ms, 300.0 million a second (avx512)"
        );
        assert_eq!(summary(0, 0), "0 hashes in 0.00ns (avx512)");
    }

    /// One in a thousand searches for several answers said that it was stopped, though nobody asked for
    /// it: it was told to stop after the loop had asked why, and before it asked the search.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_search_that_ends_at_once_when_it_is_stopped_tells_why() {
        let line = "hashfinder find doctor --quiet";
        let Command::Find(arguments) = Cli::parse_from(line.split(' ')).command else {
            unreachable!("another command");
        };
        let query = arguments.query().unwrap();
        let search = Prompt(Cursor::new(&query, 5), Arc::default());
        let status = Arc::new(Status::new(true));
        let mut output = Output::new(&arguments, Arc::clone(&status));
        let limit = TimeLimit::start(Some(Duration::from_millis(1)));
        let stops = Stops::new(limit).unwrap();
        let ended = follow(search, &query, 0, stops, None, &mut output, &status);
        assert_eq!(ended.await.unwrap().how, "limit");
    }
}
