//! Attacks a hashfinder server on the loopback, and checks how its other clients fare.
//!
//! `hashfinder-attack run` starts a server for each attack, runs the attack in a separate process
//! beside a healthy client, and judges the result. `cargo xtask long attack` writes the results to
//! bench/ATTACKS.md. `hashfinder-attack soak` runs unruly clients, which are not malicious, for
//! half an hour after a warm-up.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "its results are printed there")]
#![allow(
    clippy::disallowed_methods,
    reason = "attacks and what is measured go on for a time, and /proc has nothing to wait for"
)]

mod attack;
mod burn;
mod connection;
mod faults;
mod healthy;
mod process;
mod report;
mod requests;
mod seen;
mod slope;
mod soak;
mod trial;
mod unruly;
mod wire;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use clap::{Args, Parser, ValueEnum};
use rustix::process::{Resource, getrlimit, setpriority_process, setrlimit};
use tokio::{sync::oneshot, time::sleep};

use self::{
    attack::{Attack, play},
    connection::Source,
    faults::Fault,
    report::Report,
    trial::Setting,
};

/// Attack a hashfinder server on the loopback, and check how its other clients fare
#[derive(Parser, Debug)]
#[command(name = "hashfinder-attack")]
enum Command {
    Run(RunArguments),
    Attack(AttackArguments),
    Soak(SoakArguments),
    /// Run unruly clients until stdin ends; each line of stdin sets how many long searches each
    /// connection starts per second
    Unruly {
        /// The server, which must be on the loopback (127.0.0.0/8)
        #[arg(long, value_name = "ADDRESS:PORT", value_parser = loopback)]
        target: SocketAddr,
        /// Seed of the clients' random choices
        #[arg(long)]
        seed: u64,
    },
    /// Keep a number of cores busy with harmless work
    Burn {
        /// Number of cores, such as 1.5
        #[arg(long)]
        cores: f64,
        /// Duration, in seconds
        #[arg(long, value_parser = seconds)]
        seconds: Duration,
    },
}

/// Options for the server to start, and for the results.
#[derive(Args, Debug)]
struct CommonArguments {
    /// Path of the program `hashfinder`
    #[arg(long, value_name = "PATH")]
    server_binary: PathBuf,

    /// Additional argument for the server; may be repeated
    #[arg(
        long = "server-argument",
        value_name = "ARGUMENT",
        allow_hyphen_values = true
    )]
    server_arguments: Vec<String>,

    /// Print JSON instead of tables, with everything that was counted
    #[arg(long)]
    json: bool,

    /// Write the tables into this file, in the section "Attacks" or "Soak"
    #[arg(long, value_name = "PATH")]
    results: Option<PathBuf>,
}

/// Start a server for each attack, run the attack beside a healthy client, and judge the result
#[derive(Args, Debug)]
struct RunArguments {
    #[command(flatten)]
    common: CommonArguments,

    /// Name of an attack or fault, or "all"; may be repeated
    #[arg(long = "attack", value_name = "NAME", default_value = "all")]
    attacks: Vec<String>,

    /// Duration of each attack, in seconds [default: 30; with --short: 1.5]
    #[arg(long, value_parser = seconds)]
    seconds: Option<Duration>,

    /// Use fewer connections, skip the control run, and do not judge response times, or CPU use
    /// after an attack
    #[arg(long)]
    short: bool,

    /// Number of attacking connections, except in faults [default: depends on the attack]
    #[arg(long, value_name = "N")]
    connections: Option<usize>,

    /// Addresses of the attackers, except in faults [default: one]
    #[arg(long, value_enum)]
    source: Option<Source>,
}

/// Run one attack against a running server, and print what the attacker saw
#[derive(Args, Debug)]
struct AttackArguments {
    /// Name of the attack
    #[arg(value_enum)]
    attack: Attack,

