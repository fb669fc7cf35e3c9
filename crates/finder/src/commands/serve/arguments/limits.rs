//! The detailed limits of `serve`, which only the file and the environment can set.

use std::{
    collections::HashMap,
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    str::FromStr,
    time::Duration,
};

use clap::{Args, ValueEnum};
use hashfinder_search::Quota;
use hashfinder_server::{Calls, Searches, operations};
use hashfinder_transport::{
    self as transport, ClientName, FloodLimits, LEAST_HEADER_LIST, Lifetimes,
};

use crate::arguments::values::{duration, number, positive, positive_duration, shown};

/// Returns the default settings of operations, wherever they are saved.
fn operations() -> operations::Settings {
    operations::Settings::at(operations::Place::Fleet)
}

/// The table `[serve.limits]` of the file. `config default` prints the doc comments of its fields.
#[derive(Args, Debug)]
pub(crate) struct LimitsArguments {
    /// Status of an RPC of the reference contract whose hash budget is spent: cancelled, as the
    /// reference server has it, or resource-exhausted, as gRPC defines its status codes
    #[arg(long, value_enum, value_name = "STATUS", default_value_t)]
    budget_status: BudgetStatus,

    /// Maximum number of candidates that wait for the reader of a stream. At this number, the
    /// search pauses. 256 candidates are a few frames, and a few kilobytes for each search.
    #[arg(long, value_name = "N", default_value_t = Searches::default().queue_length)]
    #[arg(value_parser = positive::<NonZeroUsize>)]
    queue_length: NonZeroUsize,

    /// Maximum number of searches of single clients, instead of maximum-searches-per-client. CLIENT
    /// is written as for client-weight.
    #[arg(long, value_name = "CLIENT=N", value_parser = of_client::<NonZeroUsize>)]
    client_searches: Vec<(ClientName, NonZeroUsize)>,

    /// Maximum number of hashes per second of single clients, instead of maximum-hashes-per-second.
    /// CLIENT is written as for client-weight.
    #[arg(long, value_name = "CLIENT=N", value_parser = of_client::<NonZeroU64>)]
    client_hashes_per_second: Vec<(ClientName, NonZeroU64)>,

    /// Hash budget of each operation. 10^16 hashes take two cores about a year.
    #[arg(long, value_name = "N", default_value_t = operations().maximum_hashes)]
    #[arg(value_parser = positive::<NonZeroU64>)]
    maximum_hashes_per_operation: NonZeroU64,

    /// Maximum number of operations of one client that have not ended. Operations of
    /// all clients may take three quarters of maximum-concurrent-rpcs, and wait if these are taken.
    #[arg(long, value_name = "N", default_value_t = operations().running_of_client)]
    #[arg(value_parser = positive::<NonZeroU64>)]
    maximum_running_operations_per_client: NonZeroU64,

    /// Maximum number of saved operations of one client. The server rejects another one, and
    /// deletes none to make room. 1000 take about a megabyte.
    #[arg(long, value_name = "N", default_value_t = operations().saved_of_client)]
    #[arg(value_parser = positive::<NonZeroU64>)]
    maximum_saved_operations_per_client: NonZeroU64,

    /// Maximum number of candidates of an operation. It ends with the last one, and can be resumed.
    /// 10000 take about half a megabyte.
    #[arg(long, value_name = "N", default_value_t = operations().candidates)]
    #[arg(value_parser = positive::<NonZeroU64>)]
    maximum_candidates_per_operation: NonZeroU64,

    /// Share of the calls without a trace context that are traced, from 0 to 1. Calls with a trace
    /// context are traced if their caller asks for it.
    #[arg(long, value_name = "SHARE", default_value = "1", value_parser = share)]
    pub(super) otlp_sampling: f64,

    /// Maximum number of calls that one address begins per second, and at once [default: 5000, or
    /// 80000 with behind-proxy]. It is checked before authentication. IPv6 addresses with the same
    /// first 64 bits count as one address. On a Unix socket, each user counts as an address. 5000
    /// calls are an eighth of what two cores answer.
    #[arg(long, value_name = "N", value_parser = positive::<NonZeroU32>)]
    maximum_calls_per_second_per_address: Option<NonZeroU32>,

    /// Maximum number of open calls of all kinds [default: four times maximum-concurrent-rpcs, at
    /// least 1000]. Each takes about 10 kB until its response is sent.
    #[arg(long, value_name = "N", value_parser = positive::<NonZeroUsize>)]
    maximum_open_calls: Option<NonZeroUsize>,

    /// Maximum number of open calls of one address [default: a quarter of all, or all with
    /// behind-proxy]. One address leaves room for others.
    #[arg(long, value_name = "N", value_parser = positive::<NonZeroUsize>)]
    maximum_open_calls_per_address: Option<NonZeroUsize>,

