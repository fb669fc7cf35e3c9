//! Threads: those that run the async runtime, and those for work that may block.
//!
//! The system can refuse a thread at any time (`RLIMIT_NPROC`, a container's limit on processes), so each one
//! that is started here is an error if it cannot be started, never a panic.

use std::{
    fs, io,
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context, Result};
use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
};

/// Threads that a server needs besides those of its runtime: one that searches, the log's, the one that keeps
/// deadlines, and one for whatever blocks. With fewer left, its runtime makes do with one.
const SERVER_THREADS: usize = 4;

/// What a thread that the system refuses means, and what to do about it.
pub(crate) const NO_THREAD: &str = "the system gives this process no more threads; raise its limit (ulimit -u, or \
                                    the container's limit on processes), or end other processes of this user";

/// Runs a command's future on the calling thread, and the tasks that it spawns on one other thread. A task
/// therefore makes progress while the command waits for the reader of its output.
///
/// # Errors
///
/// If that thread cannot be started, or the future fails.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    // Not one of tokio's multi-threaded runtimes: these panic without a thread.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new()
        .name("runtime".to_owned())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))
        .context(NO_THREAD)?;
    handle.block_on(future)
}

/// Runs a server's future, with as many threads for its tasks as there are cores, or one if the system does not
/// give as many.
///
/// # Errors
///
/// As for [`block_on`].
pub(crate) fn block_on_all_cores<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    match multi_threaded()? {
        None => block_on(future),
        Some(runtime) => {
            let done = runtime.block_on(future);
            // A connection that is not read, for example, does not keep the process.
            runtime.shutdown_background();
            done
        }
    }
}

/// Builds a runtime with a thread for each core, if there are several cores and the system gives the threads.
///
/// tokio 1.54 panics where it cannot start one of them, and then waits for the others forever. So it is tried
/// first whether all can be started, and some more, so that another process of this user does not easily take
/// the last ones in between.
fn multi_threaded() -> io::Result<Option<Runtime>> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if cores == 1 || !can_start(cores + SERVER_THREADS) {
        return Ok(None);
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(cores)
        .enable_all()
        .build()?;
    Ok(Some(runtime))
}

/// Returns whether the system lets this process have `wanted` more threads at a time.
fn can_start(wanted: usize) -> bool {
    let before = count();
    let gate = Mutex::new(());
    let all = thread::scope(|scope| {
        let closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = || drop(gate.lock());
        let threads: Vec<_> = (0..wanted)
            .map_while(|_| thread::Builder::new().spawn_scoped(scope, wait).ok())
            .collect();
        drop(closed);
        threads.len() == wanted
    });
    // They have done their work, but each counts against the limit until the kernel has removed it.
    while count() > before {
        thread::yield_now();
    }
    all
}

/// Returns the number of threads of this process, where the system tells it.
fn count() -> Option<usize> {
    Some(fs::read_dir("/proc/self/task").ok()?.count())
}

/// Starts a thread for work that may block, and that nothing waits for.
///
/// # Errors
///
/// If the system gives no thread.
pub(crate) fn start(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name(name.to_owned());
    let started = thread.spawn(work).map(drop);
    started.map_err(|error| io::Error::new(error.kind(), format!("{NO_THREAD}: {error}")))
}

/// Runs `work` on a thread of its own, for work that may block.
///
/// Dropping the future abandons the work: it runs to its end, and its result is dropped.
///
/// # Errors
///
/// If the system gives no thread, or the work panics.
pub(crate) async fn aside<T: Send + 'static>(
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
