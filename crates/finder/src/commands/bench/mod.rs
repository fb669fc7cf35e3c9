//! `hashfinder bench`: measures the speed of each kernel on this machine, and checks its results.

mod arguments;

use std::{hint::black_box, num::NonZeroUsize, thread, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use hashfinder_search::{
    Distance, Filter, Kernel, Query, kernels,
    throughput::{TURN, Throughput, measure},
};
use hashfinder_system::running_time::RunningTime;

pub(crate) use self::arguments::BenchArguments;
use self::arguments::KernelChoice;
use crate::{
    exit::Exit,
    signals,
    terminal::{self, as_text, print, say},
};

/// Number of secrets on which each kernel is checked before it is measured.
const CHECKED: u64 = 1 << 18;

/// Length, in bytes, of the secrets that a search tries in its first seconds.
const USUAL_LENGTH: u32 = 4;

/// What is measured: a search or, without a filter, only the computation of digests.
struct Case {
    title: String,
    filter: Option<Filter>,
}

/// Measures and prints a row for each kernel, case and number of threads.
pub(crate) fn run(arguments: &BenchArguments) -> Result<Exit> {
    signals::exit_at_once().context("cannot receive signals")?;
    let all_threads = arguments
        .threads
        .or_else(|| thread::available_parallelism().ok());
    let all_threads = all_threads.unwrap_or(NonZeroUsize::MIN).get();
    let mut threads = vec![1, all_threads];
    threads.dedup();
    let mut cases = vec![Case {
        title: "sha1".to_owned(),
        filter: None,
    }];
    for name in &arguments.names {
        let query = match Query::new(name.clone(), arguments.ideal_distance) {
            Ok(query) => query,
            Err(impossible) => {
                say(impossible);
                return Ok(Exit::Impossible);
            }
        };
        cases.push(Case {
            title: format!(
                "{} at distance {}",
                as_text(name.as_str()),
                arguments.ideal_distance
            ),
            filter: query.matcher().filter().cloned(),
        });
    }
    for &count in &arguments.sets {
        cases.push(Case {
            title: format!("{count} names at distance {}", arguments.ideal_distance),
            filter: Some(filter_of_made_up_names(count, arguments.ideal_distance)),
        });
    }
    if arguments.length != USUAL_LENGTH {
        for case in &mut cases {
            case.title += &format!(", {} bytes", arguments.length);
        }
    }
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
    // The block begins within a kernel's row, so that incomplete rows are checked, too.
    let checked = kernels::Block::new(arguments.length, 12_345, CHECKED);
    let answers: Vec<Answer> = cases
        .iter()
        .map(|case| case.turn(portable, &checked))
        .collect();
    for kernel in kernels {
        for (case, answer) in cases.iter().zip(&answers) {
            ensure!(
                case.turn(kernel, &checked) == *answer,
                "the kernel {} returned wrong results for {}",
                kernel.name(),
                case.title
            );
            for &threads in &threads {
                let throughput =
                    case.throughput(kernel, threads, arguments.length, arguments.seconds);
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

/// Returns a filter for `count` made-up names, which are the same in every run.
fn filter_of_made_up_names(count: u16, distance: Distance) -> Filter {
    // The random numbers are those of Marsaglia's "Xorshift RNGs", 2003.
    let mut state = 0x2545_f491_u32;
    let mut below = |below: u32| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state % below
    };
    let names: Vec<Vec<kernels::CharSet>> = (0..count)
        .map(|_| {
            let length = 6 + below(5);
            let letters = (0..length).map(|_| b'a' + below(26) as u8);
            let set = |letter| kernels::CharSet::digits_where(|c| c.eq_ignore_ascii_case(&letter));
            letters.map(set).collect()
        })
        .collect();
    Filter::any(names.iter().map(|name| (&name[..], distance.get())))
}

fn row(kernel: &str, case: &str, threads: &str, rate: &str) -> String {
    format!("{kernel:<10} {case:<34} {threads:>7}  {rate:>18}\n")
}

/// The result of trying a block: the sum of the digests, or the hits.
type Answer = (u32, Vec<kernels::Hit>);

impl Case {
    /// Tries the secrets of a block with `kernel`. Returns a result that must be the same for every
    /// kernel.
    fn turn(&self, kernel: Kernel, block: &kernels::Block) -> Answer {
        let Some(filter) = &self.filter else {
            return (kernel.digest_sum(block), Vec::new());
        };
        let mut hits = kernels::Hits::with_limit(usize::MAX);
        kernel.scan(block, filter, &mut hits);
        (0, hits.to_vec())
    }

    /// Measures, for `time`, how many secrets of this length up to `threads` threads try per
    /// second.
    fn throughput(
        &self,
        kernel: Kernel,
        threads: usize,
        length: u32,
        time: Duration,
    ) -> Throughput {
        let share = (1_u64 << (8 * length)) / threads as u64 / TURN * TURN;
        // If there are more threads than turns, some threads try the same secrets.
        let share = share.max(TURN);
        let mut running = RunningTime::start();
        measure(
            threads,
            time,
            || running.read(),
            |thread, tried| {
                let first = thread as u64 * share % (1 << (8 * length));
                let block = kernels::Block::new(length, first + tried % share, TURN);
                black_box(self.turn(kernel, &block));
                TURN
            },
        )
    }
}
