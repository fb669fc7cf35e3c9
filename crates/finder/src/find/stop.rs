//! What stops a search that has not ended by itself: a signal, or the maximum time.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    sync::oneshot,
    time::{sleep, sleep_until},
};

use super::{Stopper, status::Status};
use crate::signals::{Signal, Signals};

/// How long a search may take to stop before a note says so. It takes one slice, but the reader of the output may
/// be slow.
const STOP_PATIENCE: Duration = Duration::from_millis(500);

/// Why a search was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopCause {
    Signal(Signal),
    MaximumTime(TimeLimit),
}

/// The maximum time of a command, which counts from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimeLimit {
    pub(super) time: Duration,
    pub(super) deadline: Instant,
}

impl TimeLimit {
    /// Starts the time, if there is a limit. One beyond what the clock can show is none.
    pub(super) fn start(time: Option<Duration>) -> Option<TimeLimit> {
        let time = time?;
        let deadline = Instant::now().checked_add(time)?;
        Some(TimeLimit { time, deadline })
    }

    /// Waits until the time has passed; forever if there is no limit.
    pub(super) async fn passed(limit: Option<TimeLimit>) -> TimeLimit {
        match limit {
            Some(limit) => {
                sleep_until(limit.deadline.into()).await;
                limit
            }
            None => std::future::pending().await,
        }
    }
}

impl fmt::Display for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = humantime::format_duration(self.time);
        write!(f, "the maximum time of {time} has passed")
    }
}

/// Waits for what stops a command.
pub(super) struct Stops {
    signals: Signals,
    limit: Option<TimeLimit>,
}

impl Stops {
    /// Begins to receive signals. They no longer end the process by themselves.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub(super) fn new(limit: Option<TimeLimit>) -> Result<Stops> {
        let signals = Signals::new().context("cannot listen to signals")?;
        Ok(Stops { signals, limit })
    }

    /// Returns the maximum time.
    pub(super) fn limit(&self) -> Option<TimeLimit> {
        self.limit
    }

    /// Leaves the maximum time to something else.
    pub(super) fn without_limit(self) -> Stops {
        Stops {
            limit: None,
            ..self
        }
    }

    /// Waits for a signal, or until the time has passed, which happens once.
    async fn next(&mut self) -> StopCause {
        tokio::select! {
            signal = self.signals.next() => StopCause::Signal(signal),
            limit = TimeLimit::passed(self.limit) => {
                self.limit = None;
                StopCause::MaximumTime(limit)
            }
        }
    }

    /// Waits for a step that comes before the search.
    ///
    /// # Errors
    ///
    /// If the command is stopped before the step is done. The step's future is dropped then.
    pub(super) async fn unless_stopped<T>(
        &mut self,
        step: impl Future<Output = T>,
    ) -> Result<T, StopCause> {
        tokio::select! {
            biased;
            done = step => Ok(done),
            cause = self.next() => Err(cause),
        }
    }

    /// Calls `stop` at the first cause, which it sends to the receiver that it returns. At a second request to stop
    /// it ends the process.
    ///
    /// It happens on a task of its own, because the search's task may be blocked by the reader of its output.
    pub(super) fn stop(
        mut self,
        stop: Stopper,
        status: Arc<Status>,
    ) -> oneshot::Receiver<StopCause> {
        let (sender, receiver) = oneshot::channel();
        tokio::spawn(async move {
            let cause = self.next().await;
            // It is not received only if the search is over anyway.
            let _ = sender.send(cause);
            stop();
            let mut is_asked = matches!(cause, StopCause::Signal(_));
            let mut is_late = false;
            loop {
                tokio::select! {
                    signal = self.signals.next() => {
                        if is_asked {
                            status.clear();
                            std::process::exit(signal.exit() as i32);
                        }
                        is_asked = true;
                    }
                    () = sleep(STOP_PATIENCE), if !is_late => {
                        status.say("still stopping; ctrl-C leaves at once");
                        (is_asked, is_late) = (true, true);
                    }
                }
            }
        });
        receiver
    }
}
