//! Settings of a server: plain values, with the reasons for their defaults.

use std::{
    collections::HashMap,
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use hashfinder_fleet_nats::BrokerOptions;
use hashfinder_search::{Kernel, Quota};
use hashfinder_transport::{self as transport, ClientName, TlsFiles};
use http::Uri;

use crate::{auth, operations};

/// Maximum weight of a client: its share of the cores, relative to the default share of 1. With a
/// larger weight, other clients would wait half a second or longer between two of their slices.
pub const MAXIMUM_WEIGHT: u32 = 1000;

/// Number of open calls for each RPC that may search, by default. Most calls of other kinds end at
/// once.
const OPEN_CALLS_PER_RPC: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// Minimum of the default limit on open calls. Even where few RPCs may search, many clients may
/// watch or list searches. An open call takes about 10 kB.
const LEAST_OPEN_CALLS: NonZeroUsize = NonZeroUsize::new(1000).unwrap();

/// The fleet of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct FleetSettings {
    /// How to connect to its broker.
    pub broker: BrokerOptions,
    /// Whether its agents may lie, so that what they report is checked.
    pub is_untrusted: bool,
}

/// Settings of a server. By default, the server listens on a free port of the loopback address, and
/// identifies clients by their IP addresses.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where the server listens. With `None`, it serves only the connections that are passed to
    /// [`serve_connection`](crate::Server::serve_connection).
    pub listen: Option<Listen>,
    /// Where the server serves metrics and health over HTTP/1. Default: nowhere. Requires `listen`.
    pub metrics: Option<HostPort>,
    /// The files for TLS. Default: no TLS.
    pub tls: Option<TlsFiles>,
    /// Credentials that the server accepts. Default: none.
    pub auth: auth::Settings,
    /// Clients that may list and cancel the searches of all clients. So may the bearers of API keys
    /// with the role `operator` and, on a Unix socket, root and the user who runs the server.
    pub operators: Vec<ClientName>,
    /// Where the server sends the spans of calls. Default: nowhere.
    pub traces: Option<Traces>,
    /// Limits of searches, and the threads and the kernel that run them.
    pub searches: Searches,
    /// Where operations are saved, and their limits. Default: the server saves none.
    pub operations: Option<operations::Settings>,
    /// The fleet that works on its searches. Default: none.
    pub fleet: Option<FleetSettings>,
    /// Limits of calls before authentication.
    pub calls: Calls,
    /// Limits of connections.
    pub connections: transport::Settings,
    /// Grace period for open calls during a drain. Default: 5 s, enough for calls that are nearly
    /// done. Searches that last longer are stopped and get a cursor.
    pub drain_grace: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            listen: Some(Listen::default()),
            metrics: None,
            tls: None,
            auth: auth::Settings::default(),
            operators: Vec::new(),
            traces: None,
            searches: Searches::default(),
            operations: None,
            fleet: None,
            calls: Calls::default(),
            connections: transport::Settings::default(),
            drain_grace: Duration::from_secs(5),
        }
    }
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// On a TCP port.
    Tcp {
        /// The host and the port.
        at: HostPort,
        /// Whether other processes may listen on the same port (SO_REUSEPORT).
        reuse_port: bool,
    },
    /// On a Unix socket with this path. Every user with write permission on it may connect.
    Unix(PathBuf),
}

impl Default for Listen {
    fn default() -> Listen {
        Listen::Tcp {
            at: HostPort {
                host: "127.0.0.1".to_owned(),
                port: 0,
            },
            reuse_port: false,
        }
    }
}

/// A host and a port to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// A name or an address. An IPv6 address may have brackets.
    pub host: String,
    /// The port. With 0, the system chooses a free one.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = &'static str;

    /// Parses `HOST:PORT`.
    fn from_str(text: &str) -> Result<HostPort, &'static str> {
        let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        let parts = parts.and_then(|(host, port)| Some((host, port.parse().ok()?)));
        let (host, port) = parts.ok_or("expected HOST:PORT, for example 127.0.0.1:9464")?;
        // Otherwise the last group of an IPv6 address would be taken for a port.
        if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
            return Err("put an IPv6 address in brackets, for example [::1]:9464");
        }
        Ok(HostPort {
            host: host.to_owned(),
            port,
        })
    }
}

/// Which calls are traced, and where their spans are sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Traces {
    /// Address of an OTLP collector, `http://HOST:PORT`. Spans are sent over gRPC, without TLS.
    pub collector: Uri,
    /// Share of the calls without a trace context that are traced, from 0 to 1. A call with a trace
    /// context is traced if the context has the sampled flag.
    pub share: f64,
}

/// Limits of searches, and the threads and the kernel that run them.
#[derive(Clone, Debug, PartialEq)]
pub struct Searches {
    /// Number of threads that search. Default: one for each core.
    pub workers: Option<NonZeroUsize>,
    /// The hash kernel. Default: the fastest one on this machine.
    pub kernel: Option<Kernel>,
    /// Hash budget of one RPC. Default: 10^12, within which almost every search for eight letters
    /// ends (one hash in 6e10 contains them).
    pub maximum_hashes: NonZeroU64,
    /// Status of an RPC of the reference contract whose budget is spent. Default: CANCELLED.
    pub budget_status: BudgetStatus,
    /// Maximum number of RPCs that search at a time. Default: 1,000. Each takes a few kilobytes.
    /// They share the cores, so the more there are, the longer each takes.
    pub concurrent_rpcs: NonZeroUsize,
    /// Maximum number of searches of a client at a time. Default: three quarters of
    /// `concurrent_rpcs`, to leave room for other clients.
    pub searches_of_client: Option<NonZeroUsize>,
    /// Maximum number of hashes per second of a client, on average. Unused hashes are saved for up
    /// to a minute. Default: no limit.
    pub hashes_per_second_of_client: Option<NonZeroU64>,
    /// Weights of clients, if not 1: their shares of the cores, at most [`MAXIMUM_WEIGHT`].
    pub weights: HashMap<ClientName, NonZeroU32>,
    /// Quotas of individual clients, which replace `searches_of_client` and
    /// `hashes_per_second_of_client`.
    pub quotas: HashMap<ClientName, Quota>,
    /// Maximum number of candidates that wait for the reader of a stream. At this number, the
    /// search pauses. Default: 256, a few frames, which take a few kilobytes for each search.
    pub queue_length: NonZeroUsize,
}

