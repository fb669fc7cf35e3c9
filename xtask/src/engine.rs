//! `cargo xtask bench engine`: measures thousands of searches, in the engine and through gRPC.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    results::{self, Goal, Samples},
    steps::{Form, cargo, output, step, target},
    tools::{H2LOAD, has_h2load, install, prepare_python},
};

const ROUNDS: usize = 3;

/// The server's log, under target/.
const LOG: &str = "engine.log";

/// Names of figures: calls per second of a search that ends at once, those of a constant response
/// through the same layers, and their ratio.
const EASY: &str = "Find(\"aa\"), 64 in flight on 4 connections: calls a second";
const CONSTANT: &str = "the same for Health.Check: calls a second";
const CALLS: &str = "calls a second, Find(\"aa\") / Health.Check";

/// Names of figures: response times of easy searches beside a thousand hard ones. The first search
/// runs on the calling thread, the second needs a dozen slices.
const NEIGHBOURS: [&str; 2] = [
    "ms for Find(\"doc\") beside hard searches of another client, through gRPC, median",
    "ms for Find(\"docto\") beside them",
];

/// Goals, by the name of the figure.
const GOALS: [(&str, Goal); 15] = [
    ("tests a second, 16 searches / 1", Goal::AtLeast(10.0)),
    ("tests a second, 64 searches / 1", Goal::AtLeast(30.0)),
    ("tests a second, 1000 searches / 1", Goal::AtLeast(120.0)),
    ("tests a second, 10000 searches / 1", Goal::AtLeast(120.0)),
    (
        "hashes a second, 10000 searches that cannot share / 1",
        Goal::AtLeast(0.93),
    ),
    (
        "bytes for each of 10000 waiting searches",
        Goal::AtMost(4096.0),
    ),
    (
        "ms from a stop to the release, 10000 searches, p50",
        Goal::AtMost(0.6),
    ),
    (
        "ms from a stop to the release, 10000 searches, p99",
        Goal::AtMost(1.5),
    ),
    (
        "ms from a stop to the release, 10000 searches, worst",
        Goal::AtMost(5.0),
    ),
    (
        "ms until every core is free, 10000 searches stopped at once",
        Goal::AtMost(100.0),
    ),
    (
        "least share of nine clients beside one with 1000 searches, in tenths",
        Goal::AtLeast(0.95),
    ),
    (NEIGHBOURS[0], Goal::AtMost(5.0)),
    ("cores in use with 1000 stalled readers", Goal::AtMost(0.02)),
    ("bytes that they grow in 10 s", Goal::AtMost(0.0)),
    (CALLS, Goal::AtLeast(0.7)),
];

/// Numbers of calls in a load test, of hard searches, and of easier searches beside the hard ones.
struct Size {
    calls: u32,
    hard: u32,
    easier: u32,
}

/// Measures, prints the table, and writes it to `bench/RESULTS.md`.
pub(crate) fn run(form: Form) -> Result<()> {
    let mut samples = Samples::default();
    if form == Form::Short {
        let size = Size {
            calls: 600,
            hard: 20,
            easier: 5,
        };
        round(
            &mut samples,
            form,
            &target().join("debug/hashfinder"),
            &size,
        )?;
        samples.print();
        return Ok(());
    }
    step("the program", &mut cargo("build --release"))?;
    step(
        "the benchmark",
        &mut cargo("bench -p hashfinder-search --bench engine --no-run"),
    )?;
    if !has_h2load() {
        install(&H2LOAD)?;
    }
    for number in 1..=ROUNDS {
        println!("== round {number} of {ROUNDS}");
        let size = Size {
            calls: 60_000,
            hard: 1000,
            easier: 300,
        };
        let program = target().join("release/hashfinder");
        round(&mut samples, form, &program, &size)?;
    }
    let intro = format!(
        "`cargo xtask bench engine` on all cores of: {}\n\nMedians of {ROUNDS} rounds. The calls of easier searches are beside 1,000 hard ones.",
        results::cpu()
    );
    samples.write("Engine", &intro, &GOALS)
}

