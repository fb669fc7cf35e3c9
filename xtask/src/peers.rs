//! `cargo xtask bench peers`: compares our kernels with hashcat, on one core. The programs run in
//! turn.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::PathBuf,
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};

use crate::{
    results,
    steps::{Form, cargo, output, step, target},
    tools::{HASHCAT, has_hashcat, install},
};

/// Number of rounds. All programs take turns, so that other load on the machine affects them alike.
const ROUNDS: usize = 5;

/// The core that all programs run on, except in the measurement with two threads.
const CORE: &str = "0";

/// Name of hashcat's row. The other rows are compared with it.
const PEER: &str = "hashcat -b -m 100 -D 1 (pocl)";

/// Name of the row of the program hashcash, which prints a speed itself.
const HASHCASH: &str = "hashcash -s";

/// Arguments for each run of our own program, in order. Without a name, it measures a search of
/// each kind.
const OURS: [&str; 8] = [
    "--name doctor",
    "--kernel BEST",
    "--name doctor --name doctors --name prologue --names 1 --names 16 --ideal-distance 1 --kernel BEST",
    "--name doctor --name doctors --name prologue --ideal-distance 2 --kernel BEST",
    "--name doctor --names 1 --names 16 --names 64 --names 1000 --kernel BEST",
    "--name doctor --length 3 --kernel BEST",
    "--name doctor --length 5 --kernel BEST",
    "--name doctor --length 6 --kernel BEST",
];

/// Arguments for the row that a search through the engine is compared with. Their distance is 3
/// because such a search also looks for near matches, which it reports if it is stopped.
const WITHOUT_ENGINE: &str = "--name prologue --ideal-distance 3 --kernel BEST";

/// The cores of the measurement with two threads. One of them is `CORE`.
const TWO_CORES: &str = "0,1";
const ON_TWO: &str = "--name doctor --kernel BEST";

/// A search through the engine for a name that it does not find.
const ENGINE: &str = "find prologue --threads 1 --maximum-hashes";
const ENGINE_ROW: &str = "find, through the engine";

/// The ratios of the summary: name, goal, numerator, denominator, and a factor for the numerator.
/// `BEST` stands for the fastest kernel.
const RATIOS: [(&str, f64, &str, &str, f64); 28] = [
    (
        "git-commit / hashcat",
        1.3,
        "BEST: git-commit c0ffee1",
        PEER,
        1.0,
    ),
    (
        "hashcash stamp / hashcat",
        1.2,
        "BEST: hashcash, 44 bits",
        PEER,
        1.0,
    ),
    (
        "hashcash stamp / hashcash -s",
        12.0,
        "BEST: hashcash, 44 bits",
        HASHCASH,
        1.0,
    ),
    (
        "after a prefix, anywhere in base64 / hashcat",
        1.15,
        "BEST: doctor, after a prefix",
        PEER,
        1.0,
    ),
    (
        "git-commit / hashing alone",
        0.9,
        "BEST: git-commit c0ffee1",
        "BEST: sha1",
        1.0,
    ),
    (
        "hashcash stamp / hashing alone",
        0.83,
        "BEST: hashcash, 44 bits",
        "BEST: sha1",
        1.0,
    ),
    (
        "after a prefix, anywhere in base64 / hashing alone",
        0.79,
        "BEST: doctor, after a prefix",
        "BEST: sha1",
        1.0,
    ),
    ("hashing alone / hashcat", 1.25, "BEST: sha1", PEER, 1.0),
    (
        "6 characters, distance 0 / hashcat",
        1.15,
        "BEST: doctor at distance 0",
        PEER,
        1.0,
    ),
    (
        "6 characters, distance 1 / hashcat",
        1.1,
        "BEST: doctor at distance 1",
        PEER,
        1.0,
    ),
    (
        "7 characters, distance 1 / hashcat",
        1.1,
        "BEST: doctors at distance 1",
        PEER,
        1.0,
    ),
    (
        "8 characters, distance 1 / hashcat",
        1.1,
        "BEST: prologue at distance 1",
        PEER,
        1.0,
    ),
    (
        "6 characters, distance 2 / hashcat",
        1.1,
        "BEST: doctor at distance 2",
        PEER,
        1.0,
    ),
    (
        "7 characters, distance 2 / hashcat",
        1.1,
        "BEST: doctors at distance 2",
        PEER,
        1.0,
    ),
    (
        "8 characters, distance 2 / hashcat",
        1.1,
        "BEST: prologue at distance 2",
        PEER,
        1.0,
    ),
    (
        "search / hashing alone, distance 0",
        0.88,
        "BEST: doctor at distance 0",
        "BEST: sha1",
        1.0,
    ),
    (
        "search / hashing alone, distance 1",
        0.85,
        "BEST: doctor at distance 1",
        "BEST: sha1",
        1.0,
    ),
    (
        "search / hashing alone, distance 2",
        0.85,
        "BEST: doctor at distance 2",
        "BEST: sha1",
        1.0,
    ),
    (
        "search on two threads / on one",
        1.9,
        "BEST: doctor at distance 0 on 2 threads",
        "BEST: doctor at distance 0",
        1.0,
    ),
    (
        "avx2, hashing alone / the sha1 crate",
        1.7,
        "avx2: sha1",
        "portable: sha1",
        1.0,
    ),
    (
        "3 bytes / 4 bytes",
        0.97,
        "BEST: doctor at distance 0, 3 bytes",
        "BEST: doctor at distance 0",
        1.0,
    ),
    (
        "5 bytes / 4 bytes",
        0.97,
        "BEST: doctor at distance 0, 5 bytes",
        "BEST: doctor at distance 0",
        1.0,
    ),
    (
        "6 bytes / 4 bytes",
        0.97,
        "BEST: doctor at distance 0, 6 bytes",
        "BEST: doctor at distance 0",
        1.0,
    ),
    (
        "16 names x their speed / one name's",
        12.0,
        "BEST: 16 names at distance 0",
        "BEST: 1 names at distance 0",
        16.0,
    ),
    (
        "64 names x their speed / one name's",
        35.0,
        "BEST: 64 names at distance 0",
        "BEST: 1 names at distance 0",
        64.0,
    ),
    (
        "1,000 names x their speed / one name's",
        150.0,
        "BEST: 1000 names at distance 0",
        "BEST: 1 names at distance 0",
        1000.0,
    ),
    (
        "16 names at distance 1 x their speed / one name's",
        5.0,
        "BEST: 16 names at distance 1",
        "BEST: 1 names at distance 1",
        16.0,
    ),
    (
        "a search through the engine / by the kernel alone",
        0.97,
        ENGINE_ROW,
        "BEST: prologue at distance 3",
        1.0,
    ),
];