    /// Maximum number of wrong credentials of one address per second, and ten times as many at once
    /// [default: 10, or 160 with behind-proxy]. Beyond that, the server rejects all credentials of
    /// the address without checking them, so that further guesses cost the server nothing.
    #[arg(long, value_name = "N", value_parser = positive::<NonZeroU32>)]
    maximum_refused_credentials_per_second: Option<NonZeroU32>,

    /// Maximum time for a request to arrive completely; of a stream of requests, the first. After
    /// that, the call ends with DEADLINE_EXCEEDED. 10 s are enough for a network that loses half of
    /// its packets.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    #[arg(default_value = shown(Calls::default().request_timeout))]
    request_timeout: Duration,

    /// Maximum number of connections [default: 4096, or three quarters of the files that the
    /// process may open]. At the maximum, a new connection replaces the oldest one that
    /// has not sent anything yet; if there is none, the server closes the new one. A connection
    /// takes 2 KiB until it first sends something, and 20 KiB from then on.
    #[arg(long, value_name = "N", value_parser = positive::<NonZeroUsize>)]
    maximum_connections: Option<NonZeroUsize>,

    /// Maximum number of connections of one address [default: a quarter of all, or all with
    /// behind-proxy]. One address leaves room for others.
    #[arg(long, value_name = "N", value_parser = positive::<NonZeroUsize>)]
    maximum_connections_per_address: Option<NonZeroUsize>,

    /// Maximum number of connections that one address begins per second, and at once [default: 200,
    /// or 3200 with behind-proxy]. The server closes the others at once. 200 TLS handshakes take a
    /// twentieth of a core.
    #[arg(long, value_name = "N", value_parser = positive::<NonZeroU32>)]
    maximum_connections_per_second_per_address: Option<NonZeroU32>,

    /// Maximum number of open calls of one connection [default: 1000, or 16000 with behind-proxy].
    /// If three quarters of the maximum for its address are fewer, that applies instead, so that
    /// the address's other connections find room.
    #[arg(long, value_name = "N", value_parser = positive::<NonZeroU32>)]
    maximum_streams_per_connection: Option<NonZeroU32>,

    /// Maximum number of calls that one connection begins per second, 100 of them at once [default:
    /// 2000, or 32000 with behind-proxy]. A call counts again for each 512 bytes of its headers.
    /// All connections of an address may begin four times as many. Beyond that, the server reads
    /// the connection more slowly.
    #[arg(long, value_name = "N", value_parser = positive::<NonZeroU32>)]
    maximum_streams_per_second: Option<NonZeroU32>,

    /// Maximum number of calls reset on one connection per second: by the client, which is how it
    /// cancels, or by the server because of the client's errors [default: 500, or 8000 with
    /// behind-proxy]. All connections of an address may have four times as many. Beyond that, the
    /// server reads the connection more slowly, and closes it after 10 s. People and programs
    /// cancel far less often; floods of resets (Rapid Reset) cost a server more than the client.
    #[arg(long, value_name = "N", value_parser = positive::<NonZeroU32>)]
    maximum_resets_per_second: Option<NonZeroU32>,

    /// Maximum number of frames of one connection per second that belong to no call, such as PING,
    /// SETTINGS and WINDOW_UPDATE; some are free with each call [default: 1000, or 16000 with
    /// behind-proxy]. All connections of an address may send four times as many. Beyond that, the
    /// server reads the connection more slowly, and closes it after 10 s. Such frames cost a server
    /// more than the client that floods it.
    #[arg(long, value_name = "N", value_parser = positive::<NonZeroU32>)]
    maximum_control_frames_per_second: Option<NonZeroU32>,

    /// Maximum length of a request's headers in bytes, as HTTP/2 counts them: names, values, and 32
    /// bytes for each field. gRPC's libraries accept 8 KiB; tokens that name many groups are
    /// longer.
    #[arg(long, value_name = "BYTES", default_value_t = transport::Settings::default().header_list)]
    #[arg(value_parser = number(LEAST_HEADER_LIST..=1 << 20))]
    maximum_header_list: u32,

    /// Maximum time for a connection's TLS and HTTP/2 handshakes. Silent and half-open connections
    /// make room after that.
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    #[arg(default_value = shown(Lifetimes::default().handshake))]
    handshake_timeout: Duration,

    /// Maximum time from the handshakes to the first call. Clients connect in order to call;
    /// connections that never do make room after that.
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    #[arg(default_value = shown(Lifetimes::default().first_request))]
    first_request_timeout: Duration,

    /// Maximum time without an open call. Forgotten connections make room after that.
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    #[arg(default_value = shown(Lifetimes::default().idle))]
    idle_timeout: Duration,

    /// Maximum time for which a response waits for its reader. After that, its search ends with a
    /// cursor. A connection whose responses all wait that long is closed.
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    #[arg(default_value = shown(Lifetimes::default().unread))]
    stream_stall_timeout: Duration,

    /// Maximum age of a connection, varied by up to a tenth [default: no limit]. It lets load
    /// balancers that balance connections move them. Calls that outlast connection-grace end with a
    /// cursor, so leave it unset where searches are long.
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    maximum_connection_age: Option<Duration>,

