//! `cargo xtask bench peers`: our kernels beside hashcat, on one core, in turn.

use std::{collections::BTreeMap, fmt::Write as _, fs, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{cargo, root, runs, step, target};

/// How often each is run. They take turns, so that whatever else the machine does hits all alike.
const ROUNDS: usize = 5;

/// The core that all of them run on.
const CORE: &str = "0";

/// How long we measure each of our rows, in seconds; hashcat takes about as long by itself.
const SECONDS: &str = "2";

/// The peer that every other figure is compared with.
const PEER: &str = "hashcat -b -m 100 -D 1 (pocl)";

/// What is searched for, and how near.
const SEARCHES: [(&[&str], &str); 3] = [
    (&["doctor", "prologue"], "0"),
    (&["doctor", "prologue"], "1"),
    (&["doctor", "prologue"], "2"),
];

/// Measures, prints the table, and writes it to `bench/RESULTS.md`.
pub(crate) fn run() -> Result<()> {
    step("the program", &mut cargo("build --release"))?;
    if !runs(Command::new("hashcat").arg("--version")) {
        step("the packages' list", Command::new("apt-get").arg("update"))?;
        // hashcat runs on the CPU through an OpenCL implementation, which pocl is.
        step(
            "hashcat",
            Command::new("apt-get").args([
                "install",
                "--yes",
                "--no-install-recommends",
                "hashcat",
                "ocl-icd-libopencl1",
                "pocl-opencl-icd",
            ]),
        )?;
    }
    let mut samples: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for round in 1..=ROUNDS {
        println!("== round {round} of {ROUNDS}");
        samples.entry(PEER.to_owned()).or_default().push(hashcat()?);
        for (names, distance) in SEARCHES {
            for (case, rate) in ours(names, distance)? {
                samples.entry(case).or_default().push(rate);
            }
        }
    }
    let table = table(samples)?;
    println!("{table}");
    let results = root().join("bench/RESULTS.md");
    fs::write(&results, table).with_context(|| format!("cannot write {}", results.display()))
}

/// hashcat's hashes per second.
fn hashcat() -> Result<f64> {
    let output = Command::new("taskset")
        .args(["-c", CORE, "hashcat", "-b", "-m", "100", "-D", "1"])
        .output()
        .context("cannot run hashcat")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let speed = text.lines().find(|line| line.starts_with("Speed.#1"));
    let speed = speed.with_context(|| format!("hashcat tells no speed:\n{text}"))?;
    parse_speed(speed).with_context(|| format!("hashcat's speed cannot be read: {speed}"))
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

/// Our own rows: the kernel and the case, and hashes per second. Every call measures hashing alone
/// too, so that has more samples than the others.
fn ours(names: &[&str], distance: &str) -> Result<Vec<(String, f64)>> {
    let mut command = Command::new("taskset");
    command
        .args(["-c", CORE])
        .arg(target().join("release/hashfinder"));
    command.args(["bench", "--json", "--threads", "1", "--seconds", SECONDS]);
    command.args(["--ideal-distance", distance]);
    for name in names {
        command.args(["--name", name]);
    }
    let output = command.output().context("cannot run hashfinder bench")?;
    ensure!(output.status.success(), "hashfinder bench failed");
    let text = String::from_utf8(output.stdout)?;
    text.lines()
        .map(|line| {
            let row: serde_json::Value = serde_json::from_str(line)?;
            let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            let rate = row["hashes_per_second"]
                .as_f64()
                .context("a row without a rate")?;
            Ok((format!("{}: {}", text("kernel"), text("case")), rate))
        })
        .collect()
}

fn table(samples: BTreeMap<String, Vec<f64>>) -> Result<String> {
    let mut medians: Vec<(String, f64)> = samples
        .into_iter()
        .map(|(case, samples)| (case, median(samples)))
        .collect();
    medians.sort_by(|a, b| b.1.total_cmp(&a.1));
    let peer = medians.iter().find(|(case, _)| case == PEER);
    let (_, peer) = peer.context("hashcat was not measured")?;
    let mut table = format!(
        "# Results\n\n\
         `cargo xtask bench peers` on one core of: {}\n\n\
         Medians of {ROUNDS} rounds in which all took turns. `sha1` is hashing alone; for the\n\
         portable kernel that is the `sha1` crate's speed. hashcat looks for one digest that it\n\
         knows, and can leave rounds out; a search for a name anywhere in the text cannot.\n\n\
         | what | million hashes per second | beside hashcat |\n| --- | ---: | ---: |\n",
        cpu()
    );
    for (case, rate) in &medians {
        writeln!(table, "| {case} | {:.1} | {:.2} |", rate / 1e6, rate / peer)?;
    }
    Ok(table)
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// The CPU's name, as the system has it.
fn cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let name = name.and_then(|rest| rest.split_once(':'));
    name.map_or("an unknown CPU".to_owned(), |(_, name)| {
        name.trim().to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds() {
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
