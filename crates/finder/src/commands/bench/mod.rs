//! `hashfinder bench`: how fast each kernel is on this machine, and whether it is right.

mod arguments;

use std::{
    hint::black_box,
    num::NonZeroUsize,
    panic::resume_unwind,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use hashfinder_search::{Distance, Filter, Kernel, Query, kernels};

pub(crate) use self::arguments::BenchArguments;
use self::arguments::KernelChoice;
use crate::{
    clock::RunningTime,
    exit::Exit,
    signals,
    terminal::{self, as_text, print, say},
};

/// How many secrets one turn takes: long enough that a turn's own cost does not show.
const TURN: u64 = 1 << 16;

/// How many secrets each kernel is checked on before it is measured: a fast answer is worth nothing if
/// it is wrong.
const CHECKED: u64 = 1 << 18;

/// The length of secrets that a search is at for its first seconds.
const USUAL_LENGTH: u32 = 4;

/// What is measured: a search, or without a filter the digests alone.
struct Case {
    title: String,
    filter: Option<Filter>,
}

/// Measures and prints a row for each kernel, case and number of threads.
pub(crate) fn run(arguments: &BenchArguments) -> Result<Exit> {
    signals::exit_at_once().context("cannot listen to signals")?;
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
            filter: query.sought().filter().cloned(),
        });
    }
    for &count in &arguments.sets {
        cases.push(Case {
            title: format!("{count} names at distance {}", arguments.ideal_distance),
            filter: Some(made_up(count, arguments.ideal_distance)),
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
    // Every kernel's answers are compared with these, and that once.
    let Some(portable) = Kernel::named("portable") else {
        bail!("there is no portable kernel to compare with");
    };
    // Not at a row's beginning, so that broken rows are among them.
    let checked = kernels::Block::new(arguments.length, 12_345, CHECKED);
    let answers: Vec<Answer> = cases
        .iter()
        .map(|case| case.turn(portable, &checked))
        .collect();
    for kernel in kernels {
        for (case, answer) in cases.iter().zip(&answers) {
            ensure!(
                case.turn(kernel, &checked) == *answer,
                "the kernel {} gives wrong answers for {}",
                kernel.name(),
                case.title
            );
            for &threads in &threads {
                let (used, rate) =
                    case_rate(kernel, case, threads, arguments.length, arguments.seconds);
                ensure!(
                    used == threads,
                    "only {used} of {threads} threads can be started; raise the limit (ulimit -u), or give \
                     --threads {used}"
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
        say("every kernel gave the answers of the portable one");
    }
    Ok(Exit::Success)
}

/// A filter for names that are the same in every run.
fn made_up(count: u16, distance: Distance) -> Filter {
    // Marsaglia's "Xorshift RNGs", 2003.
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

/// What a turn's work gives: the sum of the digests, or the hits.
type Answer = (u32, Vec<kernels::Hit>);

impl Case {
    /// Does one turn's work on `kernel`, and tells what can be compared of it.
    fn turn(&self, kernel: Kernel, block: &kernels::Block) -> Answer {
        let Some(filter) = &self.filter else {
            return (kernel.digest_sum(block), Vec::new());
        };
        let mut hits = kernels::Hits::with_limit(usize::MAX);
        kernel.scan(block, filter, &mut hits);
        (0, hits.to_vec())
    }
}

/// Returns how many secrets a second up to `threads` threads try for this query, measured for `time`. If the system
/// does not give as many threads, it is the rate of those that it gives.
pub(crate) fn search_rate(kernel: Kernel, query: &Query, threads: usize, time: Duration) -> f64 {
    let (sought, keyspace) = (query.sought(), query.keyspace());
    let usual = keyspace.first_of_length(USUAL_LENGTH as usize);
    let (first, end) = (usual.unwrap_or(0), keyspace.end());
    let share = (end - first) / threads as u64;
    let (_, rate) = measure(threads, time, |thread, tried| {
        let start = first + (thread as u64 * share + tried) % (end - first);
        let turn = start..end.min(start.saturating_add(TURN));
        let mut hits = Vec::new();
        sought.scan(kernel, turn.clone(), usize::MAX, &mut hits);
        black_box(hits);
        turn.end - turn.start
    });
    rate
}

/// Returns how many threads could be started, up to `threads`, and how many secrets of a case they try a second.
fn case_rate(
    kernel: Kernel,
    case: &Case,
    threads: usize,
    length: u32,
    time: Duration,
) -> (usize, f64) {
    let share = (1_u64 << (8 * length)) / threads as u64 / TURN * TURN;
    // With more threads than turns, some of them do the same.
    let share = share.max(TURN);
    measure(threads, time, |thread, tried| {
        let first = thread as u64 * share % (1 << (8 * length));
        let block = kernels::Block::new(length, first + tried % share, TURN);
        black_box(case.turn(kernel, &block));
        TURN
    })
}

/// Measures for `time` what up to `threads` threads do together: the calling one, and as many others as the system
/// gives. Returns how many threads it were, and how much they did in a second.
///
/// A turn receives the number of its thread and what that thread has done so far, and returns how much more it did.
fn measure(
    threads: usize,
    time: Duration,
    turn: impl Fn(usize, u64) -> u64 + Sync,
) -> (usize, f64) {
    let (gate, stop) = (Mutex::new(()), AtomicBool::new(false));
    thread::scope(|scope| {
        let closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
        let work = |thread: usize| {
            let (gate, stop, turn) = (&gate, &stop, &turn);
            move || {
                drop(gate.lock());
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    done += turn(thread, done);
                }
                done
            }
        };
        let others = (1..threads).map_while(|thread| {
            let other = thread::Builder::new().spawn_scoped(scope, work(thread));
            other.ok()
        });
        let others: Vec<_> = others.collect();
        let used = others.len() + 1;
        drop(closed);
        let mut running = RunningTime::start();
        let mut done = 0;
        while running.read() < time {
            done += turn(0, done);
        }
        stop.store(true, Ordering::Relaxed);
        for other in others {
            done += other.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
        (used, done as f64 / running.read().as_secs_f64())
    })
}
