//! Results of the trials, as tables.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{connection::Source, healthy::Figures, seen::Seen};

/// Heading of the section that has the tables.
const SECTION: &str = "## Attacks";

/// Result of an attack.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) connections: usize,
    pub(crate) source: Source,
    pub(crate) figures: Figures,
    pub(crate) control: Option<Figures>,
    pub(crate) newcomers: Figures,
    /// Growth of the server's memory in bytes: the maximum during the attack, and the growth that
    /// remained after it.
    pub(crate) growth: u64,
    pub(crate) memory_after: u64,
    /// Maximum number of concurrent searches and calls.
    pub(crate) searches: u64,
    pub(crate) calls: u64,
    pub(crate) recovery: Option<Duration>,
    /// CPU use in cores: of the attackers, and of the server beyond its use before the attack,
    /// during the attack and after it.
    pub(crate) attack_cores: f64,
    pub(crate) server_cores: f64,
    pub(crate) busy_after: f64,
    /// Number of calls that the attack started.
    pub(crate) started: u64,
    pub(crate) seen: Seen,
    pub(crate) failures: Vec<String>,
}

/// Result of a fault.
pub(crate) struct FaultReport {
    pub(crate) name: String,
    /// Observations, each a name and a value.
    pub(crate) observed: Vec<(&'static str, String)>,
    pub(crate) failures: Vec<String>,
}

/// Formats a duration in milliseconds.
pub(crate) fn ms(time: Duration) -> String {
    let time = time.as_secs_f64() * 1e3;
    if time < 10.0 {
        format!("{time:.2}")
    } else {
        format!("{time:.0}")
    }
}

fn verdict(failures: &[String]) -> &'static str {
    if failures.is_empty() { "pass" } else { "FAIL" }
}

/// Summarizes what the server sent to the attackers.
fn answers(row: &Row) -> String {
    let seen = &row.seen;
    let mut words: Vec<String> = [
        ("closed connections", "closed"),
        ("refused connections", "refused"),
    ]
    .into_iter()
    .filter(|(what, _)| seen.count(what) > 0)
    .map(|(what, word)| {
        format!(
            "{word} {} of {}",
            seen.count(what),
            seen.count("connections")
        )
    })
    .collect();
    for prefix in ["goaway ", "reset ", "grpc-status ", "HTTP "] {
        let mut most: Vec<(&str, u64)> = seen.beginning(prefix).collect();
        most.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        words.extend(
            most.iter()
                .take(2)
                .map(|(what, count)| format!("{what}: {count}")),
        );
    }
    if words.is_empty() {
        words.push("nothing".to_owned());
    }
    words.join(", ")
}

/// The table's head, for attacks.
const HEAD: &str = "\
| attack | connections | p50 / p99 / longest, ms | control, ms | failed | new clients failed | memory, MiB | searches, calls | recovery, ms | cores: attack, server | handlers | what the attackers got | |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |
";

impl Row {
    fn line(&self) -> String {
        let times = |figures: &Figures| {
            let [p50, p99, longest] = [figures.p50, figures.p99, figures.longest].map(ms);
            format!("{p50} / {p99} / {longest}")
        };
        let from = match self.source {
            Source::One => "",
            Source::Many => " hosts",
        };
        format!(
            "| {} | {}{from} | {} | {} | {} of {} | {} of {} | +{} | {}, {} | {} | {:.2}, {:.2} | {} | {} | {} |",
            self.name,
            self.connections,
            times(&self.figures),
            self.control.as_ref().map_or("-".to_owned(), times),
            self.figures.failed,
            self.figures.calls,
            self.newcomers.failed,
            self.newcomers.calls,
            self.growth >> 20,
            self.searches,
            self.calls,
            self.recovery.map_or("never".to_owned(), ms),
            self.attack_cores,
            self.server_cores,
            self.started,
            answers(self),
            verdict(&self.failures),
        )
    }

