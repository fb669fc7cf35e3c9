//! How long a connection may last, and what is done when it has.

use std::time::Duration;

use crate::{activity::Snapshot, counts::Closed};

/// How long the calls of a closing connection may take to send their cursors once their searches
/// were stopped. A search stops within a slice, so nearly all of this time is for a very busy
/// machine.
const NOTICE: Duration = Duration::from_secs(1);

/// Time limits of a connection. The first three start where the one before ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Until it has finished its handshakes, TLS's and HTTP/2's. By default 10 s.
    pub handshake: Duration,
    /// Until it makes its first call. By default 30 s.
    pub first_request: Duration,
    /// With no call open. By default 15 min.
    pub idle: Duration,
    /// With calls open all of which wait for their reader. By default 5 min.
    pub unread: Duration,
    /// In all; without one it may last for ever, which is the default: a search may take a week.
    pub age: Option<Duration>,
    /// For calls that are open when the server asks the client to close it. By default 30 s.
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

/// What a connection's task has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing until then, counted from the connection's beginning.
    Wait(Duration),
    /// Send GOAWAY, so that the client makes no more calls, and continue.
    Leave(Closed),
    /// Stop the searches of its calls.
    Stop,
    /// Close it.
    Cut(Closed),
}

/// What a connection has come to. Times are counted from its beginning.
#[derive(Debug)]
pub(crate) struct Lifetime {
    limits: Lifetimes,
    /// Maximum time for which the socket may be full.
    blocked: Duration,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Serving,
    /// For others to see to.
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
    /// Until when the handshakes must have ended, counted from the connection's beginning, and why it is closed
    /// otherwise.
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

    /// The server as a whole is leaving: whoever says so sees to the calls, and to connections that do not
    /// close.
    pub(crate) fn leave(&mut self) {
        self.stage = Stage::Left;
    }

    /// Why it is closing, if it is its own time that is over.
    pub(crate) fn why(&self) -> Option<Closed> {
        match self.stage {
            Stage::Serving | Stage::Left => None,
            Stage::Leaving { why, .. } | Stage::Stopping { why, .. } => Some(why),
        }
    }

    /// Returns what to do now. After a wait it may return the same wait again, because a call that
    /// begins or ends in the meantime does not wake the connection's task.
    pub(crate) fn step(&mut self, now: Duration, snapshot: Snapshot) -> Step {
        match self.stage {
            Stage::Serving => match self.due(snapshot) {
                // Nothing tells when it comes to stand otherwise, so it is looked at again before that could
                // matter.
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
                // The client cannot be told.
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

    /// Until when it may last with this activity, and why no longer.
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
                // It is busy.
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
    fn who_says_nothing_is_cut_and_who_asks_nothing_is_told() {
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

    /// Nothing wakes the connection's task when a handshake ends, so it has to look often enough.
    #[test]
    fn limits_below_that_of_the_handshake_count_from_the_end_of_the_handshake() {
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
    fn idle_and_unread_connections_leave_and_busy_ones_stay() {
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
        // Who is idle may call at once, and leave that unread.
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
    fn a_client_that_takes_nothing_is_cut() {
        let busy = Snapshot {
            open: 2,
            blocked: Some(seconds(930)),
            ..IDLE
        };
        let mut lifetime = Lifetime::new(LIMITS, BLOCKED);
        // Nobody tells when it comes to be blocked.
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
    fn age_comes_to_all_and_a_server_that_leaves_to_none() {
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
        // An age below the limit of the handshake; the client can be told only once it speaks HTTP/2.
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
