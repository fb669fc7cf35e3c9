//! Metrics of connections.

use std::{fmt, time::Duration};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

/// Why the server closed or rejected a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Closed {
    /// The maximum number of connections was open, and none of them was silent.
    TooMany,
    /// The maximum number of connections of its address was open, and none of them was silent.
    TooManyOfAddress,
    /// Its address opened connections too fast.
    TooFast,
    /// It had sent nothing yet, and its place was needed for another connection.
    MadeRoom,
    /// It sent nothing, or did not finish its handshake, in time.
    Handshake,
    /// Its TLS handshake failed.
    Tls,
    /// It made no call in time.
    NoRequest,
    /// It had no open call for too long.
    Idle,
    /// It reached the maximum age.
    Age,
    /// For too long, the client read none of its open responses.
    Unread,
    /// Too many of its streams were reset, for too long.
    TooManyResets,
    /// It sent too many frames that neither begin nor reset a stream, for too long.
    TooManyControlFrames,
    /// The HTTP/2 library closed it (ENHANCE_YOUR_CALM). Examples: too many calls were cancelled
    /// before they were accepted, too many streams were reset because of the client's errors, or
    /// there were too many CONTINUATION or small DATA frames.
    Calm,
    /// The client broke HTTP/2's rules.
    Broken,
    /// It did not answer a keepalive ping in time, or its socket was full for too long.
    Keepalive,
}

impl Closed {
    const ALL: [Closed; 15] = [
        Closed::TooMany,
        Closed::TooManyOfAddress,
        Closed::TooFast,
        Closed::MadeRoom,
        Closed::Handshake,
        Closed::Tls,
        Closed::NoRequest,
        Closed::Idle,
        Closed::Age,
        Closed::Unread,
        Closed::TooManyResets,
        Closed::TooManyControlFrames,
        Closed::Calm,
        Closed::Broken,
        Closed::Keepalive,
    ];

    /// Returns the reason as it appears in the metrics and the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Closed::TooMany => "too_many",
            Closed::TooManyOfAddress => "too_many_of_address",
            Closed::TooFast => "too_fast",
            Closed::MadeRoom => "made_room",
            Closed::Handshake => "handshake",
            Closed::Tls => "tls",
            Closed::NoRequest => "no_request",
            Closed::Idle => "idle",
            Closed::Age => "age",
            Closed::Unread => "unread",
            Closed::TooManyResets => "too_many_resets",
            Closed::TooManyControlFrames => "too_many_control_frames",
            Closed::Calm => "calm",
            Closed::Broken => "broken",
            Closed::Keepalive => "keepalive",
        }
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Metrics of connections. Clones share them.
#[derive(Clone, Debug)]
pub struct Counts {
    open: Gauge,
    accepted: Counter,
    closed: Family<[(&'static str, &'static str); 1], Counter>,
    throttled_seconds: Counter<f64, std::sync::atomic::AtomicU64>,
}

impl Default for Counts {
    fn default() -> Counts {
        let closed = Family::<_, Counter>::default();
        // All counters exist from the start, so that a first event shows as an increase.
        for why in Closed::ALL {
            let _ = closed.get_or_create(&[("reason", why.as_str())]);
        }
        Counts {
            open: Gauge::default(),
            accepted: Counter::default(),
            closed,
            throttled_seconds: Counter::default(),
        }
    }
}

impl Counts {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("connections", "Open connections", self.open.clone());
        registry.register(
            "connections_accepted",
            "Accepted connections",
            self.accepted.clone(),
        );
        registry.register(
            "connections_closed",
            "Connections that the server closed or rejected, by reason",
            self.closed.clone(),
        );
        registry.register_with_unit(
            "throttled",
            "Time for which rate limits paused reading, in seconds, summed over all connections",
            Unit::Seconds,
            self.throttled_seconds.clone(),
        );
    }

    pub(crate) fn opened(&self) {
        self.accepted.inc();
        self.open.inc();
    }

    pub(crate) fn gone(&self) {
        self.open.dec();
    }

    pub(crate) fn closed(&self, why: Closed) {
        self.closed.get_or_create(&[("reason", why.as_str())]).inc();
    }

    pub(crate) fn throttled(&self, wait: Duration) {
        self.throttled_seconds.inc_by(wait.as_secs_f64());
    }
}
