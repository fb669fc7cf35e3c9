//! Time limits of connections, and how a connection that reaches one is closed.

use std::time::Duration;

use crate::{activity::Snapshot, counts::Closed};

/// Time between stopping the searches of a closing connection and closing it, in which its calls
/// send their cursors. A search stops within a slice, so nearly all of this time is margin for a
/// very busy machine.
const NOTICE: Duration = Duration::from_secs(1);

/// Time limits of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Maximum time from the start of a connection to the end of its TLS and HTTP/2 handshakes.
    /// Default: 10 s.
    pub handshake: Duration,
    /// Maximum time from the end of the handshakes to the first call. Default: 30 s.
    pub first_request: Duration,
    /// Maximum time without an open call, counted from the end of the last one. Default: 15 min.
    pub idle: Duration,
    /// Maximum time for which every open call waits for the client to read its response, counted
    /// from the last time that any call began, ended, sent or was read. Default: 5 min.
    pub unread: Duration,
    /// Maximum age of a connection. Default: none, because a search may take a week.
    pub age: Option<Duration>,
    /// Time for the open calls to end after the server has asked the client to close the
    /// connection. Default: 30 s.
    pub grace: Duration,
}

impl Default for Lifetimes {
    fn default() -> Lifetimes {
        Lifetimes {
            handshake: Duration::from_secs(10),
            first_request: Duration::from_secs(30),
            idle: Duration::from_secs(15 * 60),
            unread: Duration::from_secs(5 * 60),
            age: None,
            grace: Duration::from_secs(30),
        }
    }
}

/// Next action of a connection's task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Do nothing until this time after the connection's start.
    Wait(Duration),
    /// Send GOAWAY, so that the client makes no more calls. Its open calls continue.
    Leave(Closed),
    /// Stop the searches of the connection's calls.
    Stop,
    /// Close the connection.
    Cut(Closed),
}

/// State of a connection with regard to its time limits. Times are counted from the start of the
/// connection.
#[derive(Debug)]
pub(crate) struct Lifetime {
    limits: Lifetimes,
    /// Maximum time for which the socket may stay full.
    blocked: Duration,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Serving,
    /// The whole server shuts down. No time limit applies any more: the caller of `leave` is
    /// responsible for the calls, and for connections that do not close.
    Left,
    Leaving {
        why: Closed,
        until: Duration,
    },
    Stopping {
        why: Closed,
        until: Duration,
    },
}

impl Lifetimes {
    /// Returns the deadline for the handshakes, counted from the connection's start, and the reason
    /// for closing a connection that misses it.
    pub(crate) fn opening(&self) -> (Duration, Closed) {
        match self.age {
            Some(age) if age < self.handshake => (age, Closed::Age),
            _ => (self.handshake, Closed::Handshake),
        }
    }
}

impl Lifetime {
    pub(crate) fn new(limits: Lifetimes, blocked: Duration) -> Lifetime {
        Lifetime {
            limits,
            blocked,
            stage: Stage::Serving,
        }
    }

    /// Lifts all time limits, because the whole server shuts down. From then on the caller is
    /// responsible for the calls, and for connections that do not close.
    pub(crate) fn leave(&mut self) {
        self.stage = Stage::Left;
    }

    /// Returns why the connection is being closed, if one of its time limits has passed.
    pub(crate) fn why(&self) -> Option<Closed> {
        match self.stage {
            Stage::Serving | Stage::Left => None,
            Stage::Leaving { why, .. } | Stage::Stopping { why, .. } => Some(why),
        }
    }

