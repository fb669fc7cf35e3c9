//! Follows a search under way: prints its events, saves its session, and stops it at a signal or at
//! the time limit.

use std::{ops::Range, sync::Arc};

use anyhow::Result;
use hashfinder_search::{Index, Odds, Query};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{
    output::Output,
    progress::{Progress, REDRAW_EVERY},
    report::{how_to_resume, resume_command, session_error},
    result::CommandResult,
    session::Session,
    source::{SearchEnd, SearchEvent, Source},
    status::Status,
    stop::Stops,
};
use crate::exit::Exit;

/// Prints a search's events until it ends, saves its session, and stops it at a signal or at the
/// time limit. `tried` are the secrets that were tried before this run and whose hashes the
/// progress counts, too: its end is where this run begins.
pub(super) async fn follow<S: Source>(
    mut search: S,
    query: &Query,
    tried: Range<Index>,
    stops: Stops,
    mut session: Option<Session>,
    output: &mut Output,
    status: &Arc<Status>,
) -> Result<CommandResult> {
    let over = CancellationToken::new();
    let mut stopping = stops.stop(search.stopper(), over.clone(), Arc::clone(status));
    let _over = over.drop_guard();
    // This takes at most some tens of milliseconds, during which the search continues.
    let odds = Odds::any(query.names(), query.ideal_distance());
    let before = session.as_ref().map_or(0, Session::answers);
    let mut progress = Progress::new(
        odds,
        output.wanted(),
        tried.start,
        tried.end..query.keyspace().end(),
    );
    let mut ticks = interval(REDRAW_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick comes at once, when there is nothing to show yet.
    ticks.tick().await;
    let mut cause = None;
    let end = loop {
        let event = tokio::select! {
            // A stop takes precedence, however much there is to print.
            biased;
            Ok(why) = &mut stopping, if cause.is_none() => {
                cause = Some(why);
                continue;
            }
            _ = ticks.tick() => {
                let frontier = search.frontier();
                let answers = before + output.answers();
                let best = output.best().ok_or(output.no_candidate());
                progress.show(status, search.elapsed(), frontier, answers, best);
                if let (Some(session), Some(frontier)) = (&mut session, frontier) {
                    // Everything that was found below the frontier has been printed by now.
                    let cursor = output.cursor(query, frontier);
                    let saved = session.keep_if_due(&cursor, output.answers());
                    saved.map_err(|error| {
                        let server = search.resumes_at();
                        session_error(&error, &resume_command(&cursor, output.left(), server))
                    })?;
                }
                continue;
            }
            event = search.next() => event?,
        };
        let read = match &event {
            SearchEvent::Candidate(finding) => output.candidate(finding),
            SearchEvent::Answer(finding) | SearchEvent::Ended(SearchEnd::Found(finding)) => {
                output.answer(finding)
            }
            SearchEvent::Ended(_) => Ok(true),
        };
        if let Ok(true) = read {
            match event {
                SearchEvent::Ended(end) => break end,
                SearchEvent::Candidate(_) | SearchEvent::Answer(_) => continue,
            }
        }
        // A secret that was not printed is found again when the search is resumed.
        let frontier = search.frontier();
        let unseen = event.finding().filter(|_| frontier.is_some());
        let unseen = unseen.and_then(|finding| query.keyspace().index_of(&finding.secret));
        let cursor = output.cursor(query, unseen.unwrap_or(query.start()));
        if let Err(error) = read {
            break SearchEnd::Failed(format!("{error:#}"), cursor);
        }
        // A reader that needs no more output, such as `head`, has closed the pipe.
        search.close().await;
        if let Some(session) = &mut session {
            session.keep(&cursor, output.answers())?;
        }
        return Ok(CommandResult::new("unread", None, Exit::Success));
    };
    let hashes = search.frontier().map(|frontier| frontier - query.start());
    let summary = search.summary();
    let server = search.resumes_at().map(str::to_owned);
    search.close().await;
    if let Some(summary) = summary {
        status.say(summary);
    }
    // The search may have been stopped after the loop last checked for a cause. The cause was sent
    // before the search was stopped.
    let cause = cause.or_else(|| stopping.try_recv().ok());
    let result = CommandResult::of(end, cause, output.answers());
    let result = CommandResult {
        cursor: result
            .cursor
            .map(|cursor| output.cursor(query, cursor.frontier())),
        ..result
    };
    let has_session = session.is_some();
    if let Some(mut session) = session {
        match &result.cursor {
            Some(cursor) => session.keep(cursor, output.answers()).map_err(|error| {
                session_error(
                    &error,
                    &resume_command(cursor, output.left(), server.as_deref()),
                )
            })?,
            None => session.finish()?,
        }
    }
    // A request that was rejected would be rejected again.
    let cursor = result
        .cursor
        .as_ref()
        .filter(|_| result.exit != Exit::Usage);
    let how_to_resume =
        cursor.map(|cursor| how_to_resume(cursor, has_session, output.left(), server.as_deref()));
    let share = hashes.and(result.cursor.as_ref());
    let share = share.and_then(|cursor| progress.share_of_ended(cursor.frontier()));
    Ok(CommandResult {
        how_to_resume,
        share,
        hashes,
        ..result
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

    /// A search that ends the moment it is stopped.
    struct Prompt(Cursor, Arc<(Mutex<bool>, Condvar)>);

    impl Source for Prompt {
        async fn next(&mut self) -> Result<SearchEvent> {
            let (stopped, changed) = &*self.1;
            let stopped = stopped.lock().unwrap();
            drop(changed.wait_while(stopped, |stopped| !*stopped).unwrap());
            Ok(SearchEvent::Ended(SearchEnd::Stopped(self.0.clone())))
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

    /// Regression: if several answers were wanted, about one stopped search in a thousand did not
    /// report why it was stopped. The stop came after the loop had checked for a cause, but before
    /// the loop waited for the search.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_search_that_ends_at_once_when_it_is_stopped_reports_why() {
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
        let result = follow(search, &query, 0..0, stops, None, &mut output, &status);
        assert_eq!(result.await.unwrap().how, "limit");
    }
}
