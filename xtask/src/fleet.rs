//! `cargo xtask fleet`: a fleet on this machine, while its parts are killed.

#![allow(
    clippy::disallowed_methods,
    reason = "processes write to files, which signal nothing, and people read what is printed"
)]

use std::{
    ffi::OsString,
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    results::{self, Goal, Samples},
    steps::{Form, cargo, output, step, target},
    tools::{BROKER, prepare_brokers, prepare_python},
};

/// Timeout for each expected event.
const PATIENCE: Duration = Duration::from_secs(60);

/// Name that the demonstration searches for. No secret that it can try has it.
const NAME: &str = "hashfinderfleet";

/// Candidates within this distance show that the answer is the same.
const INTERESTING: &str = "8";

/// A process of the fleet. Dropping it kills it.
struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(name: &str, folder: &Path, command: &mut Command) -> Result<Process> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Process {
            name: name.to_owned(),
            child,
            log,
        })
    }

    fn says(&self, text: &str) -> Option<String> {
        let log = fs::read_to_string(&self.log).ok()?;
        let line = log.lines().find(|line| line.contains(text))?;
        Some(line.to_owned())
    }

    fn wait_for(&self, text: &str) -> Result<String> {
        wait(&format!("{} to print {text:?}", self.name), || {
            self.says(text)
        })
    }

    /// Kills the process, as `kill -9` does.
    fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks the process to stop, as `kill` does, and waits until it has.
    fn stop(&mut self) -> Result<()> {
        let id = self.child.id().to_string();
        output(Command::new("kill").arg(id))?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        ensure!(began.elapsed() < PATIENCE, "timed out after 60 s: {what}");
        sleep(Duration::from_millis(20));
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// What the demonstration has.
struct Demonstration {
    program: PathBuf,
    broker: PathBuf,
    folder: PathBuf,
    broker_port: u16,
    began: Instant,
}

impl Demonstration {
    fn say(&self, what: &str) {
        println!("{:6.1} s  {what}", self.began.elapsed().as_secs_f64());
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.broker_port)
    }

    /// Returns the flags with which a user of the broker connects.
    fn fleet(&self, user: &str) -> [OsString; 4] {
        let credentials = self.folder.join(format!("config/{user}.txt"));
        let (url, flag) = (self.url(), "--fleet-credentials");
        [
            "--fleet".into(),
            url.into(),
            flag.into(),
            credentials.into(),
        ]
    }

    /// Runs `hashfinder fleet`.
    fn operate(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.arg("fleet").args(arguments);
        output(command.args(self.fleet("operator")))
    }

    fn broker(&self) -> Result<Process> {
        let broker = Process::start(
            "broker",
            &self.folder,
            Command::new(&self.broker)
                .arg("-c")
                .arg(self.folder.join("config/nats.conf"))
                .args(["-p", &self.broker_port.to_string()]),
        )?;
        broker.wait_for("Server is ready")?;
        Ok(broker)
    }

    fn server(&self, number: usize, port: u16) -> Result<Process> {
        let server = Process::start(
            &format!("server-{number}"),
            &self.folder,
            Command::new(&self.program)
                .args(["serve", "--port", &port.to_string()])
                .args(self.fleet("server")),
        )?;
        server.wait_for("listening on")?;
        Ok(server)
    }

    fn agent(&self, number: usize) -> Result<Process> {
        let agent = Process::start(
            &format!("agent-{number}"),
            &self.folder,
            Command::new(&self.program)
                .args(["agent", "--threads", "1"])
                .args(self.fleet(&format!("agents/agent-{number}"))),
        )?;
        agent.wait_for("ready")?;
        Ok(agent)
    }

    /// Prints the state of the fleet.
    fn status(&self) -> Result<()> {
        for line in self.operate(&["status"])?.lines() {
            println!("          {}", line.replace('\t', "  "));
        }
        Ok(())
    }
}

const ROUNDS: usize = 3;

const ONE: &str = "hashes a second, two agents of one core / one process of two, one query";
const MANY: &str = "tests a second, the same, 64 queries that share";
const MESSAGES: &str = "messages for each agent and second, one search";
const CANCEL_48: &str = "ms from a cancel until two agents are free, p99, 48 idle connections";
const CANCEL_498: &str = "ms from a cancel until two agents are free, p99, 498 idle connections";
const FIRST: &str = "s from the kill of the leader to new leases";
const REPEATED: &str = "s of both agents' work repeated after it";
const FIRST_CLUSTER: &str =
    "s from the kill of the leader and of its stream's leader, of three brokers, to new leases";
const LEADER: &str = "cores of the leader, 1,000 operations";
const WRITES: &str = "writes a second at the broker, 1,000 operations that find nothing";
const SHARE: &str = "least share of nine clients beside one with 1,000 operations, of a tenth";
const REPEATED_CLUSTER: &str = "s of both agents' work repeated after that";