impl Default for Searches {
    fn default() -> Searches {
        const MAXIMUM_HASHES: NonZeroU64 = NonZeroU64::new(1_000_000_000_000).unwrap();
        const CONCURRENT_RPCS: NonZeroUsize = NonZeroUsize::new(1000).unwrap();
        const QUEUE_LENGTH: NonZeroUsize = NonZeroUsize::new(256).unwrap();
        Searches {
            workers: None,
            kernel: None,
            maximum_hashes: MAXIMUM_HASHES,
            budget_status: BudgetStatus::default(),
            concurrent_rpcs: CONCURRENT_RPCS,
            searches_of_client: None,
            hashes_per_second_of_client: None,
            weights: HashMap::new(),
            quotas: HashMap::new(),
            queue_length: QUEUE_LENGTH,
        }
    }
}

impl Searches {
    /// Returns the maximum number of searches of a client at a time.
    pub(crate) fn searches_of_client(&self) -> usize {
        let all = self.concurrent_rpcs.get();
        (self.searches_of_client).map_or(all - all / 4, NonZeroUsize::get)
    }
}

/// Status code for a spent hash budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BudgetStatus {
    /// CANCELLED, like the reference server.
    #[default]
    Cancelled,
    /// RESOURCE_EXHAUSTED, as gRPC's documentation of the status codes suggests.
    ResourceExhausted,
}

/// Limits of calls before authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calls {
    /// Maximum number of calls that an address may begin per second, and at once. Default: 5,000,
    /// an eighth of what two cores answer. Rejecting 5,000 calls per second takes a seventh of a
    /// core. An address with more calls belongs to a proxy or an attacker.
    pub per_second_of_address: NonZeroU32,
    /// Maximum number of open calls of all kinds, at about 10 kB each. Default: four times
    /// [`Searches::concurrent_rpcs`], and at least 1,000.
    pub open: Option<NonZeroUsize>,
    /// Maximum number of open calls of one address, or [`ALL_OPEN_CALLS`]. Default: a quarter of
    /// all.
    pub open_of_address: Option<NonZeroUsize>,
    /// Maximum number of rejected credentials of an address per second; ten times this number at
    /// once. Default: 10, enough for a program that tries an old key a few times. To guess a key,
    /// an attacker would need 2^256 attempts.
    pub refused_credentials_per_second: NonZeroU32,
    /// Maximum time for a whole request to arrive; if the method takes several messages, for the
    /// first of them. Default: 10 s, enough on a network that loses half of the packets. Clients
    /// send the message right after the headers.
    pub request_timeout: Duration,
}

impl Default for Calls {
    fn default() -> Calls {
        const PER_SECOND: NonZeroU32 = NonZeroU32::new(5000).unwrap();
        const REFUSED_CREDENTIALS: NonZeroU32 = NonZeroU32::new(10).unwrap();
        Calls {
            per_second_of_address: PER_SECOND,
            open: None,
            open_of_address: None,
            refused_credentials_per_second: REFUSED_CREDENTIALS,
            request_timeout: Duration::from_secs(10),
        }
    }
}

/// Value of [`Calls::open_of_address`] with which one address may have all open calls.
pub const ALL_OPEN_CALLS: NonZeroUsize = NonZeroUsize::MAX;

impl Calls {
    /// Returns the defaults for a server whose clients come through one proxy, and share its
    /// address.
    ///
    /// This address may have all open calls, and its rate limits are
    /// [`PROXY_FACTOR`](transport::PROXY_FACTOR) times as high.
    #[must_use]
    pub fn behind_proxy() -> Calls {
        let default = Calls::default();
        let times = |rate: NonZeroU32| rate.saturating_mul(transport::PROXY_FACTOR);
        Calls {
            per_second_of_address: times(default.per_second_of_address),
            open_of_address: Some(ALL_OPEN_CALLS),
            refused_credentials_per_second: times(default.refused_credentials_per_second),
            ..default
        }
    }

    /// Returns the maximum number of open calls in total, and that of one address. `rpcs` is the
    /// maximum number of RPCs that search.
    pub(crate) fn open(&self, rpcs: NonZeroUsize) -> (NonZeroUsize, NonZeroUsize) {
        let default = rpcs
            .saturating_mul(OPEN_CALLS_PER_RPC)
            .max(LEAST_OPEN_CALLS);
        let all = self.open.unwrap_or(default);
        let quarter = NonZeroUsize::new(all.get() / 4).unwrap_or(NonZeroUsize::MIN);
        match self.open_of_address.unwrap_or(quarter) {
            ALL_OPEN_CALLS => (all, all),
            of_address => (all, of_address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_a_proxy_one_address_may_have_all_open_calls() {
        let rpcs = Searches::default().concurrent_rpcs;
        let (all, of_address) = Calls::default().open(rpcs);
        assert_eq!((all.get(), of_address.get()), (4000, 1000));
        let (all, of_address) = Calls::behind_proxy().open(rpcs);
        assert_eq!((all.get(), of_address.get()), (4000, 4000));
    }
}
