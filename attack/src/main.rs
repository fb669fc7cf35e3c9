//! Attacks a hashfinder server, only on the loopback, and checks how its other clients fare.
//!
//! `hashfinder-attack run` starts a server for each attack, runs the attack in a separate process
//! beside one healthy client, and judges the result; `cargo xtask long attack` writes the results to
//! bench/ATTACKS.md. `hashfinder-attack soak` runs unruly clients, which are not malicious, for half an
//! hour after a warm-up.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "what it found is told there")]
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

/// Attack a hashfinder server on the loopback, and look how its other clients fare.
#[derive(Parser, Debug)]
#[command(name = "hashfinder-attack")]
enum Command {
    Run(RunArguments),
    Attack(AttackArguments),
    Soak(SoakArguments),
    /// Play unruly clients until stdin ends; each line of it is the number of long searches that
    /// each of their connections begins per second
    Unruly {
        /// The server, which has to be on the loopback
        #[arg(long, value_name = "ADDRESS:PORT", value_parser = loopback)]
        target: SocketAddr,
        /// Where their randomness begins
        #[arg(long)]
        seed: u64,
    },
    /// Take a share of the cores with something harmless
    Burn {
        /// How many cores
        #[arg(long)]
        cores: f64,
        /// For how long
        #[arg(long, value_parser = seconds)]
        seconds: Duration,
    },
}

/// Which server is started, and where what came of it goes.
#[derive(Args, Debug)]
struct CommonArguments {
    /// The program `hashfinder`
    #[arg(long, value_name = "PATH")]
    server_binary: PathBuf,

    /// What the server is told besides; may be given more than once
    #[arg(
        long = "server-argument",
        value_name = "ARGUMENT",
        allow_hyphen_values = true
    )]
    server_arguments: Vec<String>,

    /// Print JSON, with all that was seen
    #[arg(long)]
    json: bool,

    /// Write the tables into this file, in the section "Attacks" or "Soak"
    #[arg(long, value_name = "PATH")]
    results: Option<PathBuf>,
}

/// Start a server for each attack, play it beside a healthy client, and judge.
#[derive(Args, Debug)]
struct RunArguments {
    #[command(flatten)]
    common: CommonArguments,

    /// Which attacks, or faults; may be given more than once
    #[arg(long = "attack", value_name = "NAME", default_value = "all")]
    attacks: Vec<String>,

    /// How long each goes on [default: 30, in the short form 1.5]
    #[arg(long, value_parser = seconds)]
    seconds: Option<Duration>,

    /// Fewer connections, no control run, and no judgement by a clock or by CPU time
    #[arg(long)]
    short: bool,

    /// How many connections attackers have [default: each attack's own]
    #[arg(long, value_name = "N")]
    connections: Option<usize>,

    /// From where attackers come [default: one]
    #[arg(long, value_enum)]
    source: Option<Source>,
}

/// Play one attack against a server that is there, and tell what was seen.
#[derive(Args, Debug)]
struct AttackArguments {
    /// Which
    #[arg(value_enum)]
    attack: Attack,

    /// The server, which has to be on the loopback
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = loopback)]
    target: SocketAddr,

    /// How long it goes on
    #[arg(long, value_parser = seconds, default_value = "30")]
    seconds: Duration,

    /// How many connections it has
    #[arg(long, value_name = "N", default_value_t = 1)]
    connections: usize,

    /// From where it comes
    #[arg(long, value_enum, default_value_t = Source::One)]
    source: Source,

    /// Begin no stream again that the server has ended
    #[arg(long)]
    once: bool,

    /// End as soon as stdin does, if that is earlier
    #[arg(long)]
    until_stdin_ends: bool,
}

/// Start a server, and play unruly clients that come and go; nothing of them may be left.
#[derive(Args, Debug)]
struct SoakArguments {
    #[command(flatten)]
    common: CommonArguments,

    /// How long it goes on, the warm-up included [default: 2400, in the short form 20]
    #[arg(long, value_parser = seconds)]
    seconds: Option<Duration>,

    /// After how long memory may grow no more
    #[arg(long, value_parser = seconds, default_value = "600")]
    warm_up: Duration,

    /// How much of all cores the server shall take
    #[arg(long, value_name = "SHARE", default_value_t = 0.8)]
    load: f64,

    /// Where the randomness begins, to play a run again [default: another one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// No judgement of memory and load, for which it is too short
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
            // In a fault, the test waits for the attacker, which has to make progress on a busy
            // machine too.
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

/// Niceness of attackers, and of the burner that replaces them in the control run. They would be on
/// other machines; only the server's own reaction to them should be measured.
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
        // An error ends it too.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        drop(end);
    });
    ended
}

/// Runs attacks and faults. Exits with 1 if anything failed.
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
            bail!(
                "there is no attack {name:?}; there are all, {}",
                names.join(", ")
            );
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

/// Runs the soak. Exits with 1 if anything failed.
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

/// Parses a target. Rejects every address that is not on the loopback, so that no other machine is
/// attacked.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "give ADDRESS:PORT".to_owned())?;
    if address.is_ipv4() && address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(
            "give an address of the loopback, 127.0.0.1 for one; nothing else is attacked"
                .to_owned(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_the_loopback_is_attacked() {
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
    fn every_attack_has_a_name_of_its_own() {
        let attacks = Attack::value_variants().iter().map(|one| one.name());
        let faults = Fault::value_variants().iter().map(|one| one.name());
        let names: Vec<String> = attacks.chain(faults).collect();
        let different: std::collections::BTreeSet<&String> = names.iter().collect();
        assert_eq!(different.len(), names.len());
    }
}