    /// Maximum time for the calls of a connection to end after the server has sent GOAWAY. A client
    /// need not close its connection; after that, the server does.
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    #[arg(default_value = shown(Lifetimes::default().grace))]
    connection_grace: Duration,

    /// Interval of keepalive pings. The searches of a client that vanished silently end after this
    /// interval and keepalive-timeout.
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    #[arg(default_value = shown(transport::Settings::default().keepalive_interval))]
    keepalive_interval: Duration,

    /// Maximum time for the answer to a keepalive ping. 10 s are enough for a network that loses
    /// packets; after that, the client counts as gone.
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    #[arg(default_value = shown(transport::Settings::default().keepalive_timeout))]
    keepalive_timeout: Duration,
}

/// Status of an RPC whose hash budget is spent.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum BudgetStatus {
    /// As the reference server does
    #[default]
    Cancelled,
    /// As gRPC defines its status codes
    ResourceExhausted,
}

impl LimitsArguments {
    /// Returns the settings of operations that are saved here.
    pub(super) fn operations(&self, place: operations::Place) -> operations::Settings {
        operations::Settings {
            place,
            maximum_hashes: self.maximum_hashes_per_operation,
            running_of_client: self.maximum_running_operations_per_client,
            saved_of_client: self.maximum_saved_operations_per_client,
            candidates: self.maximum_candidates_per_operation,
        }
    }

    pub(super) fn budget_status(&self) -> hashfinder_server::BudgetStatus {
        match self.budget_status {
            BudgetStatus::Cancelled => hashfinder_server::BudgetStatus::Cancelled,
            BudgetStatus::ResourceExhausted => hashfinder_server::BudgetStatus::ResourceExhausted,
        }
    }

    pub(super) fn queue_length(&self) -> NonZeroUsize {
        self.queue_length
    }

    /// Returns the limits of calls. Those that are not set get their defaults.
    pub(super) fn calls(&self, behind_proxy: bool) -> Calls {
        let default = match behind_proxy {
            true => Calls::behind_proxy(),
            false => Calls::default(),
        };
        Calls {
            per_second_of_address: (self.maximum_calls_per_second_per_address)
                .unwrap_or(default.per_second_of_address),
            open: self.maximum_open_calls.or(default.open),
            open_of_address: (self.maximum_open_calls_per_address).or(default.open_of_address),
            refused_credentials_per_second: (self.maximum_refused_credentials_per_second)
                .unwrap_or(default.refused_credentials_per_second),
            request_timeout: self.request_timeout,
        }
    }

    /// Returns the limits of connections. Those that are not set get their defaults.
    pub(super) fn connections(&self, behind_proxy: bool) -> transport::Settings {
        let default = match behind_proxy {
            true => transport::Settings::behind_proxy(),
            false => transport::Settings::default(),
        };
        transport::Settings {
            connections: self.maximum_connections.or(default.connections),
            connections_of_address: (self.maximum_connections_per_address)
                .or(default.connections_of_address),
            new_connections_of_address: (self.maximum_connections_per_second_per_address)
                .unwrap_or(default.new_connections_of_address),
            concurrent_streams: (self.maximum_streams_per_connection)
                .unwrap_or(default.concurrent_streams),
            header_list: self.maximum_header_list,
            keepalive_interval: self.keepalive_interval,
            keepalive_timeout: self.keepalive_timeout,
            flood: FloodLimits {
                streams: (self.maximum_streams_per_second).unwrap_or(default.flood.streams),
                resets: self
                    .maximum_resets_per_second
                    .unwrap_or(default.flood.resets),
                control_frames: (self.maximum_control_frames_per_second)
                    .unwrap_or(default.flood.control_frames),
            },
            lifetimes: Lifetimes {
                handshake: self.handshake_timeout,
                first_request: self.first_request_timeout,
                idle: self.idle_timeout,
                unread: self.stream_stall_timeout,
                age: self.maximum_connection_age,
                grace: self.connection_grace,
            },
        }
    }

    /// Returns the quotas of single clients.
    pub(super) fn quotas(self) -> HashMap<ClientName, Quota> {
        let mut quotas: HashMap<ClientName, Quota> = HashMap::new();
        for (client, searches) in self.client_searches {
            quotas.entry(client).or_default().searches = Some(searches.get());
        }
        for (client, hashes) in self.client_hashes_per_second {
            quotas.entry(client).or_default().hashes_per_second = Some(hashes);
        }
        quotas
    }
}

fn of_client<N: FromStr>(text: &str) -> Result<(ClientName, N), String> {
    let parts = text.rsplit_once('=');
    let (client, number) = parts.ok_or("expected CLIENT=N, such as 10.0.0.7=4")?;
    Ok((client.parse()?, positive(number)?))
}

fn share(text: &str) -> Result<f64, &'static str> {
    let share = text.parse().ok();
    let share = share.filter(|share| (0.0..=1.0).contains(share));
    share.ok_or("expected a number from 0 to 1")
}
