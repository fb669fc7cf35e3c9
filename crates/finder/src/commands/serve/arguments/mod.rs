//! The arguments of `serve`.

mod auth;
mod limits;
mod tls;
mod trace;

use std::{
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use hashfinder_fleet_nats::BrokerAddress;
use hashfinder_search::Kernel;
use hashfinder_server::{
    FleetSettings, HostPort, Listen, MAXIMUM_WEIGHT, Searches, Settings, log, operations,
};
use hashfinder_transport::ClientName;

pub(crate) use self::limits::LimitsArguments;
use self::{auth::AuthArguments, tls::TlsArguments, trace::TraceArguments};
use crate::arguments::{
    FleetFiles,
    from_file::FromFile,
    values::{duration, kernel, number, positive, shown, threads},
};

/// Headings of the help.
const LISTENING: &str = "Listening";
const SEARCHES: &str = "Searches";
const MONITORING: &str = "Monitoring";
const FLEET: &str = "Fleet";

/// Run searches for many clients over gRPC.
///
/// Prints one line on stdout when it is listening, and its log on stderr. SIGINT, SIGTERM, SIGHUP
/// and SIGQUIT drain it: it accepts no new calls, and stops those that outlast the grace period
/// with a resume cursor. A second signal, at least 0.3 s later, ends it at once. HASHFINDER_LOG
/// sets what is logged: error, warn, info (the default), debug or trace.
#[derive(Args, Debug)]
#[command(
    after_help = "More limits can be set in the configuration file: see [serve.limits] in the \
                  output of\n`hashfinder config default`.",
    after_long_help = "\
Limits of connections and calls, such as timeouts and rates, are settings of the configuration file,
in its table [serve.limits]. `hashfinder config default` prints them all with their reasons.

CLIENT is an IP address, or the name of a credential: key:ID (an API key), jwt:SUBJECT (a token),
cert:NAME (a certificate) or, on a Unix socket, user:UID.

Examples:
  hashfinder serve
  hashfinder serve --port 8080 --maximum-hashes 1000000000 --api-keys keys.toml
  hashfinder serve --host 0.0.0.0 --tls-certificate server.pem --tls-key server-key.pem \\
    --tls-client-ca clients.pem
  hashfinder serve --metrics-address 127.0.0.1:9464 --log-format json
  hashfinder serve --state /var/lib/hashfinder
  hashfinder serve --fleet nats://broker.example:4222

Exit codes:
  0  ended by a signal, or nothing is wrong (--check)
  2  a flag, a setting, HASHFINDER_LOG or a file is wrong, or the server would be unprotected
  5  it cannot listen, cannot use the folder of --state or the broker of --fleet, or failed"
)]
pub(crate) struct ServeArguments {
    /// Check the configuration, print where the server would listen, and exit
    ///
    /// Flags, environment and file are checked. The exit code is 0, or 2 if something is wrong.
    #[arg(long)]
    pub(crate) check: bool,

    /// Address to listen on
    ///
    /// An address that other machines can reach needs TLS and authentication, or
    /// --listen-unprotected.
    #[arg(long, default_value = "127.0.0.1", help_heading = LISTENING)]
    host: String,

    /// Port to listen on; 0 chooses a free one
    #[arg(long, default_value_t = 50051, value_parser = number(0..=u16::MAX), help_heading = LISTENING)]
    port: u16,

    /// Listen on a Unix socket with this path instead
    ///
    /// Every user with write permission on it may connect.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["host", "port", "reuse_port"])]
    #[arg(help_heading = LISTENING)]
    unix: Option<PathBuf>,

    /// Share the port with other processes (SO_REUSEPORT)
    ///
    /// A new version can start before the old one ends.
    #[arg(long, help_heading = LISTENING)]
    reuse_port: bool,

    /// Allow other machines to connect without TLS or authentication
    ///
    /// By default, the server then listens only on a loopback address or a Unix socket. Use this on
    /// a network whose users may all use the server, or behind a proxy that adds what is missing.
    #[arg(long, help_heading = LISTENING)]
    listen_unprotected: bool,

    /// Raise the per-address limits, for clients that connect through a proxy
    ///
    /// One address may then have all connections and open calls, and may begin and reset 16 times
    /// as many per second. Without credentials, all clients of the proxy count as one client. A
    /// limit that is set in [serve.limits] stays as it is set.
    #[arg(long, help_heading = LISTENING)]
    behind_proxy: bool,

