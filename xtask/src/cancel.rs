//! `cargo xtask bench cancel`: what the cancellation layer costs, and how late deadlines are.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Context, Result, ensure};

use crate::{
    cargo,
    results::{self, Goal},
    root, step,
};

const ROUNDS: usize = 3;

/// The goals, by what the figures are called.
const GOALS: [(&str, Goal); 5] = [
    (
        "unary calls a second without deadlines, with the layer / without",
        Goal::AtLeast(0.95),
    ),
    (
        "unary calls a second with deadlines, with the layer / without",
        Goal::AtLeast(0.95),
    ),
    (
        "bytes that the layer adds to each of 10000 open streams",
        Goal::AtMost(1024.0),
    ),
    (
        "ms past the deadline until a call has ended, p99",
        Goal::AtMost(20.0),
    ),
    (
        "of 10000 calls with deadlines, ended with DEADLINE_EXCEEDED",
        Goal::AtLeast(10_000.0),
    ),
];

/// Measures, prints the table, and writes it to `bench/RESULTS.md`.
pub(crate) fn run() -> Result<()> {
    step(
        "the benchmark",
        &mut cargo("bench -p tonic-cancel --bench overhead --no-run"),
    )?;
    let mut samples: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for round in 1..=ROUNDS {
        println!("== round {round} of {ROUNDS}");
        let mut bench = cargo("bench --quiet -p tonic-cancel --bench overhead");
        let output = bench
            .current_dir(root())
            .output()
            .context("cannot run cargo bench")?;
        ensure!(output.status.success(), "the benchmark failed: {output:?}");
        for line in String::from_utf8(output.stdout)?.lines() {
            if let Some((name, value)) = line.split_once('\t') {
                let values = samples.entry(name.to_owned()).or_default();
                values.push(value.parse()?);
            }
        }
    }
    let medians = samples
        .into_iter()
        .map(|(name, values)| (name, results::median(values)));
    results::write("Cancellation", &report(&medians.collect())?)
}

fn report(medians: &BTreeMap<String, f64>) -> Result<String> {
    let mut text = format!(
        "`cargo xtask bench cancel` on all cores of: {}\n\nMedians of {ROUNDS} rounds. 64 calls in \
         flight on 4 connections, the client on the same cores; two servers\nthat are the same differ \
         by up to 5 % here, their own time by less. Deadlines of 1 to 500 ms, 1000 calls at\na time, \
         unary ones and streams by turns.\n\n\
         | figure | goal | median |\n| --- | ---: | ---: |\n",
        results::cpu()
    );
    for (name, goal) in GOALS {
        let value = medians.get(name);
        let value = value.with_context(|| format!("{name} was not measured"))?;
        writeln!(text, "| {name} | {goal} | {value:.3} |")?;
    }
    text += "\n| beside these | median |\n| --- | ---: |\n";
    for (name, value) in medians {
        if GOALS.iter().all(|(goal, _)| goal != name) {
            writeln!(text, "| {name} | {value:.3} |")?;
        }
    }
    Ok(text)
}
