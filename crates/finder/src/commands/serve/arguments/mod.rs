//! The arguments of `serve`.

mod auth;
mod quota;
mod tls;
mod trace;
mod transport;

use std::{
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use anyhow::Result;
use clap::{Args, ValueEnum};
use hashfinder_search::Kernel;
use hashfinder_server::{HostPort, Listen, MAXIMUM_WEIGHT, Searches, Settings, log};
use hashfinder_transport::ClientName;

use self::{
    auth::AuthArguments, quota::QuotaArguments, tls::TlsArguments, trace::TraceArguments,
    transport::TransportArguments,
};
use crate::arguments::values::{duration, kernel, number, positive, shown, threads};

/// Serve searches to many clients, over gRPC.
///
/// Prints one line on stdout when it listens, and its log on stderr. SIGINT, SIGTERM, SIGHUP and
/// SIGQUIT drain it: it takes no new calls, and those that outlast the grace period are stopped and
/// get a cursor. A second signal, later than 0.3 s after the first, ends it at once. HASHFINDER_LOG
/// sets what is logged (info; debug, warn ...).
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
    host: String,

    /// The port to listen on; 0 takes a free one and prints it
    #[arg(long, default_value_t = 50051, value_parser = number(0..=u16::MAX))]
    port: u16,

    /// The hash budget of one RPC, after which the server cancels it
    #[arg(long, value_name = "N", default_value_t = Searches::default().maximum_hashes)]
    #[arg(value_parser = positive::<NonZeroU64>)]
    maximum_hashes: NonZeroU64,

    /// The status of an RPC whose hash budget is spent
    #[arg(long, value_enum, value_name = "STATUS", default_value_t)]
    budget_status: BudgetStatus,

    /// How many threads search [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads)]
    workers: Option<NonZeroUsize>,

    /// The kernel to search with [default: the fastest that this machine runs]
    #[arg(long, value_name = "NAME", value_parser = kernel)]
    kernel: Option<Kernel>,

    /// How many RPCs may search at a time; more are refused
    #[arg(long, value_name = "N", default_value_t = Searches::default().concurrent_rpcs)]
    #[arg(value_parser = positive::<NonZeroUsize>)]
    maximum_concurrent_rpcs: NonZeroUsize,

    /// How many searches a client may have at a time [default: three quarters of all RPCs]
    ///
    /// A client is identified by its credential or, without one, by its IP address or, behind a
    /// Unix socket, its user. Other clients find room in the last quarter. One connection may have
    /// three quarters of this number, rounded up, so that the client's other connections find room.
    #[arg(long, value_name = "N")]
    #[arg(value_parser = positive::<NonZeroUsize>)]
    maximum_searches_per_client: Option<NonZeroUsize>,

    /// How many hashes a client may have each second [default: no such limit]
    ///
    /// That is on average over a minute; beyond it, its searches end with a cursor.
    #[arg(long, value_name = "N")]
    #[arg(value_parser = positive::<NonZeroU64>)]
    maximum_hashes_per_second: Option<NonZeroU64>,

    /// The share of the cores that a client has, compared with others' of 1
    ///
    /// CLIENT is an IP address, user: and a user's number, key: and a key's id, jwt: and a token's
    /// subject, or cert: and a certificate's name. May be given more than once.
    #[arg(long = "client-weight", value_name = "CLIENT=N", value_parser = client_weight)]
    client_weights: Vec<(ClientName, NonZeroU32)>,

    /// Who sees and cancels the searches of all clients
    ///
    /// CLIENT is as for --client-weight; an IP address counts only where no credentials are taken.
    /// May be given more than once. Behind a Unix socket root and whoever runs the server may too,
    /// and so may keys that were made with --role operator.
    #[arg(long = "operator", value_name = "CLIENT")]
    operators: Vec<ClientName>,

    /// How many candidates wait for a stream's reader before its search does
    #[arg(long, value_name = "N", default_value_t = Searches::default().queue_length)]
    #[arg(value_parser = positive::<NonZeroUsize>)]
    queue_length: NonZeroUsize,

    /// Listen on a Unix socket with this path instead
    ///
    /// Whoever may write to it may use it.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["host", "port", "reuse_port"])]
    unix: Option<PathBuf>,

    /// Share the port with other processes (SO_REUSEPORT)
    #[arg(long)]
    reuse_port: bool,

    /// How long calls may go on after the signal to shut down
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    #[arg(default_value = shown(Settings::default().drain_grace))]
    drain_grace: Duration,

    #[command(flatten)]
    quota: QuotaArguments,

    #[command(flatten)]
    transport: TransportArguments,

    #[command(flatten)]
    tls: TlsArguments,

    #[command(flatten)]
    auth: AuthArguments,

    /// Serve metrics and health at http://HOST:PORT [default: do not]
    ///
    /// /metrics is for Prometheus. /healthz is for probes: it returns 200, or 503 during a drain.
    /// The port has neither TLS nor authentication: if it is not a loopback address, a firewall has
    /// to keep strangers out, and the log warns. Metrics contain nothing that clients have sent. If
    /// PORT is 0, the log has the port.
    #[arg(long, value_name = "HOST:PORT")]
    metrics_address: Option<HostPort>,

    #[command(flatten)]
    traces: TraceArguments,

    /// How the lines of the log are written
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub(super) log_format: LogFormat,

    /// Check the flags, the environment and the file, tell where it would listen, and leave
    ///
    /// Nothing is listened on. The exit code is 0, or 2 if something is wrong.
    #[arg(long)]
    pub(crate) check: bool,
}