    /// Grace period for open calls during a drain
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = LISTENING)]
    #[arg(default_value = shown(Settings::default().drain_grace))]
    drain_grace: Duration,

    /// Hash budget of each RPC; when it is spent, the RPC is cancelled
    #[arg(long, value_name = "N", default_value_t = Searches::default().maximum_hashes)]
    #[arg(value_parser = positive::<NonZeroU64>, help_heading = SEARCHES)]
    maximum_hashes: NonZeroU64,

    /// Maximum number of concurrent searches
    #[arg(long, value_name = "N", default_value_t = Searches::default().concurrent_rpcs)]
    #[arg(value_parser = positive::<NonZeroUsize>, help_heading = SEARCHES)]
    maximum_concurrent_rpcs: NonZeroUsize,

    /// Maximum number of concurrent searches per client [default: 3/4 of the above]
    ///
    /// Other clients find room in the last quarter. One connection may have three quarters of this
    /// number, rounded up, so the client's other connections find room. A client is identified by
    /// its credential or, without one, by its IP address or, on a Unix socket, its user.
    #[arg(long, value_name = "N", help_heading = SEARCHES)]
    #[arg(value_parser = positive::<NonZeroUsize>)]
    maximum_searches_per_client: Option<NonZeroUsize>,

    /// Maximum number of hashes per second for each client [default: no limit]
    ///
    /// The average over a minute counts. Beyond it, the client's searches end with a resume cursor.
    #[arg(long, value_name = "N", help_heading = SEARCHES)]
    #[arg(value_parser = positive::<NonZeroU64>)]
    maximum_hashes_per_second: Option<NonZeroU64>,

    /// Weight of CLIENT when cores are shared [default: 1]; repeatable
    #[arg(long = "client-weight", value_name = "CLIENT=N", value_parser = client_weight)]
    #[arg(help_heading = SEARCHES)]
    client_weights: Vec<(ClientName, NonZeroU32)>,

    /// Client, such as key:ID, that may see and cancel all searches; repeatable
    ///
    /// An IP address counts only if the server accepts no credentials. Keys that were made with
    /// --role operator are operators, too, and so are root and the server's own user on a Unix
    /// socket.
    #[arg(long = "operator", value_name = "CLIENT", help_heading = SEARCHES)]
    operators: Vec<ClientName>,

    /// Save operations in this folder, and resume them after a restart [default: none]
    ///
    /// An operation is a search that continues without its client (`find --detach`). No two servers
    /// may use the same folder.
    #[arg(long, value_name = "FOLDER", help_heading = SEARCHES)]
    state: Option<PathBuf>,

    /// Let the agents of a fleet do the searching, through this NATS broker [default: none]
    ///
    /// nats://HOST:PORT or, with TLS, tls://HOST:PORT. Separate several brokers of a cluster by
    /// commas. Several fleets can use one broker, each with a name: nats://HOST:PORT/NAME. Searches
    /// that take less than 200 ms stay on the server. While the fleet has no agents (`hashfinder
    /// agent`), all do.
    #[arg(long, value_name = "URL", help_heading = FLEET)]
    fleet: Option<BrokerAddress>,

    #[command(flatten)]
    fleet_files: FleetFiles,

    /// Check what agents report, because they may lie
    ///
    /// Use it for agents that other people run. Searches become somewhat slower. Give it to all
    /// servers of a fleet, or to none.
    #[arg(long, help_heading = FLEET, requires = "fleet")]
    fleet_untrusted: bool,

    /// Number of threads that search [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads, help_heading = SEARCHES)]
    workers: Option<NonZeroUsize>,

    /// Hashing kernel, such as avx2 [default: the fastest on this machine]
    #[arg(long, value_name = "NAME", value_parser = kernel, help_heading = SEARCHES)]
    kernel: Option<Kernel>,

    #[command(flatten)]
    auth: AuthArguments,

    #[command(flatten)]
    tls: TlsArguments,

    /// Serve metrics and health at http://HOST:PORT [default: none]
    ///
    /// /metrics is for Prometheus. /healthz is for probes: it returns 200, or 503 during a drain.
    /// The port has neither TLS nor authentication. If it is not on a loopback address, use a
    /// firewall; the log has a warning. Metrics contain nothing that clients sent. With port 0, the
    /// log has the port.
    #[arg(long, value_name = "HOST:PORT", help_heading = MONITORING)]
    metrics_address: Option<HostPort>,

    #[command(flatten)]
    traces: TraceArguments,

    /// Format of the log: text for people, or json with an object on each line
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t, help_heading = MONITORING)]
    pub(super) log_format: LogFormat,

    #[command(flatten)]
    limits: FromFile<LimitsArguments>,
}

