//! `hashfinder bench`: measures the speed of each kernel on this machine, and checks its results.

mod arguments;
mod cases;

use std::{num::NonZeroUsize, thread};

use anyhow::{Context, Result, bail, ensure};
use hashfinder_search::{Kernel, throughput::Throughput};

pub(crate) use self::arguments::BenchArguments;
use self::{
    arguments::KernelChoice,
    cases::{Answer, cases},
};
use crate::{
    exit::Exit,
    signals,
    terminal::{self, print, say},
};

/// Measures and prints a row for each kernel, case and number of threads.
pub(crate) fn run(arguments: &BenchArguments) -> Result<Exit> {
    signals::exit_at_once().context("cannot receive signals")?;
    let all_threads = arguments
        .threads
        .or_else(|| thread::available_parallelism().ok());
    let all_threads = all_threads.unwrap_or(NonZeroUsize::MIN).get();
    let mut threads = vec![1, all_threads];
    threads.dedup();
    let cases = match cases(arguments) {
        Ok(cases) => cases,
        Err(impossible) => {
            say(impossible);
            return Ok(Exit::Impossible);
        }
    };
    let kernels = match arguments.kernel {
        KernelChoice::One(kernel) => vec![kernel],
        KernelChoice::All => Kernel::all().collect(),
    };
    if !arguments.json && !print(row("kernel", "case", "threads", "hashes per second"))? {
        return Ok(Exit::Success);
    }
    // The results of every kernel are compared with those of the portable one.
    let Some(portable) = Kernel::named("portable") else {
        bail!("no portable kernel to compare with");
    };
    let answers: Vec<Answer> = cases.iter().map(|case| case.answer(portable)).collect();
    for kernel in kernels {
        for (case, answer) in cases.iter().zip(&answers) {
            ensure!(
                case.answer(kernel) == *answer,
                "the kernel {} returned wrong results for {}",
                kernel.name(),
                case.title
            );
            for &threads in &threads {
                let throughput = case.throughput(kernel, threads, arguments.seconds);
                let Throughput {
                    threads: used,
                    per_second: rate,
                } = throughput;
                ensure!(
                    used == threads,
                    "cannot start more than {used} of {threads} threads; raise the limit (ulimit \
                     -u), or use --threads {used}"
                );
                let line = if arguments.json {
                    let row = serde_json::json!({
                        "kernel": kernel.name(),
                        "case": case.title,
                        "threads": threads,
                        "hashes_per_second": rate.round(),
                    });
                    terminal::json(&row) + "\n"
                } else {
                    let rate = format!("{:.1} million", rate / 1e6);
                    row(kernel.name(), &case.title, &threads.to_string(), &rate)
                };
                if !print(line)? {
                    return Ok(Exit::Success);
                }
            }
        }
    }
    if !arguments.json {
        say("all kernels returned the same results as the portable one");
    }
    Ok(Exit::Success)
}

fn row(kernel: &str, case: &str, threads: &str, rate: &str) -> String {
    format!("{kernel:<10} {case:<34} {threads:>7}  {rate:>18}\n")
}
