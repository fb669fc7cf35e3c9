//! Threads that run the async runtime, and threads for work that may block.
//!
//! The system can refuse to start a thread at any time (`RLIMIT_NPROC`, a container's limit on
//! processes). The functions here then return an error, or use fewer threads, but never panic.

use std::{
    fs, io,
    panic::resume_unwind,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::setpriority_process;
use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
};

/// Error text for a thread that the system refuses to start.
pub const NO_THREAD: &str = "cannot start another thread; raise the limit (`ulimit -u`, or the \
                             container's process limit) or end other processes of this user";

/// Maximum time to wait until the kernel has removed threads that have ended, which takes
/// microseconds. If there are still more threads than before after this time, another part of the
/// process has started them.
const REMOVED_WITHIN: Duration = Duration::from_secs(1);

/// Runs a command's future on the calling thread, and the tasks that it spawns on one other thread.
/// A task therefore makes progress while the command waits for the reader of its output.
///
/// # Errors
///
/// If that thread cannot be started, or the future fails.
pub fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    // Not one of tokio's multi-threaded runtimes: these panic if they cannot start a thread.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new()
        .name("runtime".to_owned())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))
        .context(NO_THREAD)?;
    handle.block_on(future)
}

/// Runs a server's future, and its tasks on one thread per core. `others` is the number of other
/// threads that the server starts. If the system does not allow all of these threads, one thread
/// runs the tasks.
///
/// # Errors
///
/// Those of [`block_on`]; also if the runtime cannot be built.
pub fn block_on_all_cores<T>(others: usize, future: impl Future<Output = Result<T>>) -> Result<T> {
    match multi_threaded(others)? {
        None => block_on(future),
        Some(runtime) => {
            let done = runtime.block_on(future);
            // Does not wait for the remaining tasks, such as one whose connection is not read.
            runtime.shutdown_background();
            done
        }
    }
}

/// Builds a runtime with a thread for each core, if there are several cores and the system allows
/// enough threads.
///
/// tokio 1.54 panics if it cannot start one of them, and then waits for the others forever. So this
/// first tries to start as many threads as the cores and `others` need together. The room for the
/// `others` serves as a margin, in case another process of this user starts threads in between.
fn multi_threaded(others: usize) -> io::Result<Option<Runtime>> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let wanted = cores + others;
    if cores == 1 || startable(wanted) < wanted {
        return Ok(None);
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(cores)
        .enable_all()
        .build()?;
    Ok(Some(runtime))
}

/// Returns how many more threads, up to `wanted`, the system allows this process at the same time.
/// It starts them for a moment. On systems with `/proc`, it then waits, for at most a second, until
/// they no longer count against the limit.
#[must_use]
pub fn startable(wanted: usize) -> usize {
    let before = count();
    let gate = Mutex::new(());
    let started = thread::scope(|scope| {
        let closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = || drop(gate.lock());
        let threads: Vec<_> = (0..wanted)
            .map_while(|_| thread::Builder::new().spawn_scoped(scope, wait).ok())
            .collect();
        drop(closed);
        threads.len()
    });
    // The threads have ended, but each counts against the limit until the kernel has removed it.
    let waits = Instant::now();
    while count() > before && waits.elapsed() < REMOVED_WITHIN {
        thread::yield_now();
    }
    started
}

/// Returns the number of threads of this process, or `None` on systems without `/proc`.
fn count() -> Option<usize> {
    Some(fs::read_dir("/proc/self/task").ok()?.count())
}

/// Starts a thread for work that may block. Nothing waits for the thread.
///
/// # Errors
///
/// If the system refuses to start a thread.
pub fn start(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name(name.to_owned());
    let started = thread.spawn(work).map(drop);
    started.map_err(|error| io::Error::new(error.kind(), format!("{NO_THREAD}: {error}")))
}

/// Niceness of threads that search. The threads that answer calls need a core only for
/// microseconds, and should not wait for a slice of a search to end. If no other thread wants the
/// cores, the niceness costs nothing.
const SEARCH_NICENESS: i32 = 5;

/// Calls `start` on a new thread with a lower priority, and waits for its result. Threads that
/// `start` starts inherit the priority.
///
/// # Errors
///
/// If the thread cannot be started.
///
/// # Panics
///
/// If `start` panics.
pub fn with_low_priority<T: Send + 'static>(
    start: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let thread = thread::Builder::new().spawn(move || {
        // If the system does not allow this change, all threads have the same priority.
        let _ = setpriority_process(None, SEARCH_NICENESS);
        start()
    })?;
    Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
}

/// Runs `work`, which may block, on a separate thread.
///
/// Dropping the future abandons the work: it runs to its end, and its result is dropped.
///
/// # Errors
///
/// If the system refuses to start a thread, or the work panics.
pub async fn aside<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = oneshot::channel();
    // The receiver is gone if the future was dropped.
    start(name, move || drop(sender.send(work())))?;
    let done = receiver.await;
    done.map_err(|_| io::Error::other(format!("the thread \"{name}\" panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn aside_returns_what_the_thread_returns() {
        assert_eq!(aside("test", || 5).await.unwrap(), 5);
        let failed = aside("test", || panic!("as it should")).await;
        assert!(failed.unwrap_err().to_string().contains("panicked"));
    }
}
