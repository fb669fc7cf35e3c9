//! `hashfinder agent`: searches for a fleet.

use std::{fmt::Display, num::NonZeroUsize, thread};

use anyhow::{Context, Result};
use clap::Args;
use hashfinder_fleet_nats::{AgentError, AgentOptions, run_agent};
use hashfinder_search::{
    Distance, Kernel, Query,
    throughput::{MEASURING_TIME, search_rate},
};
use hashfinder_server::log;
use hashfinder_system::{
    running_time::RunningTime,
    threads::{NO_THREAD, aside},
};

use crate::{
    arguments::{
        FleetArguments,
        values::{kernel, threads},
    },
    exit::Exit,
    signals::Signals,
    terminal::say,
};

/// Search for the servers of a fleet.
///
/// The agent connects to a NATS broker, and tries what the servers of the fleet (`hashfinder serve
/// --fleet`) have to search. It listens on no port. If the connection breaks, it reconnects.
/// SIGINT, SIGTERM, SIGHUP and SIGQUIT end it: it returns what it has not tried. If it is
/// killed, the fleet gives its work to other agents after 3 s.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder agent
  hashfinder agent --fleet nats://broker.example:4222 --threads 8

Exit codes:
  0  ended by a signal
  2  a flag, a setting or a file is wrong
  5  the broker is too old, is set up wrongly or rejects the agent, TLS failed, or no thread can be
     started")]
pub(crate) struct AgentArguments {
    #[command(flatten)]
    fleet: FleetArguments,

    /// Number of threads that search [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads)]
    threads: Option<NonZeroUsize>,

    /// Hashing kernel, such as avx2 [default: the fastest on this machine]
    #[arg(long, value_name = "NAME", value_parser = kernel)]
    kernel: Option<Kernel>,
}

/// Runs the command. Dropping the future ends the agent at once.
pub(crate) async fn run(arguments: AgentArguments) -> Result<Exit> {
    let mut signals = Signals::new().context("cannot receive signals")?;
    let filter = match log::filter() {
        Ok(filter) => filter,
        Err(wrong) => return Ok(usage_error(wrong)),
    };
    let _log = log::to_stderr(filter, log::LogFormat::Text).context(NO_THREAD)?;
    let workers = arguments.threads;
    let workers = workers.or_else(|| thread::available_parallelism().ok());
    let workers = workers.map_or(1, usize::from);
    let kernel = arguments.kernel.unwrap_or_else(Kernel::best);
    let options = AgentOptions {
        broker: arguments.fleet.options(),
        workers,
        kernel,
        rate: aside("measure", move || rate(kernel, workers)).await??,
        version: env!("CARGO_PKG_VERSION"),
    };
    let shutdown = async {
        let signal = signals.next().await;
        tracing::info!(%signal, "stopping");
    };
    match run_agent(options, shutdown).await {
        Ok(()) => Ok(Exit::Success),
        Err(AgentError::Broker(wrong)) if wrong.is_usage() => Ok(usage_error(wrong)),
        Err(error) => Err(error.into()),
    }
}

/// Measures how many hashes per second all threads together compute for a usual name.
fn rate(kernel: Kernel, workers: usize) -> Result<f64> {
    let query = Query::new("doctor".parse()?, Distance::ZERO)?;
    let mut clock = RunningTime::start();
    Ok(search_rate(kernel, &query, workers, MEASURING_TIME, || {
        clock.read()
    }))
}

fn usage_error(what: impl Display) -> Exit {
    say(what);
    Exit::Usage
}