    /// The server, which must be on the loopback (127.0.0.0/8)
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = loopback)]
    target: SocketAddr,

    /// Duration of the attack, in seconds
    #[arg(long, value_parser = seconds, default_value = "30")]
    seconds: Duration,

    /// Number of connections
    #[arg(long, value_name = "N", default_value_t = 1)]
    connections: usize,

    /// Addresses of the attackers
    #[arg(long, value_enum, default_value_t = Source::One)]
    source: Source,

    /// Do not replace streams that the server has ended
    #[arg(long)]
    once: bool,

    /// End when stdin ends, if that is before the duration is over
    #[arg(long)]
    until_stdin_ends: bool,
}

/// Start a server, run unruly clients, and check that it holds nothing for them at the end
#[derive(Args, Debug)]
struct SoakArguments {
    #[command(flatten)]
    common: CommonArguments,

    /// Duration including the warm-up, in seconds [default: 2400; with --short: 20]
    #[arg(long, value_parser = seconds)]
    seconds: Option<Duration>,

    /// Warm-up, in seconds, after which memory growth is judged; ignored with --short
    #[arg(long, value_parser = seconds, default_value = "600")]
    warm_up: Duration,

    /// Share of all cores that the server should use
    #[arg(long, value_name = "SHARE", default_value_t = 0.8)]
    load: f64,

    /// Seed of the random choices, to repeat a run [default: random]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Skip the warm-up, restart clients more often, and do not judge memory or load
    #[arg(long)]
    short: bool,
}