/// Our program, and how long it is measured.
struct Ours {
    program: PathBuf,
    /// Time for each row, in seconds; hashcat chooses its own.
    seconds: &'static str,
    /// Number of hashes of the search through the engine.
    hashes: &'static str,
}

/// Measures, prints the tables, and writes them to `bench/RESULTS.md`.
pub(crate) fn run(form: Form) -> Result<()> {
    let mut samples = Samples::default();
    if form == Form::Short {
        let ours = Ours {
            program: target().join("debug/hashfinder"),
            seconds: "0.02",
            // `find` prints no rate for less than 0.1 s.
            hashes: "100000000",
        };
        ours.round(&mut samples)?;
        println!("{}", report(&samples)?);
        return Ok(());
    }
    step("the program", &mut cargo("build --release"))?;
    if !has_hashcat() {
        install(&HASHCAT)?;
    }
    let ours = Ours {
        program: target().join("release/hashfinder"),
        seconds: "1",
        hashes: "400000000",
    };
    for round in 1..=ROUNDS {
        println!("== round {round} of {ROUNDS}");
        ours.round(&mut samples)?;
    }
    // Each kind of CPU keeps its figures.
    results::write(&format!("Kernels: {}", samples.best), &report(&samples)?)
}

/// Hashes per second in every round, by row.
#[derive(Default)]
struct Samples {
    rates: BTreeMap<String, Vec<f64>>,
    /// Name of the fastest kernel, once it was measured.
    best: String,
}

impl Samples {
    fn add(&mut self, what: String, rate: f64) {
        self.rates.entry(what).or_default().push(rate);
    }

    /// Returns the median of a row. `BEST` in its name stands for the fastest kernel.
    fn of(&self, what: &str) -> Result<f64> {
        let what = what.replace("BEST", &self.best);
        let rates = self.rates.get(&what);
        let rates = rates.with_context(|| format!("{what} was not measured"))?;
        Ok(results::median(rates.clone()))
    }
}

/// Runs hashcat and returns its hashes per second.
fn hashcat() -> Result<f64> {
    let mut hashcat = Command::new("taskset");
    hashcat.args(["-c", CORE, "hashcat", "-b", "-m", "100", "-D", "1"]);
    let text = output(&mut hashcat)?;
    let speed = text.lines().find(|line| line.starts_with("Speed.#"));
    let speed = speed.with_context(|| format!("hashcat printed no speed:\n{text}"))?;
    parse_speed(speed).with_context(|| format!("hashcat's speed cannot be read: {speed}"))
}

/// Runs hashcash and returns its hashes per second.
fn hashcash() -> Result<f64> {
    let text = output(Command::new("taskset").args(["-c", CORE, "hashcash", "-s", "-q"]))?;
    let speed = text.split_whitespace().last().map(str::parse);
    let speed = speed.with_context(|| format!("hashcash printed no speed:\n{text}"))?;
    speed.with_context(|| format!("hashcash's speed cannot be read:\n{text}"))
}

/// Reads `Speed.#1.........:   147.9 MH/s (6.80ms) @ ...`.
fn parse_speed(line: &str) -> Option<f64> {
    let mut words = line.split_once(':')?.1.split_whitespace();
    let number: f64 = words.next()?.parse().ok()?;
    let unit = match words.next()? {
        "kH/s" => 1e3,
        "MH/s" => 1e6,
        "GH/s" => 1e9,
        _ => return None,
    };
    Some(number * unit)
}