/// Goals, by the name of the figure.
const GOALS: [(&str, Goal); 12] = [
    (ONE, Goal::AtLeast(0.97)),
    (MANY, Goal::AtLeast(0.9)),
    (MESSAGES, Goal::AtMost(2.0)),
    (CANCEL_48, Goal::AtMost(20.0)),
    (CANCEL_498, Goal::AtMost(50.0)),
    (FIRST, Goal::AtMost(4.0)),
    (REPEATED, Goal::AtMost(10.0)),
    (FIRST_CLUSTER, Goal::AtMost(10.0)),
    (REPEATED_CLUSTER, Goal::AtMost(10.0)),
    (SHARE, Goal::AtLeast(0.95)),
    (LEADER, Goal::AtMost(0.25)),
    (WRITES, Goal::AtMost(2.0)),
];

/// Measures a fleet on this machine, prints the table, and writes it to `bench/RESULTS.md`.
pub(crate) fn bench(form: Form) -> Result<()> {
    let python = prepare_python()?;
    let broker = prepare_brokers(&python)?
        .join(BROKER)
        .join("bin/nats-server");
    let mut samples = Samples::default();
    let (rounds, program, size) = match form {
        Form::Short => (1, "debug/hashfinder", ["2", "3", "20"]),
        Form::Long => {
            step("the program", &mut cargo("build --release"))?;
            (ROUNDS, "release/hashfinder", ["60", "100", "1000"])
        }
    };
    for _ in 0..rounds {
        let mut script = Command::new(&python);
        script
            .arg("bench/fleet.py")
            .arg(target().join(program))
            .arg(&broker)
            .args(size);
        for line in output(&mut script)?.lines() {
            let figure = line.split_once(": ");
            let (name, value) = figure.with_context(|| format!("not a figure: {line}"))?;
            let name = match name {
                "one query" => ONE,
                "64 queries" => MANY,
                "messages" => MESSAGES,
                "cancel p99 48" => CANCEL_48,
                "cancel p99 498" => CANCEL_498,
                "cancel p50 48" => "ms, the same, median, 48 idle connections",
                "cancel p50 498" => "ms, the same, median, 498 idle connections",
                "least share" => SHARE,
                "leader cores" => LEADER,
                "writes" => WRITES,
                "first lease" => FIRST,
                "repeated" => REPEATED,
                "first lease, with its stream's leader" => FIRST_CLUSTER,
                "repeated, with its stream's leader" => REPEATED_CLUSTER,
                other => bail!("unknown figure {other:?}"),
            };
            samples.add(name, value.parse()?);
        }
    }
    if form == Form::Short {
        samples.print();
        return Ok(());
    }
    let intro = format!(
        "`cargo xtask bench fleet` on all cores of: {}\n\nMedians of {ROUNDS} rounds, each with searches of 60 s and 100 cancels. A broker, a server and two agents on one machine.",
        results::cpu()
    );
    samples.write("A fleet on one machine", &intro, &GOALS)
}

