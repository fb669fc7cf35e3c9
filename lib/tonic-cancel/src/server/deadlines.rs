//! The thread that ends calls when their time is up, and wakes drains when theirs is.
//!
//! A timer of the runtime would not do. The task that waits for it is started, or woken, by the
//! worker that polls the handler, and sits in a slot of that worker that no other worker takes from:
//! a handler that then blocks its thread keeps its own deadline from being noticed. And the worker that
//! came from turning the timers to poll the handler may be the only one awake: then no timer fires at all.
//! Deadlines and drains are for such handlers above all, so their time is kept where no handler can stand in
//! its way.

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

/// The calls of the whole process that have a deadline and have not ended, and the tasks that wait for a
/// moment.
struct Deadlines {
    queue: Mutex<Queue>,
    /// Signalled when the first deadline has become an earlier one.
    earlier: Condvar,
}

struct Queue {
    is_started: bool,
    /// By deadline, and by number among equals.
    waiting: BTreeMap<(Instant, u64), Waiting>,
    next: u64,
}

enum Waiting {
    /// To be ended.
    Call(Weak<Shared>),
    /// To be woken.
    Task(Waker),
}

/// A place among those that wait for their deadline, until it is dropped.
pub(crate) struct Watched {
    deadlines: &'static Deadlines,
    key: (Instant, u64),
}

/// Ends `call` when `deadline` has passed, unless the result is dropped before. The thread is
/// started by the first that waits for anything.
pub(crate) fn watch(call: &CallContext, deadline: Instant) -> io::Result<Watched> {
    wait(Waiting::Call(Arc::downgrade(call.shared())), deadline)
}

/// What `future` gives, if it is ready within `limit`, also while handlers block the runtime's threads.
///
/// Without the thread no time can be kept, and none is given.
pub(crate) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    // A limit beyond what the clock can show is none.
    let deadline = Instant::now().checked_add(limit);
    // Of the task that polled last.
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
        // Not under the lock: with a waker may go a task, and with that a place of its own.
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
                // Callbacks run now, and may do what they like with other calls.
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