impl Ours {
    fn round(&self, samples: &mut Samples) -> Result<()> {
        samples.add(PEER.to_owned(), hashcat()?);
        samples.add(HASHCASH.to_owned(), hashcash()?);
        for arguments in OURS {
            self.bench(CORE, 1, arguments, samples)?;
        }
        self.bench(TWO_CORES, 2, ON_TWO, samples)?;
        self.bench(CORE, 1, WITHOUT_ENGINE, samples)?;
        samples.add(ENGINE_ROW.to_owned(), self.engine()?);
        Ok(())
    }

    /// Runs our own program on the given cores.
    fn run(&self, cores: &str, arguments: &str) -> Result<Output> {
        Command::new("taskset")
            .args(["-c", cores])
            .arg(&self.program)
            .args(arguments.split_whitespace())
            .env_remove("HASHFINDER_KERNEL")
            .env("HASHFINDER_CONFIG", "/dev/null")
            .output()
            .with_context(|| format!("cannot run {}", self.program.display()))
    }

    /// Measures our own rows: hashes per second of a kernel in a case. Every call also measures
    /// hashing alone, so that row has more samples than the others.
    fn bench(
        &self,
        cores: &str,
        threads: u64,
        arguments: &str,
        samples: &mut Samples,
    ) -> Result<()> {
        let arguments = arguments.replace("BEST", &samples.best);
        let seconds = self.seconds;
        let arguments = format!("bench --json --seconds {seconds} --threads {threads} {arguments}");
        let output = self.run(cores, &arguments)?;
        ensure!(
            output.status.success(),
            "hashfinder {arguments} failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        for line in String::from_utf8(output.stdout)?.lines() {
            let row: serde_json::Value = serde_json::from_str(line)?;
            let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            // The program measures its fastest kernel first.
            if samples.best.is_empty() {
                samples.best = text("kernel");
            }
            // With several threads, the program also measures a single thread, which may move
            // between the two cores here, so that row is skipped.
            if row["threads"].as_u64() != Some(threads) {
                continue;
            }
            let threads = match threads {
                1 => String::new(),
                threads => format!(" on {threads} threads"),
            };
            let rate = row["hashes_per_second"].as_f64();
            samples.add(
                format!("{}: {}{threads}", text("kernel"), text("case")),
                rate.context("a row without a rate")?,
            );
        }
        Ok(())
    }

    /// Returns the hashes per second that a search reports at its end.
    fn engine(&self) -> Result<f64> {
        let arguments = format!("{ENGINE} {}", self.hashes);
        let output = self.run(CORE, &arguments)?;
        let text = String::from_utf8_lossy(&output.stderr);
        // 3 is the exit code for a spent hash budget.
        ensure!(
            output.status.code() == Some(3),
            "hashfinder {arguments}:\n{text}"
        );
        let rate = text
            .split_once(" million per second")
            .and_then(|(before, _)| {
                let number = before.rsplit(' ').next()?;
                number.parse::<f64>().ok()
            });
        let rate =
            rate.with_context(|| format!("hashfinder {arguments} printed no speed:\n{text}"))?;
        Ok(rate * 1e6)
    }
}

fn report(samples: &Samples) -> Result<String> {
    let mut medians = Vec::new();
    for what in samples.rates.keys() {
        medians.push((what, samples.of(what)?));
    }
    medians.sort_by(|a, b| b.1.total_cmp(&a.1));
    let peer = samples.of(PEER)?;
    let mut text = format!(
        "`cargo xtask bench peers` on one core (or two, where it says so) of: {}\n\n\
         Medians of {ROUNDS} rounds in which all took turns. `sha1` is hashing alone; for the\n\
         portable kernel that is the `sha1` crate's speed. hashcat looks for one digest that it\n\
         knows, and can leave rounds out; a search for a name anywhere in the text cannot.\n\n\
         | ratio | goal | median |\n| --- | ---: | ---: |\n",
        results::cpu()
    );
    for (name, goal, what, to, times) in RATIOS {
        let ratio = times * samples.of(what)? / samples.of(to)?;
        writeln!(text, "| {name} | {goal} | {ratio:.2} |")?;
    }
    text += "\n| what | million hashes per second | beside hashcat |\n| --- | ---: | ---: |\n";
    for (what, rate) in &medians {
        writeln!(text, "| {what} | {:.1} | {:.2} |", rate / 1e6, rate / peer)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_parsed() {
        for (line, speed) in [
            (
                "Speed.#1.........:   147.9 MH/s (6.80ms) @ Accel:512",
                Some(147.9e6),
            ),
            ("Speed.#1.........:  1.5 GH/s", Some(1.5e9)),
            ("Speed.#1.........:  fast", None),
            ("nothing", None),
        ] {
            assert_eq!(parse_speed(line), speed, "{line}");
        }
    }
}