    /// Returns what to do now. After a wait this may return another wait: changes of activity do
    /// not wake the connection's task, so it has to check regularly.
    pub(crate) fn step(&mut self, now: Duration, snapshot: Snapshot) -> Step {
        match self.stage {
            Stage::Serving => match self.due(snapshot) {
                // A change of activity does not wake the task. So the task checks again within the
                // shortest time limit that such a change could start.
                (at, _) if now < at => {
                    let Lifetimes {
                        first_request,
                        idle,
                        unread,
                        ..
                    } = self.limits;
                    let mut soonest = idle.min(unread).min(self.blocked);
                    if !snapshot.requested {
                        soonest = soonest.min(first_request);
                    }
                    Step::Wait(at.min(now.saturating_add(soonest)))
                }
                // A client that has not spoken HTTP/2 cannot receive a GOAWAY.
                (_, why) if snapshot.greeted.is_none() => Step::Cut(why),
                (_, why @ Closed::Keepalive) => Step::Cut(why),
                (_, why) => {
                    self.stage = Stage::Leaving {
                        why,
                        until: now.saturating_add(self.limits.grace),
                    };
                    Step::Leave(why)
                }
            },
            Stage::Left => Step::Wait(Duration::MAX),
            Stage::Leaving { until, .. } if now < until => Step::Wait(until),
            Stage::Leaving { why, .. } => {
                self.stage = Stage::Stopping {
                    why,
                    until: now.saturating_add(NOTICE),
                };
                Step::Stop
            }
            Stage::Stopping { until, .. } if now < until => Step::Wait(until),
            Stage::Stopping { why, .. } => Step::Cut(why),
        }
    }

