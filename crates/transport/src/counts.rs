//! What is counted of connections.

use std::{fmt, time::Duration};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

/// Why the server closed a connection, or did not take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Closed {
    /// There were as many as there may be.
    TooMany,
    /// There were as many of its address as there may be.
    TooManyOfAddress,
    /// Its address begins too many.
    TooFast,
    /// It had said nothing yet, and another one needed its place.
    MadeRoom,
    /// It had said nothing, or had not finished its handshake, in time.
    Handshake,
    /// Its TLS handshake failed.
    Tls,
    /// It made no call in time.
    NoRequest,
    /// It had made no call for long.
    Idle,
    /// It was as old as connections may get.
    Age,
    /// None of its calls' responses was read.
    Unread,
    /// Streams were reset on it, too many for too long.
    TooManyResets,
    /// Frames came that are no calls, too many for too long.
    TooManyControlFrames,
    /// The HTTP/2 library had enough of it: calls were taken back before they were begun, or the client's errors
    /// reset too many.
    Calm,
    /// The client broke HTTP/2's rules.
    Broken,
    /// It did not answer in time whether it is still there.
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

    /// As metrics and the log have it.
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

/// Counts of connections; clones count together.
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
        // There from the beginning, so that the first one is seen as an increase.
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
    /// Adds them to a registry of metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "connections",
            "Connections that are open",
            self.open.clone(),
        );
        registry.register(
            "connections_accepted",
            "Connections that were taken",
            self.accepted.clone(),
        );
        registry.register(
            "connections_closed",
            "Connections that the server closed or did not take, by why",
            self.closed.clone(),
        );
        registry.register_with_unit(
            "throttled",
            "For how long connections in all were not read because too much came from them",
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
