//! The arguments of `serve`.

pub(crate) mod auth;
pub(crate) mod log;
mod quota;
pub(crate) mod tls;
mod trace;
mod transport;

use std::{
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::{Args, ValueEnum};
use hashfinder_search::Kernel;

use self::{
    auth::AuthArguments, log::LogFormat, tls::TlsArguments, trace::TraceArguments,
    transport::TransportArguments,
};
pub(crate) use self::{quota::QuotaArguments, transport::open_files};
use crate::{
    arguments::values::{duration, kernel, number, positive, threads},
    transport::ClientName,
};

/// The largest share that a client may have, compared with others' of 1. With more, these would wait for
/// half a second and longer between two of their slices.
const MAXIMUM_WEIGHT: u32 = 1000;

/// What one RPC may cost. Any name of eight letters is found within it for practical purposes (one
/// hash in 6e10 holds it), and a client that asks for more is stopped in the end.
const MAXIMUM_HASHES: &str = "1000000000000";

/// A few frames' worth: enough that a reader who comes back finds something to read, and a few
/// kilobytes for each search.
const QUEUE_LENGTH: &str = "256";

/// How many RPCs there may be at a time. Each costs a few kilobytes, and all of them share the
/// cores, so that more would only make everybody wait longer.
const MAXIMUM_CONCURRENT_RPCS: &str = "1000";

/// How long calls may go on after the server was told to leave. Enough for those that are nearly
/// done; the others get a cursor.
const DRAIN_GRACE: &str = "5s";

/// Serve searches to many clients, over gRPC.
///
/// Prints one line on stdout when it listens, and its log on stderr. SIGINT, SIGTERM, SIGHUP and
/// SIGQUIT drain it: it takes no new calls, and those that outlast the grace period are stopped and
/// get a cursor. A second signal, later than 0.3 s after the first, ends it at once. HASHFINDER_LOG sets what is logged (info; debug, warn ...).
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder serve
  hashfinder serve --port 8080 --maximum-hashes 1000000000 --api-keys keys.toml
  hashfinder serve --host 0.0.0.0 --tls-certificate server.pem --tls-key server-key.pem \\
    --tls-client-ca clients.pem
  hashfinder serve --metrics-address 127.0.0.1:9464 --log-format json

Exit codes:
  0  shut down by a signal, or nothing is wrong (--check)
  2  the command line is wrong, HASHFINDER_LOG or a file that is named, or strangers could reach it
  5  it cannot listen, or failed")]
pub(crate) struct ServeArguments {
    /// The address to listen on
    ///
    /// One that other machines can reach needs TLS and authentication, or --listen-unprotected.
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: String,

    /// The port to listen on; 0 takes a free one and prints it
    #[arg(long, default_value_t = 50051, value_parser = number(0..=u16::MAX))]
    pub(crate) port: u16,

    /// The hash budget of one RPC, after which the server cancels it
    #[arg(long, value_name = "N", default_value = MAXIMUM_HASHES)]
    #[arg(value_parser = positive::<NonZeroU64>)]
    pub(crate) maximum_hashes: NonZeroU64,

    /// The status of an RPC whose hash budget is spent
    #[arg(long, value_enum, value_name = "STATUS", default_value_t)]
    pub(crate) budget_status: BudgetStatus,

    /// How many threads search [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub(crate) workers: Option<NonZeroUsize>,

    /// The kernel to search with [default: the fastest that this machine runs]
    #[arg(long, value_name = "NAME", value_parser = kernel)]
    pub(crate) kernel: Option<Kernel>,

    /// How many RPCs may search at a time; more are refused
    #[arg(long, value_name = "N", default_value = MAXIMUM_CONCURRENT_RPCS)]
    #[arg(value_parser = positive::<NonZeroUsize>)]
    pub(crate) maximum_concurrent_rpcs: NonZeroUsize,

    /// How many searches a client may have at a time [default: three quarters of all RPCs]
    ///
    /// A client is identified by its credential or, without one, by its IP address or, behind a Unix socket, its
    /// user. Other clients find room in the last quarter. One connection may have three quarters of this number,
    /// rounded up, so that the client's other connections find room.
    #[arg(long, value_name = "N")]
    #[arg(value_parser = positive::<NonZeroUsize>)]
    pub(crate) maximum_searches_per_client: Option<NonZeroUsize>,

    /// How many hashes a client may have each second [default: no such limit]
    ///
    /// That is on average over a minute; beyond it, its searches end with a cursor.
    #[arg(long, value_name = "N")]
    #[arg(value_parser = positive::<NonZeroU64>)]
    pub(crate) maximum_hashes_per_second: Option<NonZeroU64>,

    /// The share of the cores that a client has, compared with others' of 1
    ///
    /// CLIENT is an IP address, user: and a user's number, key: and a key's id, jwt: and a token's subject, or
    /// cert: and a certificate's name. May be given more than once.
    #[arg(long = "client-weight", value_name = "CLIENT=N", value_parser = client_weight)]
    pub(crate) client_weights: Vec<(ClientName, NonZeroU32)>,

    /// Who sees and cancels the searches of all clients
    ///
    /// CLIENT is as for --client-weight; an IP address counts only where no credentials are taken. May be
    /// given more than once. Behind a Unix socket root and whoever runs the server may too, and so may keys
    /// that were made with --role operator.
    #[arg(long = "operator", value_name = "CLIENT")]
    pub(crate) operators: Vec<ClientName>,

    /// How many candidates wait for a stream's reader before its search does
    #[arg(long, value_name = "N", default_value = QUEUE_LENGTH)]
    #[arg(value_parser = positive::<NonZeroUsize>)]
    pub(crate) queue_length: NonZeroUsize,

    /// Listen on a Unix socket with this path instead
    ///
    /// Whoever may write to it may use it.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["host", "port", "reuse_port"])]
    pub(crate) unix: Option<PathBuf>,

    /// Share the port with other processes (SO_REUSEPORT)
    #[arg(long)]
    pub(crate) reuse_port: bool,

    /// How long calls may go on after the signal to shut down
    #[arg(long, value_name = "DURATION", default_value = DRAIN_GRACE, value_parser = duration)]
    pub(crate) drain_grace: Duration,

    #[command(flatten)]
    pub(crate) quota: QuotaArguments,

    #[command(flatten)]
    pub(crate) transport: TransportArguments,

    #[command(flatten)]
    pub(crate) tls: TlsArguments,

    #[command(flatten)]
    pub(crate) auth: AuthArguments,

    /// Serve metrics and health at http://HOST:PORT [default: do not]
    ///
    /// /metrics is for Prometheus. /healthz is for probes: it returns 200, or 503 during a drain. The port has
    /// neither TLS nor authentication: if it is not a loopback address, a firewall has to keep strangers out, and the
    /// log warns. Metrics contain nothing that clients have sent. If PORT is 0, the log has the port.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) metrics_address: Option<MetricsAddress>,

    #[command(flatten)]
    pub(crate) traces: TraceArguments,

    /// How the lines of the log are written
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub(crate) log_format: LogFormat,

    /// Check the flags, the environment and the file, tell where it would listen, and leave
    ///
    /// Nothing is listened on. The exit code is 0, or 2 if something is wrong.
    #[arg(long)]
    pub(crate) check: bool,
}

impl ServeArguments {
    /// How many searches a client may have at a time.
    pub(crate) fn maximum_searches_per_client(&self) -> usize {
        let all = self.maximum_concurrent_rpcs.get();
        let most = self.maximum_searches_per_client;
        most.map_or(all - all / 4, NonZeroUsize::get)
    }
}

/// Which code says that a hash budget is spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum BudgetStatus {
    /// As the reference server does
    #[default]
    Cancelled,
    /// As gRPC's own description of the codes has it
    ResourceExhausted,
}

/// Where metrics are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MetricsAddress {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl FromStr for MetricsAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<MetricsAddress, &'static str> {
        let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        let parts = parts.and_then(|(host, port)| Some((host, port.parse().ok()?)));
        let (host, port) = parts.ok_or("give HOST:PORT, for instance 127.0.0.1:9464")?;
        // Else the last part of an address of IPv6 would pass for a port.
        if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
            return Err("put the brackets around an IPv6 address, for instance [::1]:9464");
        }
        Ok(MetricsAddress {
            host: host.to_owned(),
            port,
        })
    }
}

fn client_weight(text: &str) -> Result<(ClientName, NonZeroU32), String> {
    let parts = text.rsplit_once('=');
    let (client, weight) = parts.ok_or("give CLIENT=N, for instance 10.0.0.7=4")?;
    let weight = NonZeroU32::from_str(weight).ok();
    let weight = weight.filter(|weight| weight.get() <= MAXIMUM_WEIGHT);
    let weight = weight.ok_or_else(|| format!("give a weight from 1 to {MAXIMUM_WEIGHT}"))?;
    Ok((client.parse()?, weight))
}
