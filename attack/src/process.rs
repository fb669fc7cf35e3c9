//! Processes of the server under attack and of the attackers, and what the system reports about
//! them.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

/// How long to wait for an event whose time is not judged. It is generous, because the short forms
/// must not fail on a machine whose cores are all busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Maximum time for an attacker to end once its time is over. It may first wait up to [`PATIENCE`]
/// for evidence of its attack.
const LINGER: Duration = Duration::from_secs(120);

/// How often to check whether a process has ended.
const LOOK: Duration = Duration::from_millis(10);

/// A server process, which is killed on drop.
pub(crate) struct Server {
    process: Child,
    pub(crate) address: SocketAddr,
    metrics: SocketAddr,
    log: PathBuf,
    config: PathBuf,
    is_asked_to_end: bool,
}

impl Server {
    /// Starts a server on free ports. `limits` are settings that have no flags. They are written
    /// into a configuration file, which then replaces the user's.
    pub(crate) fn start(
        binary: &Path,
        arguments: &[String],
        limits: &[(&str, &str)],
    ) -> Result<Server> {
        static SERVERS: AtomicU32 = AtomicU32::new(0);
        let number = SERVERS.fetch_add(1, Ordering::Relaxed);
        let name = format!("hashfinder-attack-{}-{number}", std::process::id());
        let log = env::temp_dir().join(format!("{name}.log"));
        let config = env::temp_dir().join(format!("{name}.toml"));
        let mut command = Command::new(binary);
        command
            .args(["serve", "--port", "0", "--metrics-address", "127.0.0.1:0"])
            .args(arguments)
            // A log level in the environment must not affect the measurement.
            .env_remove("HASHFINDER_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).context("cannot write the server's log")?);
        if !limits.is_empty() {
            let mut text = "[serve.limits]\n".to_owned();
            for (name, value) in limits {
                text += &format!("{name} = \"{value}\"\n");
            }
            fs::write(&config, text).context("cannot write the server's configuration")?;
            command.arg("--config").arg(&config);
        }
        let shown = binary.display();
        let process = command.spawn();
        let process =
            process.with_context(|| format!("cannot run {shown}; --server-binary names one"))?;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Server {
            process,
            address: nowhere,
            metrics: nowhere,
            log,
            config,
            is_asked_to_end: false,
        };
        let mut line = String::new();
        let output = server.process.stdout.take().context("it has no stdout")?;
        BufReader::new(output).read_line(&mut line)?;
        let address = line.trim().strip_prefix("hashfinder listening on ");
        let address = address.and_then(|address| address.parse().ok());
        server.address = address.with_context(|| {
            let log = server.log();
            format!("{shown} did not say where it listens, but {line:?}; its log:\n{log}")
        })?;
        let until = Instant::now() + PATIENCE;
        loop {
            let log = server.log();
            let shown = log.lines().find_map(|line| {
                let (_, address) = line.split_once("serving metrics")?;
                let (_, address) = address.split_once("address=")?;
                let address = address.split_whitespace().next()?;
                address.trim_matches('"').parse().ok()
            });
            if let Some(address) = shown {
                server.metrics = address;
                return Ok(server);
            }
            ensure!(
                Instant::now() < until,
                "the server's log does not say where its metrics are:\n{log}"
            );
            thread::sleep(LOOK);
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Returns the server's log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Returns the server's failures: an unexpected or unsuccessful exit, and the first panic in
    /// its log.
    pub(crate) fn failures(&mut self) -> Vec<String> {
        let mut failures = Vec::new();
        if let Ok(Some(status)) = self.process.try_wait() {
            if !self.is_asked_to_end {
                failures.push(format!("the server ended by itself, with {status}"));
            } else if !status.success() {
                failures.push(format!("the server ended with {status} after SIGTERM"));
            }
        }
        // Read line by line, because the log can be long.
        let log = fs::File::open(&self.log).map(BufReader::new);
        let lines = log.into_iter().flat_map(BufRead::lines);
        let mut lines = lines.map_while(Result::ok);
        if let Some(panic) = lines.find(|line| is_panic(line)) {
            failures.push(format!("the server panicked: {panic}"));
        }
        failures
    }

    /// Sends SIGTERM, which starts a drain.
    pub(crate) fn terminate(&mut self) -> Result<()> {
        self.is_asked_to_end = true;
        kill_process(self.pid()?, Signal::TERM).context("cannot signal the server")
    }

    /// Limits the server to `most` open files. Files that are already open stay open.
    pub(crate) fn limit_descriptors(&self, most: u64) -> Result<()> {
        let limit = Rlimit {
            current: Some(most),
            // The server has inherited this maximum.
            maximum: getrlimit(Resource::Nofile).maximum,
        };
        let limited = prlimit(Some(self.pid()?), Resource::Nofile, limit);
        limited.context("cannot limit the server's descriptors")?;
        Ok(())
    }

    fn pid(&self) -> Result<Pid> {
        let id = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        id.context("the server has no number")
    }

    /// Waits for the server to end, at most for `time`. Returns whether it has ended.
    pub(crate) fn ended_within(&mut self, time: Duration) -> Result<bool> {
        let until = Instant::now() + time;
        while self.process.try_wait()?.is_none() {
            if Instant::now() > until {
                return Ok(false);
            }
            thread::sleep(LOOK);
        }
        Ok(true)
    }

    /// Returns the server's metrics.
    pub(crate) fn metrics(&self) -> Result<Metrics> {
        let mut socket = TcpStream::connect_timeout(&self.metrics, PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut page = String::new();
        socket.read_to_string(&mut page)?;
        let lines = page.lines().filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Ok(Metrics(lines.collect()))
    }

    /// Returns the server's resident memory in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        self.resident("VmRSS:")
    }

    /// Returns the part of the server's resident memory that no file backs, in bytes.
    pub(crate) fn heap(&self) -> Result<u64> {
        self.resident("RssAnon:")
    }

    fn resident(&self, which: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(which));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        Ok(number.context("the server has ended")? << 10)
    }

    /// Returns the number of the server's open files.
    pub(crate) fn descriptors(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.id()))?.count())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // If this fails, the process has already ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(&self.log);
        // This file exists only if there were limits.
        let _ = fs::remove_file(&self.config);
    }
}

