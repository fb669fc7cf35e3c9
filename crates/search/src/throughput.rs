//! Measures how many secrets a second this machine tries.

use std::{
    hint::black_box,
    panic::resume_unwind,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use hashfinder_kernels::Kernel;

use crate::query::Query;

/// Time for which the rate of a query is usually measured. A CPU reaches its full speed within it,
/// and users can wait for it.
pub const MEASURING_TIME: Duration = Duration::from_millis(250);

/// Number of secrets that a thread tries before it checks whether the time is over: enough that the
/// check does not affect the rate.
pub const TURN: u64 = 1 << 16;

/// Length, in bytes, of the searched part of the secrets that a search tries in its first seconds.
const USUAL_LENGTH: usize = 4;

/// A rate, and the number of threads that reached it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throughput {
    /// Number of threads that could be started, the calling one included.
    pub threads: usize,
    /// Work that all threads together did per second.
    pub per_second: f64,
}

/// Measures for `time` how many secrets per second up to `threads` threads try for `query`. If the
/// system starts fewer threads, the rate is that of those threads.
///
/// `clock` returns the time since any fixed moment.
pub fn search_rate(
    kernel: Kernel,
    query: &Query,
    threads: usize,
    time: Duration,
    clock: impl FnMut() -> Duration,
) -> f64 {
    let (matcher, keyspace) = (query.matcher(), query.keyspace());
    let usual = keyspace.first_of_length(USUAL_LENGTH);
    let (first, end) = (usual.unwrap_or(0), keyspace.end());
    let share = (end - first) / threads as u64;
    let throughput = measure(threads, time, clock, |thread, tried| {
        let start = first + (thread as u64 * share + tried) % (end - first);
        let turn = start..end.min(start.saturating_add(TURN));
        let mut hits = Vec::new();
        matcher.scan(kernel, turn.clone(), usize::MAX, &mut hits);
        black_box(hits);
        turn.end - turn.start
    });
    throughput.per_second
}

/// Measures for `time` how much work up to `threads` threads do together: the calling thread, and
/// as many others as the system starts.
///
/// `clock` returns the time since any fixed moment; only the calling thread reads it. `turn` does
/// some work. It receives the number of its thread and the amount of work that this thread has done
/// so far, and returns the amount that it added.
///
/// # Panics
///
/// If `turn` panics.
pub fn measure(
    threads: usize,
    time: Duration,
    mut clock: impl FnMut() -> Duration,
    turn: impl Fn(usize, u64) -> u64 + Sync,
) -> Throughput {
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
        let threads = others.len() + 1;
        drop(closed);
        let start = clock();
        let mut done = 0;
        while clock().saturating_sub(start) < time {
            done += turn(0, done);
        }
        stop.store(true, Ordering::Relaxed);
        for other in others {
            done += other.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
        let took = clock().saturating_sub(start);
        Throughput {
            threads,
            per_second: done as f64 / took.as_secs_f64(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_the_work_divided_by_the_clocks_time() {
        let mut seconds = 100;
        let clock = || {
            seconds += 1;
            Duration::from_secs(seconds)
        };
        // The clock advances by a second at each reading. After two turns it has reached three
        // seconds, and the last reading is at four: 20 / 4.
        let throughput = measure(1, Duration::from_secs(3), clock, |thread, done| {
            assert_eq!((thread, done % 10), (0, 0));
            10
        });
        let expected = Throughput {
            threads: 1,
            per_second: 5.0,
        };
        assert_eq!(throughput, expected);
    }
}