fn main() -> ExitCode {
    raise_descriptors();
    let done = match Command::parse() {
        Command::Run(arguments) => run(&arguments),
        Command::Soak(arguments) => soak(&arguments),
        Command::Unruly { target, seed } => unruly::run(target, seed).map(|()| ExitCode::SUCCESS),
        Command::Attack(arguments) => {
            // In a fault, the test waits for the attacker, which must make progress even on a busy
            // machine.
            if !arguments.until_stdin_ends {
                step_back();
            }
            attack(&arguments).map(|()| ExitCode::SUCCESS)
        }
        Command::Burn { cores, seconds } => {
            step_back();
            burn::burn(cores, seconds).map(|()| ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("hashfinder-attack: {error:#}");
        ExitCode::from(2)
    })
}

/// Niceness of attackers, and of the burner that replaces them in the control run. Real attackers
/// would be on other machines, so only the server's reaction to them should be measured.
const NICENESS: i32 = 10;

fn step_back() {
    // If this fails, it fails for the attack and for the control run alike.
    let _ = setpriority_process(None, NICENESS);
}

/// Raises the limit of open files to the maximum, for this process and the servers that it starts.
fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // If this fails, the first attack that needs more descriptors reports it.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Descriptors that an attacker needs in addition to its connections.
const OTHER_DESCRIPTORS: u64 = 50;

fn attack(arguments: &AttackArguments) -> Result<()> {
    let needed = arguments.connections as u64 + OTHER_DESCRIPTORS;
    let has = getrlimit(Resource::Nofile).current;
    ensure!(
        has.is_none_or(|has| has >= needed),
        "this attack needs {needed} open files, and may have {has:?}; raise the limit (ulimit -Hn)"
    );
    let AttackArguments {
        attack,
        target,
        seconds,
        connections,
        source,
        once,
        until_stdin_ends,
    } = *arguments;
    let over = async {
        tokio::select! {
            () = sleep(seconds) => {}
            _ = stdin_ended(), if until_stdin_ends => {}
        }
    };
    let seen = healthy::block_on(play(attack, target, source, connections, over, once))?;
    println!("{}", seen.to_json());
    Ok(())
}

/// Returns a receiver that is ready when stdin has ended.
fn stdin_ended() -> oneshot::Receiver<Infallible> {
    let (end, ended) = oneshot::channel();
    thread::spawn(move || {
        // A read error counts as the end, too.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        drop(end);
    });
    ended
}

/// Runs attacks and faults. Returns exit code 1 if anything failed.
fn run(arguments: &RunArguments) -> Result<ExitCode> {
    let (mut attacks, mut faults) = (Vec::new(), Vec::new());
    for name in &arguments.attacks {
        if name == "all" {
            attacks.extend(Attack::value_variants());
            faults.extend(Fault::value_variants());
        } else if let Ok(attack) = Attack::from_str(name, false) {
            attacks.push(attack);
        } else if let Ok(fault) = Fault::from_str(name, false) {
            faults.push(fault);
        } else {
            let attacks = Attack::value_variants().iter().map(|one| one.name());
            let faults = Fault::value_variants().iter().map(|one| one.name());
            let names: Vec<String> = attacks.chain(faults).collect();
            bail!("unknown attack {name:?}; use all, {}", names.join(", "));
        }
    }
    let short = Duration::from_millis(if arguments.short { 1500 } else { 30_000 });
    let setting = Setting {
        server: arguments.common.server_binary.clone(),
        time: arguments.seconds.unwrap_or(short),
        is_short: arguments.short,
        source: arguments.source,
        connections: arguments.connections,
        server_arguments: arguments.common.server_arguments.clone(),
    };
    let mut report = Report::default();
    for attack in attacks {
        let plan = attack.plan();
        let connections = match (setting.connections, setting.is_short) {
            (Some(given), _) => vec![given],
            (None, true) => vec![plan.short],
            (None, false) => plan.connections.to_vec(),
        };
        for connections in connections {
            let began = Instant::now();
            let row = trial::run(&setting, attack, connections)?;
            progress(&row.name, &row.failures, began);
            report.rows.push(row);
        }
    }
    for fault in faults {
        let began = Instant::now();
        let fault = fault.run(&setting)?;
        progress(&fault.name, &fault.failures, began);
        report.faults.push(fault);
    }
    if arguments.common.json {
        println!("{:#}", report.json());
    } else {
        println!("{}", report.tables());
    }
    if let Some(file) = &arguments.common.results {
        report.write(file, setting.time)?;
    }
    let is_well = report.failures().is_empty();
    Ok(if is_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs the soak. Returns exit code 1 if anything failed.
fn soak(arguments: &SoakArguments) -> Result<ExitCode> {
    let (usual, warm_up) = if arguments.short {
        (20, Duration::ZERO)
    } else {
        (2400, arguments.warm_up)
    };
    let plan = soak::Plan {
        server: arguments.common.server_binary.clone(),
        server_arguments: arguments.common.server_arguments.clone(),
        time: arguments.seconds.unwrap_or(Duration::from_secs(usual)),
        warm_up,
        load: arguments.load,
        seed: arguments.seed.unwrap_or_else(|| fastrand::u64(..)),
        is_short: arguments.short,
    };
    ensure!(
        0.0 < plan.load && plan.load < 1.0,
        "--load {}: give a share between 0 and 1",
        plan.load
    );
    // Printed first, so that a run that does not finish can be repeated.
    eprintln!("soak: --seed {}", plan.seed);
    let soak = soak::run(&plan)?;
    if arguments.common.json {
        println!("{:#}", soak.json());
    } else {
        println!("{}", soak.table());
    }
    if let Some(file) = &arguments.common.results {
        soak.write(file)?;
    }
    Ok(if soak.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn progress(name: &str, failures: &[String], began: Instant) {
    eprintln!("{name}: {:.1} s", began.elapsed().as_secs_f64());
    for failure in failures {
        eprintln!("  {failure}");
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok();
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.ok_or_else(|| "give a number of seconds".to_owned())
}

/// Parses a target. Rejects every address outside of 127.0.0.0/8, so that no other machine is
/// attacked.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "give ADDRESS:PORT".to_owned())?;
    if address.is_ipv4() && address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("expected an address on the loopback, such as 127.0.0.1:50051".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_targets_are_accepted() {
        assert!(loopback("127.0.0.1:50051").is_ok());
        for elsewhere in [
            "0.0.0.0:1",
            "10.0.0.7:1",
            "192.0.2.1:1",
            "[::1]:1",
            "[2001:db8::1]:1",
            "localhost:1",
        ] {
            assert!(loopback(elsewhere).is_err(), "{elsewhere}");
        }
    }

    #[test]
    fn attacks_and_faults_have_unique_names() {
        let attacks = Attack::value_variants().iter().map(|one| one.name());
        let faults = Fault::value_variants().iter().map(|one| one.name());
        let names: Vec<String> = attacks.chain(faults).collect();
        let different: std::collections::BTreeSet<&String> = names.iter().collect();
        assert_eq!(different.len(), names.len());
    }
}