/// Whether a line of the server's log reports a panic: the standard library's message, a call that
/// panicked, or the error of the server's panic hook. This error has the message `panic` and the
/// fields below, of which the first two may be missing.
fn is_panic(line: &str) -> bool {
    let fields = [": panic panic=", ": panic location=", ": panic backtrace="];
    let is_error = line.split_whitespace().nth(1) == Some("ERROR");
    let is_hooks = is_error && fields.iter().any(|field| line.contains(field));
    is_hooks || line.contains("panicked")
}

/// The server's metrics, by their names including labels.
pub(crate) struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Returns the sum of all metrics whose names begin with `prefix`.
    fn sum(&self, prefix: &str) -> u64 {
        let all = self.0.iter().filter(|(name, _)| name.starts_with(prefix));
        all.map(|(_, value)| *value).sum::<f64>() as u64
    }

    /// Returns the metric with exactly this name, or 0 if there is none.
    pub(crate) fn value(&self, name: &str) -> u64 {
        self.0.get(name).map_or(0, |value| *value as u64)
    }

    /// Returns the nonzero values of a metric, added up for each value of `label`.
    pub(crate) fn by_label(&self, metric: &str, label: &str) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for (name, value) in &self.0 {
            let labels = name
                .strip_prefix(metric)
                .filter(|rest| rest.starts_with('{'));
            let value = Some(*value as u64).filter(|value| *value > 0);
            let word = labels.and_then(|labels| {
                let (_, rest) = labels.split_once(&format!("{label}=\""))?;
                Some(rest.split_once('"')?.0)
            });
            if let Some((word, value)) = word.zip(value) {
                *all.entry(word.to_owned()).or_default() += value;
            }
        }
        all
    }

    /// Returns the number of searches that have not ended.
    pub(crate) fn searches(&self) -> u64 {
        self.sum("hashfinder_searches{")
    }

    /// Returns how many searches were stopped because their readers had stalled.
    pub(crate) fn unread(&self) -> u64 {
        self.value("hashfinder_searches_ended_total{how=\"unread\"}")
    }

    /// Returns how many secrets were tested, each counted once for every search.
    pub(crate) fn tests(&self) -> u64 {
        self.value("hashfinder_tests_total")
    }

    /// Returns the number of calls that a drain would wait for.
    pub(crate) fn calls(&self) -> u64 {
        self.sum("hashfinder_active_calls")
    }

    /// Returns how many calls have begun.
    pub(crate) fn started(&self) -> u64 {
        self.sum("grpc_server_started_total")
    }
}