fn round(samples: &mut Samples, form: Form, program: &Path, size: &Size) -> Result<()> {
    samples.bench("hashfinder-search", "engine", form)?;
    let server = Server::start(program)?;
    calls(samples, &server, size).with_context(|| format!("the server's log:\n{}", Server::log()))
}

/// Measures calls to a server.
fn calls(samples: &mut Samples, server: &Server, size: &Size) -> Result<()> {
    let easy = server.load(
        "hash_name.HashFinder/Find",
        &[0, 0, 0, 0, 4, 0x0a, 2, b'a', b'a'],
        size.calls,
    )?;
    let constant = server.load("grpc.health.v1.Health/Check", &[0; 5], size.calls)?;
    samples.add(EASY, easy);
    samples.add(CONSTANT, constant);
    samples.add(CALLS, easy / constant);
    let mut neighbours = Command::new(prepare_python()?);
    neighbours
        .arg("bench/neighbours.py")
        .args([server.at("127.0.0.1"), server.at("[::1]")])
        .args([size.hard.to_string(), size.easier.to_string()]);
    let medians = output(&mut neighbours)?;
    ensure!(
        medians.lines().count() == NEIGHBOURS.len(),
        "neighbours.py printed:\n{medians}"
    );
    for (name, median) in NEIGHBOURS.into_iter().zip(medians.lines()) {
        samples.add(name, median.parse()?);
    }
    Ok(())
}

/// A server process, which is killed on drop.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn start(program: &Path) -> Result<Server> {
        let config = target().join("engine.toml");
        // The connections come from one or two addresses, but stand for many clients, so the limits
        // are high.
        let limits = "[serve.limits]\n\
            maximum-streams-per-second = 1000000\n\
            maximum-calls-per-second-per-address = 1000000\n";
        fs::write(&config, limits)?;
        let mut process = Command::new(program)
            // Listens on IPv4 and IPv6, so that one machine can be two clients.
            .args([
                "serve",
                "--host",
                "::",
                "--port",
                "0",
                "--listen-unprotected",
            ])
            .args(["--maximum-concurrent-rpcs", "5000"])
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::piped())
            .stderr(fs::File::create(target().join(LOG))?)
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let mut line = String::new();
        let output = process.stdout.take().context("it has no stdout")?;
        BufReader::new(output).read_line(&mut line)?;
        let port = line.trim().rsplit(':').next().unwrap_or_default();
        match port.parse() {
            Ok(port) => Ok(Server { process, port }),
            Err(_) => {
                // The server's log is complete once the server has ended.
                process.kill()?;
                process.wait()?;
                let log = Server::log();
                bail!("the server printed {line:?} instead of its address; its log:\n{log}");
            }
        }
    }

    fn log() -> String {
        fs::read_to_string(target().join(LOG)).unwrap_or_default()
    }

    fn at(&self, host: &str) -> String {
        format!("{host}:{}", self.port)
    }

    /// Calls a method `calls` times, each time with the same message. Returns the calls per second.
    fn load(&self, method: &str, message: &[u8], calls: u32) -> Result<f64> {
        let file = target().join("message.bin");
        fs::write(&file, message)?;
        let mut load = Command::new("h2load");
        load.args(["-c", "4", "-m", "16", "-n", &calls.to_string()])
            .args([
                "-H",
                "content-type: application/grpc",
                "-H",
                "te: trailers",
                "-d",
            ])
            .arg(&file)
            .arg(format!("http://{}/{method}", self.at("127.0.0.1")));
        let text = output(&mut load)?;
        let succeeded = format!(" {calls} succeeded");
        ensure!(text.contains(&succeeded), "calls failed:\n{text}");
        let rate = text
            .lines()
            .find_map(|line| line.strip_prefix("finished in "));
        let rate = rate.and_then(|rest| rest.split([' ', ',']).nth(2)?.parse().ok());
        rate.with_context(|| format!("h2load printed no rate:\n{text}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // If this fails, the process has already ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
