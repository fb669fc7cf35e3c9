//! A search under way: its events are printed, its session is kept, and it is stopped when it should be.

use std::sync::Arc;

use anyhow::Result;
use hashfinder_search::{Index, Odds, Query};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{
    output::Output,
    report::{go_on, go_on_at, not_kept},
    result::{Conclusion, conclude},
    session::Session,
    source::{Ending, Source, Told},
    status::{Progress, REDRAW_EVERY, Status},
    stop::Stops,
};
use crate::exit::Exit;

/// Prints what a search tells until it ends, keeps its session, and stops it when it should be: at a
/// signal, or when the time is up. `first` is the index at which the first such search began that this
/// one goes on with.
pub(super) async fn follow<S: Source>(
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

#[cfg(test)]
mod tests {
    use std::{
        sync::{Condvar, Mutex},
        time::Duration,
    };

    use clap::Parser;
    use hashfinder_search::Cursor;

    use super::{
        super::{source::Stopper, stop::TimeLimit},
        *,
    };
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