impl ServeArguments {
    /// Returns the settings that the flags select.
    ///
    /// # Errors
    ///
    /// If flags are missing that belong to those that were given.
    pub(super) fn settings(self) -> Result<Settings> {
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
        Ok(Settings {
            listen: Some(listen),
            metrics: self.metrics_address,
            tls: self.tls.files()?,
            auth: self.auth.settings(),
            operators: self.operators,
            traces: self.traces.settings(),
            calls: self.quota.calls(),
            searches: Searches {
                workers: self.workers,
                kernel: self.kernel,
                maximum_hashes: self.maximum_hashes,
                budget_status: match self.budget_status {
                    BudgetStatus::Cancelled => hashfinder_server::BudgetStatus::Cancelled,
                    BudgetStatus::ResourceExhausted => {
                        hashfinder_server::BudgetStatus::ResourceExhausted
                    }
                },
                concurrent_rpcs: self.maximum_concurrent_rpcs,
                searches_of_client: self.maximum_searches_per_client,
                hashes_per_second_of_client: self.maximum_hashes_per_second,
                weights: self.client_weights.into_iter().collect(),
                quotas: self.quota.quotas(),
                queue_length: self.queue_length,
            },
            connections: self.transport.settings(),
            drain_grace: self.drain_grace,
        })
    }
}

/// Which code says that a hash budget is spent.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum BudgetStatus {
    /// As the reference server does
    #[default]
    Cancelled,
    /// As gRPC's own description of the codes has it
    ResourceExhausted,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// An object on each line, for programs
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
    let (client, weight) = parts.ok_or("give CLIENT=N, for instance 10.0.0.7=4")?;
    let weight = NonZeroU32::from_str(weight).ok();
    let weight = weight.filter(|weight| weight.get() <= MAXIMUM_WEIGHT);
    let weight = weight.ok_or_else(|| format!("give a weight from 1 to {MAXIMUM_WEIGHT}"))?;
    Ok((client.parse()?, weight))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        serve: ServeArguments,
    }

    #[test]
    fn the_flags_have_the_defaults_of_the_settings() {
        let program = Program::parse_from(["hashfinder", "--port", "0"]);
        assert_eq!(program.serve.settings().unwrap(), Settings::default());
    }
}