    /// Returns when the connection must close if its activity does not change, and the reason.
    fn due(&self, snapshot: Snapshot) -> (Duration, Closed) {
        let limits = &self.limits;
        let (from, limit, why) =
            if let (Some(greeted), false) = (snapshot.greeted, snapshot.requested) {
                (greeted, limits.first_request, Closed::NoRequest)
            } else if !snapshot.requested {
                (Duration::ZERO, limits.handshake, Closed::Handshake)
            } else if snapshot.open == 0 {
                (snapshot.changed, limits.idle, Closed::Idle)
            } else if snapshot.unread >= snapshot.open {
                (snapshot.changed, limits.unread, Closed::Unread)
            } else {
                // At least one open call does not wait for its reader, so the connection is busy.
                (Duration::MAX, Duration::ZERO, Closed::Idle)
            };
        let due = (from.saturating_add(limit), why);
        let age = limits.age.map(|age| (age, Closed::Age));
        let blocked = snapshot.blocked.map(|since| {
            let until = since.saturating_add(self.blocked);
            (until, Closed::Keepalive)
        });
        let all = [Some(due), age, blocked].into_iter().flatten();
        all.min_by_key(|(at, _)| *at).unwrap_or(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const LIMITS: Lifetimes = Lifetimes {
        handshake: seconds(10),
        first_request: seconds(30),
        idle: seconds(100),
        unread: seconds(60),
        age: None,
        grace: seconds(5),
    };

    const BLOCKED: Duration = seconds(40);

    const IDLE: Snapshot = Snapshot {
        greeted: Some(seconds(1)),
        requested: true,
        open: 0,
        unread: 0,
        changed: seconds(50),
        blocked: None,
    };

    #[test]
    fn silent_connections_are_cut_and_unused_ones_get_a_goaway() {
        let mut silent = Lifetime::new(LIMITS, BLOCKED);
        let mut snapshot = Snapshot {
            greeted: None,
            requested: false,
            changed: Duration::ZERO,
            ..IDLE
        };
        assert_eq!(silent.step(seconds(0), snapshot), Step::Wait(seconds(10)));
        assert_eq!(
            silent.step(seconds(10), snapshot),
            Step::Cut(Closed::Handshake)
        );
        // The time for the first request starts at the end of the handshake.
        snapshot.greeted = Some(seconds(2));
        let mut greeted = Lifetime::new(LIMITS, BLOCKED);
        assert_eq!(greeted.step(seconds(10), snapshot), Step::Wait(seconds(32)));
        let leave = Step::Leave(Closed::NoRequest);
        assert_eq!(greeted.step(seconds(32), snapshot), leave);
        assert_eq!(greeted.step(seconds(32), snapshot), Step::Wait(seconds(37)));
        assert_eq!(greeted.step(seconds(37), snapshot), Step::Stop);
        assert_eq!(greeted.step(seconds(37), snapshot), Step::Wait(seconds(38)));
        let cut = Step::Cut(Closed::NoRequest);
        assert_eq!(greeted.step(seconds(38), snapshot), cut);
    }

    /// A change of activity does not wake the connection's task, so the task has to check often
    /// enough.
    #[test]
    fn limits_below_the_handshake_limit_count_from_the_end_of_the_handshake() {
        let limits = Lifetimes {
            first_request: seconds(2),
            ..LIMITS
        };
        let mut snapshot = Snapshot {
            greeted: None,
            requested: false,
            changed: Duration::ZERO,
            ..IDLE
        };
        let mut lifetime = Lifetime::new(limits, BLOCKED);
        assert_eq!(lifetime.step(seconds(0), snapshot), Step::Wait(seconds(2)));
        snapshot.greeted = Some(seconds(1));
        assert_eq!(lifetime.step(seconds(2), snapshot), Step::Wait(seconds(3)));
        let leave = Step::Leave(Closed::NoRequest);
        assert_eq!(lifetime.step(seconds(3), snapshot), leave);
    }

    #[test]
    fn idle_and_unread_connections_close_and_busy_ones_stay() {
        let mut idle = Lifetime::new(LIMITS, BLOCKED);
        assert_eq!(idle.step(seconds(149), IDLE), Step::Wait(seconds(150)));
        assert_eq!(idle.step(seconds(150), IDLE), Step::Leave(Closed::Idle));
        let busy = Snapshot {
            open: 2,
            unread: 1,
            ..IDLE
        };
        let mut lifetime = Lifetime::new(LIMITS, BLOCKED);
        assert_eq!(lifetime.step(seconds(900), busy), Step::Wait(seconds(940)));
        // An idle client may begin a call at any time and stop reading, so the task checks again
        // within the shortest time limit.
        assert_eq!(lifetime.step(seconds(60), IDLE), Step::Wait(seconds(100)));
        let unread = Snapshot {
            unread: 2,
            changed: seconds(930),
            ..busy
        };
        assert_eq!(
            lifetime.step(seconds(960), unread),
            Step::Wait(seconds(990))
        );
        let leave = Step::Leave(Closed::Unread);
        assert_eq!(lifetime.step(seconds(990), unread), leave);
    }

    #[test]
    fn a_client_that_stops_reading_its_socket_is_cut() {
        let busy = Snapshot {
            open: 2,
            blocked: Some(seconds(930)),
            ..IDLE
        };
        let mut lifetime = Lifetime::new(LIMITS, BLOCKED);
        // The task is not woken when the socket becomes full.
        let soon = Step::Wait(seconds(940));
        assert_eq!(
            lifetime.step(
                seconds(900),
                Snapshot {
                    blocked: None,
                    ..busy
                }
            ),
            soon
        );
        assert_eq!(lifetime.step(seconds(969), busy), Step::Wait(seconds(970)));
        let cut = Step::Cut(Closed::Keepalive);
        assert_eq!(lifetime.step(seconds(970), busy), cut);
    }

    #[test]
    fn the_age_limit_applies_until_the_server_shuts_down() {
        let limits = Lifetimes {
            age: Some(seconds(70)),
            ..LIMITS
        };
        let busy = Snapshot { open: 1, ..IDLE };
        let mut old = Lifetime::new(limits, BLOCKED);
        assert_eq!(old.step(seconds(60), busy), Step::Wait(seconds(70)));
        assert_eq!(old.step(seconds(70), busy), Step::Leave(Closed::Age));
        let young = Lifetimes {
            age: Some(seconds(3)),
            ..LIMITS
        };
        // The maximum age is below the handshake limit. Only a client that speaks HTTP/2 gets a
        // GOAWAY.
        let mut lifetime = Lifetime::new(young, BLOCKED);
        assert_eq!(lifetime.step(seconds(0), IDLE), Step::Wait(seconds(3)));
        assert_eq!(lifetime.step(seconds(3), IDLE), Step::Leave(Closed::Age));
        let silent = Snapshot {
            greeted: None,
            requested: false,
            ..IDLE
        };
        let mut lifetime = Lifetime::new(young, BLOCKED);
        assert_eq!(lifetime.step(seconds(0), silent), Step::Wait(seconds(3)));
        assert_eq!(lifetime.step(seconds(3), silent), Step::Cut(Closed::Age));
        let mut leaving = Lifetime::new(limits, BLOCKED);
        leaving.leave();
        let forever = Step::Wait(Duration::MAX);
        assert_eq!(leaving.step(seconds(10_000), busy), forever);
    }
}
