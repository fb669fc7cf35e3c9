//! Commands for contributors and CI; `cargo xtask` lists them.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "commands print their results")]

mod aarch64;
mod attack;
mod boundaries;
mod cancel;
mod checks;
mod engine;
mod fleet;
mod fuzz;
mod graph;
mod image;
mod imports;
mod long;
mod mutants;
mod operations;
mod peers;
mod picture;
mod prose;
mod results;
mod steps;
mod tools;

use std::{env, process::ExitCode};

use self::steps::Form;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  test                every check, as CI runs it, with short forms of the commands below
  boundaries          check that packages and files depend only on what they may
  mutants             check that the tests find known bugs, in a copy of the sources

Benchmarks, which write bench/RESULTS.md; leave the machine alone for them:
  bench peers         the kernels beside hashcat, on one core
  bench engine        thousands of searches, in the engine and through gRPC
  bench cancel        the cost of the cancellation layer
  bench operations    calls beside a thousand running operations
  bench fleet         a fleet on this machine beside one process

Long forms of checks, which write bench/RESULTS.md or, for attacks and soak, bench/ATTACKS.md:
  long attack         every attack on a server, half a minute each
  long soak           unruly clients for 40 minutes: whether anything of them is left
  long fuzz [TARGET] [--seconds N | --runs N] [--leaks] [--keep]
                      200 seconds for each target, then 10^8 inputs in all; --leaks looks for leaks,
                      and needs a nightly compiler; --keep adds what was found to the corpus
  long kernels        10^9 secrets for every kernel
  long kills          10,000 searches, stopped in every way and resumed
  long operations     1,000 kills of a server that runs operations
  long fleet [schedules | waits | kills | operations | versions]
                      10^5 simulated schedules of fleets, large fleets, and 500 kills of the processes
                      of a real one, and an agent of an earlier version: six hours in all
  long schedules      10^6 random schedules of the engine, operations and the cancellation layer
  long streams        10^6 streams, started and cancelled
  long image          the static program of the container image

  fleet               a broker, two servers and four agents on this machine: kills some of them while
                      they search, and prints what happens

  picture             record terminals, and write docs/find.svg, docs/operation.svg and docs/fleet.svg

--short after `bench NAME`, `long attack`, `long soak`, `long fuzz`, `long image`, `fleet` or `picture` does as
little as shows that the command works, with the programs that `test` has built. It writes nothing.";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let form = match arguments.last() {
        Some(&"--short") => {
            arguments.pop();
            Form::Short
        }
        _ => Form::Long,
    };
    let done = match (&arguments[..], form) {
        (["test"], Form::Long) => checks::run(),
        (["boundaries"], Form::Long) => boundaries::run(),
        (["mutants"], form) => mutants::run(form),
        (["bench", "peers"], form) => peers::run(form),
        (["bench", "engine"], form) => engine::run(form),
        (["bench", "cancel"], form) => cancel::run(form),
        (["bench", "operations"], form) => operations::run(form),
        (["bench", "fleet"], form) => fleet::bench(form),
        (["long", "attack"], form) => attack::attack(form),
        (["long", "soak"], form) => attack::soak(form),
        (["long", "fuzz"], Form::Short) => fuzz::short(),
        (["long", "fuzz", rest @ ..], Form::Long) => fuzz::run(rest),
        (["long", "kernels"], Form::Long) => long::kernels(),
        (["long", "kills"], Form::Long) => long::kills(),
        (["long", "operations"], Form::Long) => long::operations(),
        (["long", "fleet"], Form::Long) => long::fleet(None),
        (
            [
                "long",
                "fleet",
                part @ ("schedules" | "waits" | "kills" | "operations" | "versions"),
            ],
            Form::Long,
        ) => long::fleet(Some(*part)),
        (["long", "schedules"], Form::Long) => long::schedules(),
        (["long", "streams"], Form::Long) => long::streams(),
        (["long", "image"], form) => image::run(form),
        (["fleet"], form) => fleet::run(form),
        (["picture"], form) => picture::run(form),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