impl ServeArguments {
    /// Returns the settings that the flags select.
    ///
    /// # Errors
    ///
    /// If a flag is given without another one that it needs.
    pub(super) fn settings(self) -> Result<Settings> {
        ensure!(
            self.fleet.is_some() || self.fleet_files.are_default(),
            "--fleet-credentials and --fleet-ca need --fleet"
        );
        let listen = match self.unix {
            Some(path) => Listen::Unix(path),
            None => Listen::Tcp {
                at: HostPort {
                    host: self.host,
                    port: self.port,
                },
                reuse_port: self.reuse_port,
            },
        };
        let limits = self.limits.0;
        let of_fleet = self.fleet.is_some().then_some(operations::Place::Fleet);
        let operations = self.state.map(operations::Place::Folder).or(of_fleet);
        Ok(Settings {
            listen: Some(listen),
            metrics: self.metrics_address,
            tls: self.tls.files()?,
            auth: self.auth.settings(self.listen_unprotected),
            operators: self.operators,
            operations: operations.map(|place| limits.operations(place)),
            fleet: self.fleet.map(|at| FleetSettings {
                broker: self.fleet_files.options(at),
                is_untrusted: self.fleet_untrusted,
            }),
            traces: self.traces.settings(limits.otlp_sampling),
            calls: limits.calls(self.behind_proxy),
            connections: limits.connections(self.behind_proxy),
            searches: Searches {
                workers: self.workers,
                kernel: self.kernel,
                maximum_hashes: self.maximum_hashes,
                budget_status: limits.budget_status(),
                concurrent_rpcs: self.maximum_concurrent_rpcs,
                searches_of_client: self.maximum_searches_per_client,
                hashes_per_second_of_client: self.maximum_hashes_per_second,
                weights: self.client_weights.into_iter().collect(),
                queue_length: limits.queue_length(),
                quotas: limits.quotas(),
            },
            drain_grace: self.drain_grace,
        })
    }
}

/// Format of the log.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// A JSON object on each line, for programs
    Json,
}

impl From<LogFormat> for log::LogFormat {
    fn from(format: LogFormat) -> log::LogFormat {
        match format {
            LogFormat::Text => log::LogFormat::Text,
            LogFormat::Json => log::LogFormat::Json,
        }
    }
}

fn client_weight(text: &str) -> Result<(ClientName, NonZeroU32), String> {
    let parts = text.rsplit_once('=');
    let (client, weight) = parts.ok_or("expected CLIENT=N, such as 10.0.0.7=4")?;
    let weight = NonZeroU32::from_str(weight).ok();
    let weight = weight.filter(|weight| weight.get() <= MAXIMUM_WEIGHT);
    let weight = weight.ok_or_else(|| format!("expected a weight from 1 to {MAXIMUM_WEIGHT}"))?;
    Ok((client.parse()?, weight))
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};
    use hashfinder_server::Calls;
    use hashfinder_transport::FloodLimits;

    use super::*;

    /// Returns the settings that the flags select. Here, settings that only the file can give are
    /// flags, too.
    fn settings(flags: &[&str]) -> Settings {
        let program = LimitsArguments::augment_args(Command::new("serve"));
        let program = ServeArguments::augment_args(program);
        let line = ["serve", "--port", "0"].iter().chain(flags);
        let matches = program.get_matches_from(line);
        let serve = ServeArguments::from_arg_matches(&matches).unwrap();
        serve.settings().unwrap()
    }

    #[test]
    fn the_flags_have_the_defaults_of_the_settings() {
        assert_eq!(settings(&[]), Settings::default());
    }

    #[test]
    fn behind_a_proxy_only_unset_limits_change() {
        let behind = settings(&["--behind-proxy"]);
        assert_eq!(behind.calls, Calls::behind_proxy());
        assert_eq!(
            behind.connections,
            hashfinder_transport::Settings::behind_proxy()
        );
        let set = settings(&[
            "--behind-proxy",
            "--maximum-calls-per-second-per-address=5000",
            "--maximum-resets-per-second=500",
        ]);
        let (calls, default) = (set.calls, Calls::default());
        assert_eq!(calls.per_second_of_address, default.per_second_of_address);
        assert_eq!(calls.open_of_address, Calls::behind_proxy().open_of_address);
        let (flood, default) = (set.connections.flood, FloodLimits::default());
        assert_eq!(flood.resets, default.resets);
        assert_ne!(flood.streams, default.streams);
    }
}
