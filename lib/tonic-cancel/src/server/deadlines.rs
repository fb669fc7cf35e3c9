//! The thread that ends calls at their deadlines, and wakes drains when their time is up.
//!
//! A timer of the runtime would not be enough. The task that waits for the timer is started, or
//! woken, by the worker that polls the handler. The task then sits in a slot of that worker from
//! which other workers do not steal, so a handler that blocks its thread delays its own deadline.
//! Also, the worker that switched from driving the timers to polling the handler may be the only
//! one awake; then no timer fires at all. Deadlines and drains matter most for handlers that block,
//! so a separate thread keeps their time.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    io,
    pin::pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    task::{Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use super::context::{CallContext, Shared};

/// All calls of the process that have a deadline and have not ended, and all tasks that wait for a
/// point in time.
struct Deadlines {
    queue: Mutex<Queue>,
    /// Signalled when an entry is added that comes before all others.
    earlier: Condvar,
}

struct Queue {
    is_started: bool,
    /// Sorted by deadline. The number distinguishes entries with the same deadline.
    waiting: BTreeMap<(Instant, u64), Waiting>,
    next: u64,
}

enum Waiting {
    /// A call to end.
    Call(Weak<Shared>),
    /// A task to wake.
    Task(Waker),
}

/// An entry in the queue. Dropping it removes the entry.
pub(crate) struct Watched {
    deadlines: &'static Deadlines,
    key: (Instant, u64),
}

/// Ends `call` at `deadline`, unless the returned value is dropped before. The first entry in the
/// queue starts the thread; an error means that it could not be started.
pub(crate) fn watch(call: &CallContext, deadline: Instant) -> io::Result<Watched> {
    wait(Waiting::Call(Arc::downgrade(call.shared())), deadline)
}

/// Returns the output of `future`, or `None` if it is not ready within `limit`. The limit holds
/// even if handlers block threads of the runtime, as long as one is left to poll this.
///
/// If the thread cannot be started, the limit counts as zero.
pub(crate) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    // A limit that overflows the clock counts as no limit.
    let deadline = Instant::now().checked_add(limit);
    // The queue's entry for the task that polled last.
    let mut place = None;
    poll_fn(move |cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        let Some(deadline) = deadline else {
            return Poll::Pending;
        };
        if deadline <= Instant::now() {
            return Poll::Ready(None);
        }
        match wait(Waiting::Task(cx.waker().clone()), deadline) {
            Ok(watched) => drop(place.replace(watched)),
            Err(_) => return Poll::Ready(None),
        }
        Poll::Pending
    })
    .await
}

fn wait(waiting: Waiting, deadline: Instant) -> io::Result<Watched> {
    static DEADLINES: Deadlines = Deadlines {
        queue: Mutex::new(Queue {
            is_started: false,
            waiting: BTreeMap::new(),
            next: 0,
        }),
        earlier: Condvar::new(),
    };

    let deadlines = &DEADLINES;
    let mut queue = deadlines.lock();
    if !queue.is_started {
        thread::Builder::new()
            .name("call-deadlines".to_owned())
            .spawn(|| deadlines.run())?;
        queue.is_started = true;
    }
    let key = (deadline, queue.next);
    queue.next += 1;
    queue.waiting.insert(key, waiting);
    let first = queue.waiting.first_key_value();
    let is_first = first.is_some_and(|(first, _)| *first == key);
    drop(queue);
    if is_first {
        deadlines.earlier.notify_one();
    }
    Ok(Watched { deadlines, key })
}

impl Drop for Watched {
    fn drop(&mut self) {
        let waited = self.deadlines.lock().waiting.remove(&self.key);
        // Drop outside of the lock: dropping a waker may drop a task, which may hold another entry.
        drop(waited);
    }
}

impl Deadlines {
    fn run(&self) -> ! {
        let mut queue = self.lock();
        loop {
            let Some(first) = queue.waiting.first_entry() else {
                let woken = self.earlier.wait(queue);
                queue = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let (deadline, _) = *first.key();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let waited = first.remove();
                // Release the lock: callbacks run now, and may start or end other calls.
                drop(queue);
                match waited {
                    Waiting::Call(call) => {
                        if let Some(shared) = call.upgrade() {
                            CallContext::from_shared(shared).exceed_deadline();
                        }
                    }
                    Waiting::Task(waker) => waker.wake(),
                }
                queue = self.lock();
            } else {
                let woken = self.earlier.wait_timeout(queue, left);
                queue = woken.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
