//! Stops a search that has not ended by itself: at a signal, or when the maximum time has passed.

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
use tokio_util::sync::CancellationToken;

use super::{source::Stopper, status::Status};
use crate::signals::{Signal, Signals};

/// Time after a request to stop before a note says that the search is still stopping.
///
/// A search stops within one slice, but the reader of the output may be slow.
const STOP_PATIENCE: Duration = Duration::from_millis(500);

/// Why a command stops its search before the search ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interruption {
    Signal(Signal),
    MaximumTime(TimeLimit),
}

/// The maximum time of a command, measured from the start of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimeLimit {
    time: Duration,
    pub(super) deadline: Instant,
}

impl TimeLimit {
    /// Starts the time, if there is a limit. A limit that the clock cannot represent counts as no
    /// limit.
    pub(crate) fn start(time: Option<Duration>) -> Option<TimeLimit> {
        let time = time?;
        let deadline = Instant::now().checked_add(time)?;
        Some(TimeLimit { time, deadline })
    }

    /// Returns how much of the time is left, rounded up to a tenth of a second.
    pub(super) fn left(self) -> Duration {
        let left = self.deadline.saturating_duration_since(Instant::now());
        Duration::from_millis((left.as_millis() as u64).div_ceil(100) * 100)
    }

    /// Waits until the time has passed. Without a limit, waits forever.
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

/// Waits for the signals and the time limit that stop a command.
pub(super) struct Stops {
    signals: Signals,
    limit: Option<TimeLimit>,
    /// Whether to stop receiving signals once the search is over.
    ends_with_search: bool,
}

impl Stops {
    /// Begins to receive signals. They no longer end the process by themselves.
    ///
    /// # Errors
    ///
    /// If a signal handler cannot be installed.
    pub(super) fn new(limit: Option<TimeLimit>) -> Result<Stops> {
        let signals = Signals::new().context("cannot receive signals")?;
        Ok(Stops {
            signals,
            limit,
            ends_with_search: false,
        })
    }

    /// Adapts it to a command that continues after its search. Once the search is over, the command
    /// must receive the signals itself.
    pub(super) fn ending_with_search(self) -> Stops {
        Stops {
            ends_with_search: true,
            ..self
        }
    }

    /// Returns the maximum time.
    pub(super) fn limit(&self) -> Option<TimeLimit> {
        self.limit
    }

    /// Returns the same without the time limit, for a search that enforces the limit itself.
    pub(super) fn without_limit(self) -> Stops {
        Stops {
            limit: None,
            ..self
        }
    }

    /// Waits for a signal or for the time limit, which is reported only once.
    async fn next(&mut self) -> Interruption {
        tokio::select! {
            signal = self.signals.next() => Interruption::Signal(signal),
            limit = TimeLimit::passed(self.limit) => {
                self.limit = None;
                Interruption::MaximumTime(limit)
            }
        }
    }

    /// Runs a step that comes before the search.
    ///
    /// # Errors
    ///
    /// If the command is stopped before the step is done. The step's future is then dropped.
    pub(super) async fn unless_stopped<T>(
        &mut self,
        step: impl Future<Output = T>,
    ) -> Result<T, Interruption> {
        tokio::select! {
            biased;
            done = step => Ok(done),
            cause = self.next() => Err(cause),
        }
    }

    /// Waits for the first cause in a separate task, sends it to the returned receiver, and then
    /// calls `stop`.
    ///
    /// At the next signal after a signal or after the note that the search is still stopping, the
    /// task ends the process. It does so even after the search is `over`, unless
    /// [`ending_with_search`](Self::ending_with_search) was called, because the command may be
    /// blocked by the reader of its output. For the same reason, the task is separate.
    pub(super) fn stop(
        mut self,
        stop: Stopper,
        over: CancellationToken,
        status: Arc<Status>,
    ) -> oneshot::Receiver<Interruption> {
        let (sender, receiver) = oneshot::channel();
        let ends_with_search = self.ends_with_search;
        tokio::spawn(async move {
            let cause = tokio::select! {
                cause = self.next() => cause,
                () = over.cancelled(), if ends_with_search => return,
            };
            // The receiver is gone only if the search is over anyway.
            let _ = sender.send(cause);
            stop();
            let mut is_asked = matches!(cause, Interruption::Signal(_));
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
                    () = over.cancelled(), if ends_with_search => return,
                    () = sleep(STOP_PATIENCE), if !is_late => {
                        status.say("still stopping; press ctrl-C to exit at once");
                        (is_asked, is_late) = (true, true);
                    }
                }
            }
        });
        receiver
    }
}
