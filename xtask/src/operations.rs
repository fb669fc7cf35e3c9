//! `cargo xtask bench operations`: what a thousand running operations cost the calls of others.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{
    results::{self, Goal, Samples},
    steps::{Form, cargo, output, step, target},
    tools::{H2LOAD, has_h2load, install, prepare_python},
};

const ROUNDS: usize = 3;

const COMMITS: &str = "commits a second, 1000 running operations of ten clients";
const CALLS: &str = "Find(\"aa\"): calls a second, beside operations / beside as many searches";
const STOP: &str = "mean ms from a stop to the release, beside operations / beside searches";
const P99: &str = "ms for Find(\"aa\"), p99, beside operations / beside searches";

/// Goals, by the name of the figure. The ratios of times are noisy.
const GOALS: [(&str, Goal); 4] = [
    (COMMITS, Goal::AtMost(2.2)),
    (CALLS, Goal::AtLeast(0.95)),
    (STOP, Goal::AtMost(1.2)),
    (P99, Goal::AtMost(1.2)),
];

/// Measures, prints the table, and writes it to `bench/RESULTS.md`.
pub(crate) fn run(form: Form) -> Result<()> {
    if !has_h2load() {
        install(&H2LOAD)?;
    }
    let mut samples = Samples::default();
    if form == Form::Short {
        round(&mut samples, &target().join("debug/hashfinder"), [20, 400])?;
        samples.print();
        return Ok(());
    }
    step("the program", &mut cargo("build --release"))?;
    for number in 1..=ROUNDS {
        println!("== round {number} of {ROUNDS}");
        let program = target().join("release/hashfinder");
        round(&mut samples, &program, [1000, 40_000])?;
    }
    let intro = format!(
        "`cargo xtask bench operations` on all cores of: {}\n\nMedians of {ROUNDS} rounds. A server with 1,000 running operations, saved in a folder, and one without a folder, with 1,000 running searches for the same names.",
        results::cpu()
    );
    samples.write("Calls beside operations", &intro, &GOALS)
}

fn round(samples: &mut Samples, program: &Path, [count, calls]: [u32; 2]) -> Result<()> {
    let mut script = Command::new(prepare_python()?);
    script
        .arg("bench/operations.py")
        .arg(program)
        .args([count.to_string(), calls.to_string()]);
    let printed = output(&mut script)?;
    let lines = printed.lines().filter_map(|line| line.split_once(": "));
    let figures: BTreeMap<&str, f64> = lines
        .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
        .collect();
    let figure = |name: &str| {
        let figure = figures.get(name).copied();
        figure.with_context(|| format!("operations.py printed no {name:?}:\n{printed}"))
    };
    let ratio = |name| -> Result<f64> {
        let of = |kind| figure(&format!("{kind} {name}"));
        Ok(of("operations")? / of("searches")?)
    };
    samples.add(COMMITS, figure("commits a second")?);
    samples.add("mean ms of a commit", figure("commit ms")?);
    samples.add(CALLS, ratio("Find")?);
    samples.add(P99, ratio("p99")?);
    samples.add(STOP, ratio("stop")?);
    let calls = "Find(\"aa\") beside operations: calls a second";
    samples.add(calls, figure("operations Find")?);
    Ok(())
}
