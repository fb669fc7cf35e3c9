//! Threads: those that run the async runtime, and those for work that may block.
//!
//! The system can refuse a thread at any time (`RLIMIT_NPROC`, a container's limit on processes),
//! so each one that is started here is an error if it cannot be started, never a panic.

use std::{
    fs, io,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
};

/// Error for a thread that the system refuses.
pub const NO_THREAD: &str = "cannot start another thread; raise the limit (`ulimit -u`, or the \
                             container's process limit) or end other processes of this user";

/// Maximum time until the kernel has removed threads that have ended; it takes microseconds. If
/// there are more threads than before after that, another part of the process has started them.
const REMOVED_WITHIN: Duration = Duration::from_secs(1);

/// Runs a command's future on the calling thread, and the tasks that it spawns on one other thread.
/// A task therefore makes progress while the command waits for the reader of its output.
///
/// # Errors
///
/// If that thread cannot be started, or the future fails.
pub fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    // Not one of tokio's multi-threaded runtimes: these panic without a thread.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new()
        .name("runtime".to_owned())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))
        .context(NO_THREAD)?;
    handle.block_on(future)
}

/// Runs a server's future, with a thread for its tasks on each core. `others` is the number of
/// threads that the server starts besides. If the system does not give all of these, one thread
/// runs the tasks.
///
/// # Errors
///
/// As for [`block_on`].
pub fn block_on_all_cores<T>(others: usize, future: impl Future<Output = Result<T>>) -> Result<T> {
    match multi_threaded(others)? {
        None => block_on(future),
        Some(runtime) => {
            let done = runtime.block_on(future);
            // A connection that is not read, for example, does not keep the process.
            runtime.shutdown_background();
            done
        }
    }
}

/// Builds a runtime with a thread for each core, if there are several cores and the system gives
/// the threads.
///
/// tokio 1.54 panics if it cannot start one of them, and then waits for the others forever. So a
/// trial first starts that many threads and the others, which also leaves room in case another
/// process of this user takes some in between.
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

/// Returns how many more threads, up to `wanted`, the system lets this process have at a time. It
/// starts them for a moment, and waits until they no longer count.
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
    // They have done their work, but each counts against the limit until the kernel has removed it.
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

/// Starts a thread for work that may block, and that nothing waits for.
///
/// # Errors
///
/// If the system gives no thread.
pub fn start(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name(name.to_owned());
    let started = thread.spawn(work).map(drop);
    started.map_err(|error| io::Error::new(error.kind(), format!("{NO_THREAD}: {error}")))
}

/// Runs `work`, which may block, on a separate thread.
///
/// Dropping the future abandons the work: it runs to its end, and its result is dropped.
///
/// # Errors
///
/// If the system gives no thread, or the work panics.
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