    fn json(&self) -> Value {
        let figures = |figures: &Figures| {
            json!({
                "calls": figures.calls,
                "failed": figures.failed,
                "failure": figures.failure,
                "p50_ms": figures.p50.as_secs_f64() * 1e3,
                "p99_ms": figures.p99.as_secs_f64() * 1e3,
                "longest_ms": figures.longest.as_secs_f64() * 1e3,
            })
        };
        json!({
            "attack": self.name,
            "connections": self.connections,
            "healthy": figures(&self.figures),
            "control": self.control.as_ref().map(figures),
            "newcomers": figures(&self.newcomers),
            "memory_growth": self.growth,
            "memory_growth_after": self.memory_after,
            "searches": self.searches,
            "calls": self.calls,
            "recovery_ms": self.recovery.map(|time| time.as_secs_f64() * 1e3),
            "attack_cores": self.attack_cores,
            "server_cores": self.server_cores,
            "server_cores_after": self.busy_after,
            "handlers": self.started,
            "seen": self.seen.to_json(),
            "failures": self.failures,
        })
    }
}

impl FaultReport {
    fn line(&self) -> String {
        let observed: Vec<String> = self
            .observed
            .iter()
            .map(|(what, value)| format!("{what}: {value}"))
            .collect();
        format!(
            "| {} | {} | {} |",
            self.name,
            observed.join("; "),
            verdict(&self.failures)
        )
    }

    fn json(&self) -> Value {
        let observed = self.observed.iter();
        let observed: serde_json::Map<String, Value> = observed
            .map(|(what, value)| ((*what).to_owned(), value.clone().into()))
            .collect();
        json!({"fault": self.name, "told": observed, "failures": self.failures})
    }
}

/// Results of all attacks and faults.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    pub(crate) faults: Vec<FaultReport>,
}

impl Report {
    /// Returns one line for each failure.
    pub(crate) fn failures(&self) -> Vec<String> {
        let rows = self.rows.iter().map(|row| {
            let name = format!("{} ({} connections)", row.name, row.connections);
            (name, &row.failures)
        });
        let faults = self
            .faults
            .iter()
            .map(|fault| (fault.name.clone(), &fault.failures));
        let all = rows.chain(faults);
        all.flat_map(|(name, failures)| failures.iter().map(move |what| format!("{name}: {what}")))
            .collect()
    }

    /// Returns the tables in Markdown.
    pub(crate) fn tables(&self) -> String {
        let mut text = String::new();
        if !self.rows.is_empty() {
            text += HEAD;
            for row in &self.rows {
                text += &row.line();
                text.push('\n');
            }
        }
        if !self.faults.is_empty() {
            text += "\n| fault | what was seen | |\n| --- | --- | --- |\n";
            for fault in &self.faults {
                text += &fault.line();
                text.push('\n');
            }
        }
        let failures = self.failures_as_list();
        if !failures.is_empty() {
            text += "\nWhat failed:\n\n";
            text += &failures;
        }
        text
    }

    fn failures_as_list(&self) -> String {
        let mut text = String::new();
        for failure in self.failures() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "- {failure}");
        }
        text
    }

    pub(crate) fn json(&self) -> Value {
        let rows = self.rows.iter().map(Row::json);
        let faults = self.faults.iter().map(FaultReport::json);
        Value::Array(rows.chain(faults).collect())
    }

    /// Writes the tables into a file, replacing those of the last run.
    pub(crate) fn write(&self, file: &Path, seconds: Duration) -> Result<()> {
        let intro = format!(
            "`cargo xtask long attack`, {} s each, on {}. SECURITY.md says what passes.\n\n\
             *Control* is a run in which something harmless takes the same share of the cores. Times are from \
             when a call was due to begin.\nAll attackers come from one address, with niceness 10: real ones \
             would be on other machines. *Searches, calls* is the maximum\nat a time, *handlers* the number \
             that the attack started.",
            seconds.as_secs_f64(),
            cpu()
        );
        write_section(file, SECTION, &format!("{intro}\n\n{}", self.tables()))
    }
}

/// Writes a section into a file, replacing the section with the same title.
pub(crate) fn write_section(file: &Path, title: &str, text: &str) -> Result<()> {
    let shown = file.display();
    let before = fs::read_to_string(file).with_context(|| format!("cannot read {shown}"))?;
    let at = before
        .find(title)
        .with_context(|| format!("{shown} has no {title:?}"))?;
    let (head, rest) = before.split_at(at);
    let next = rest.find("\n## ").map_or("", |next| &rest[next..]);
    let text = format!("{head}{title}\n\n{text}{next}");
    fs::write(file, text).with_context(|| format!("cannot write {shown}"))
}

/// Returns the CPU's name and the number of cores.
pub(crate) fn cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let name = line.and_then(|rest| rest.split_once(':'));
    let name = name.map_or("an unknown CPU", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{cores} cores of {name}")
}