/// Starts a broker, two servers and four agents, runs a search and an operation, kills things, and
/// prints what happened.
pub(crate) fn run(form: Form) -> Result<()> {
    step("the program", &mut cargo("build --bins"))?;
    let brokers = prepare_brokers(&prepare_python()?)?;
    let folder = target().join("fleet");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let on = Demonstration {
        program: target().join("debug/hashfinder"),
        broker: brokers.join(BROKER).join("bin/nats-server"),
        broker_port: free_port()?,
        folder,
        began: Instant::now(),
    };
    let budget = match form {
        Form::Long => "6000000000",
        Form::Short => "3000000000",
    };
    println!("logs are in {}", on.folder.display());
    let mut config = Command::new(&on.program);
    config.args(["fleet", "nats-config"]);
    config.arg(on.folder.join("config"));
    output(config.args((1..=5).map(|number| format!("agent-{number}"))))?;
    on.say("fleet nats-config has written users for a broker: each agent is one");
    let mut broker = on.broker()?;
    on.say(&format!("a NATS broker is ready at {}", on.url()));
    let ports = [free_port()?, free_port()?];
    let mut servers = Vec::new();
    for (number, port) in ports.into_iter().enumerate() {
        servers.push(on.server(number + 1, port)?);
    }
    on.say("two servers listen");
    let leads = "this server leads the fleet";
    let leader = wait("a leader", || {
        servers
            .iter()
            .position(|server| server.says(leads).is_some())
    })?;
    let other = 1 - leader;
    on.say(&format!("{} leads the fleet", servers[leader].name));
    let mut agents = Vec::new();
    for number in 1..=4 {
        agents.push(on.agent(number)?);
    }
    on.say("four agents are ready, with a thread each");
    on.status()?;

    let query = [
        NAME,
        "--show-inferior",
        INTERESTING,
        "--maximum-hashes",
        budget,
    ];
    let mut search = Process::start(
        "search",
        &on.folder,
        Command::new(&on.program)
            .args(["find", "--server"])
            .arg(format!("127.0.0.1:{}", ports[other]))
            .args(query),
    )?;
    on.say(&format!(
        "a search for {budget} hashes begins at {}",
        servers[other].name
    ));
    let at = |number: usize| format!("127.0.0.1:{}", ports[number]);
    let operation = output(
        Command::new(&on.program)
            .args(["find", "--detach", "--quiet", "--server", &at(leader)])
            .args(query),
    )?;
    let operation = operation.trim();
    on.say(&format!(
        "{} saves the same search as an operation",
        servers[leader].name
    ));
    sleep(Duration::from_secs(2));
    on.status()?;

    on.say(&format!("kill -9 of {}, which leads", servers[leader].name));
    servers[leader].kill()?;
    let killed = Instant::now();
    servers[other].wait_for(leads)?;
    on.say(&format!(
        "{} leads the fleet, {:.1} s later",
        servers[other].name,
        killed.elapsed().as_secs_f64()
    ));
    servers[leader] = on.server(leader + 1, ports[leader])?;
    on.say(&format!("{} is back", servers[leader].name));
    let operations = |command: &str, number: usize| {
        let mut operations = Command::new(&on.program);
        operations.args(["operations", command, operation, "--server", &at(number)]);
        operations
    };
    let mut watch = Process::start("watch", &on.folder, &mut operations("watch", other))?;
    on.say(&format!(
        "{} shows the operation's candidates: operations watch",
        servers[other].name
    ));

    sleep(Duration::from_secs(1));
    on.say("kill -9 of agent-1; its leases return after 3 s");
    agents[0].kill()?;
    on.say("kill (SIGTERM) of agent-2; it hands back its leases at once");
    let asked = Instant::now();
    agents[1].stop()?;
    on.say(&format!(
        "agent-2 has ended, {:.2} s later",
        asked.elapsed().as_secs_f64()
    ));

    on.say("kill -9 of the broker");
    broker.kill()?;
    sleep(Duration::from_secs(1));
    broker = on.broker()?;
    on.say("the broker is back");
    agents[0] = on.agent(5)?;
    on.say("agent-5 joins");
    sleep(Duration::from_secs(2));
    on.status()?;
    on.operate(&["ban", "agent-3", "--reason", "its memory is broken"])?;
    on.say("fleet ban agent-3: what it has tried is tried again");
    agents[2].wait_for("is banned: its memory is broken")?;
    on.operate(&["drain", "agent-4"])?;
    on.say("fleet drain agent-4");
    let ended = wait("agent-4 to end", || agents[3].child.try_wait().ok()?)?;
    ensure!(ended.success(), "agent-4 has ended with {ended}");
    on.say("agent-4 has returned its leases, and ended");
    on.operate(&["unban", "agent-3"])?;
    on.say("fleet unban agent-3");
    on.status()?;

    let began = Instant::now();
    while search.child.try_wait()?.is_none() {
        if began.elapsed() > 5 * PATIENCE {
            bail!("the search does not end");
        }
        sleep(Duration::from_millis(20));
    }
    watch.child.wait()?;
    on.say("the search and the operation have ended; the same search follows in one process");
    let alone = Process::start(
        "alone",
        &on.folder,
        Command::new(&on.program).arg("find").args(query),
    )?;
    let mut alone = alone;
    alone.child.wait()?;
    let candidates = |process: &Process| -> Result<Vec<String>> {
        let printed = fs::read_to_string(&process.log)?;
        // Then the nearest one is repeated.
        let end = "hashfinder: nearest candidate";
        let lines = printed.lines().take_while(|line| !line.starts_with(end));
        let lines = lines.filter(|line| !line.starts_with("hashfinder: "));
        Ok(lines.map(str::to_owned).collect())
    };
    let (found, expected) = (candidates(&search)?, candidates(&alone)?);
    ensure!(
        candidates(&watch)? == expected,
        "the operation's candidates differ from those of one process"
    );
    let listed = output(&mut operations("candidates", leader))?;
    ensure!(
        listed.lines().eq(&expected),
        "the operation's candidates differ at {}",
        servers[leader].name
    );
    ensure!(!expected.is_empty(), "the search has no candidates");
    ensure!(
        found == expected,
        "the fleet's answer differs from that of one process"
    );
    let spent = "hash budget spent";
    ensure!(
        search.says(spent).is_some() && alone.says(spent).is_some(),
        "a search has failed"
    );
    on.say(&format!(
        "all three found the same {} candidates in the same order, within exactly {budget} hashes",
        found.len()
    ));
    drop(broker);
    Ok(())
}