/// Returns the CPU time of a process, all threads together.
pub(crate) fn core_time(id: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The name in parentheses may contain any characters.
    let rest = stat.rsplit_once(')').map(|(_, rest)| rest);
    let fields: Vec<&str> = rest.unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let ticks = ticks(11).zip(ticks(12)).map(|(user, system)| user + system);
    let ticks = ticks.context("/proc has no CPU times of the process")?;
    let each = 1.0 / rustix::param::clock_ticks_per_second() as f64;
    Ok(Duration::from_secs_f64(ticks as f64 * each))
}

/// This program in another process, so that the system counts its CPU time separately.
pub(crate) struct Other {
    process: Child,
    until: Instant,
}

impl Other {
    /// Runs one of this program's commands, which ends after `time`.
    pub(crate) fn start(arguments: &[String], time: Duration) -> Result<Other> {
        Other::spawn(arguments, time, Stdio::null())
    }

    /// Runs a command that ends when stdin does, and may read lines from it.
    pub(crate) fn listening(arguments: &[String], time: Duration) -> Result<Other> {
        Other::spawn(arguments, time, Stdio::piped())
    }

    fn spawn(arguments: &[String], time: Duration, stdin: Stdio) -> Result<Other> {
        let program = env::current_exe().context("cannot find this program's path")?;
        let process = Command::new(program)
            .args(arguments)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start an attacker")?;
        Ok(Other {
            process,
            until: Instant::now() + time + LINGER,
        })
    }

    /// Sends a line to the process's stdin.
    pub(crate) fn send_line(&mut self, line: &str) -> Result<()> {
        let stdin = self
            .process
            .stdin
            .as_mut()
            .context("its stdin is not open")?;
        writeln!(stdin, "{line}").context("it has ended")
    }

    /// Closes the process's stdin and waits until the process ends. Returns its output and its CPU
    /// time.
    pub(crate) fn finish(mut self) -> Result<(String, Duration)> {
        drop(self.process.stdin.take());
        let mut output = self.process.stdout.take().context("it has no stdout")?;
        let said = thread::spawn(move || {
            let mut said = String::new();
            output.read_to_string(&mut said).map(|_| said)
        });
        let mut took = Duration::ZERO;
        loop {
            took = core_time(self.process.id()).unwrap_or(took);
            if let Some(status) = self.process.try_wait()? {
                ensure!(status.success(), "an attacker ended with {status}");
                break;
            }
            ensure!(Instant::now() < self.until, "an attacker does not end");
            thread::sleep(LOOK);
        }
        match said.join() {
            Ok(said) => Ok((said?, took)),
            Err(_) => bail!("the thread that reads the attacker's output panicked"),
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // If this fails, the process has already ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_found_in_the_log() {
        for (line, expected) in [
            (
                r#"2026-11-21T22:29:22.680787Z ERROR hashfinder_server::log: panic panic="boom" location=a.rs:9:41 backtrace=disabled backtrace"#,
                true,
            ),
            (
                "2026-11-21T22:29:22.680787Z ERROR call{id=4}: hashfinder_server::log: panic location=a.rs:9:41 backtrace=   0: main",
                true,
            ),
            (
                "2026-11-21T22:29:22.680787Z ERROR hashfinder_server::log: panic backtrace=disabled backtrace",
                true,
            ),
            ("thread 'main' panicked at a.rs:9:41:", true),
            (
                "2026-11-21T22:29:22.680787Z  INFO hashfinder_server::searches::call: call ended outcome=\"panicked\"",
                true,
            ),
            (
                "2026-11-21T22:29:22.680787Z  INFO hashfinder_server::searches::call: call reason=\"x: panic location=a\"",
                false,
            ),
            (
                "2026-11-21T22:29:22.680787Z ERROR hashfinder_server::searches::call: no panic, but an error",
                false,
            ),
        ] {
            assert_eq!(is_panic(line), expected, "{line}");
        }
    }
}
