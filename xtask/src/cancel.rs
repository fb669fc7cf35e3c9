//! `cargo xtask bench cancel`: measures the cost of the cancellation layer and the delay of
//! deadlines.

use anyhow::Result;

use crate::{
    results::{self, Goal, Samples},
    steps::{Form, cargo, step},
};

const ROUNDS: usize = 3;

/// Goals, by the name of the figure.
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
pub(crate) fn run(form: Form) -> Result<()> {
    let mut samples = Samples::default();
    if form == Form::Short {
        samples.bench("tonic-cancel", "overhead", form)?;
        samples.print();
        return Ok(());
    }
    step(
        "the benchmark",
        &mut cargo("bench -p tonic-cancel --bench overhead --no-run"),
    )?;
    for round in 1..=ROUNDS {
        println!("== round {round} of {ROUNDS}");
        samples.bench("tonic-cancel", "overhead", form)?;
    }
    let intro = format!(
        "`cargo xtask bench cancel` on all cores of: {}\n\nMedians of {ROUNDS} rounds. 64 calls in \
         flight on 4 connections, the client on the same cores; two servers\nthat are the same differ \
         by up to 5 % here, their own time by less. Deadlines of 1 to 500 ms, 1000 calls at\na time, \
         unary ones and streams by turns.",
        results::cpu()
    );
    samples.write("Cancellation", &intro, &GOALS)
}
