//! A harmless load on the CPU, for the control run.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use rustix::time::{ClockId, clock_gettime};

/// Time to spin or to sleep before the CPU time is checked again.
const STEP: Duration = Duration::from_millis(1);

/// Keeps `cores` cores busy for `time`, with one thread for each core of the machine.
pub(crate) fn burn(cores: f64, time: Duration) -> Result<()> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = (cores / threads as f64).clamp(0.0, 1.0);
    let threads: Vec<_> = (0..threads)
        .map(|_| thread::spawn(move || take(share, time)))
        .collect();
    for thread in threads {
        if thread.join().is_err() {
            bail!("a thread that burns panicked");
        }
    }
    println!("{{}}");
    Ok(())
}

/// Uses a share of one core's time.
fn take(share: f64, time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        if taken() < began.elapsed().mul_f64(share) {
            let step = Instant::now();
            while step.elapsed() < STEP {
                std::hint::spin_loop();
            }
        } else {
            thread::sleep(STEP);
        }
    }
}

/// Returns this thread's CPU time.
fn taken() -> Duration {
    let taken = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(taken.tv_sec).unwrap_or_default(),
        u32::try_from(taken.tv_nsec).unwrap_or_default(),
    )
}
