//! The thread that ends calls when their time is up.
//!
//! A timer of the runtime would not do. The task that waits for it is started, or woken, by the
//! worker that polls the handler, and sits in a slot of that worker that no other worker takes from:
//! a handler that then blocks its thread keeps its own deadline from being noticed. Deadlines are
//! for such handlers above all, so they are kept where no handler can stand in their way.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::Instant,
};

use super::context::{CallContext, Shared};

/// The calls of the whole process that have a deadline and have not ended.
struct Deadlines {
    calls: Mutex<Calls>,
    /// Signalled when the first deadline has become an earlier one.
    earlier: Condvar,
}

struct Calls {
    is_started: bool,
    /// By deadline, and by number among equals.
    waiting: BTreeMap<(Instant, u64), Weak<Shared>>,
    next: u64,
}

/// A call's place among those that wait for their deadline, until it is dropped.
pub(crate) struct Watched {
    deadlines: &'static Deadlines,
    key: (Instant, u64),
}

/// Ends `call` when `deadline` has passed, unless the result is dropped before. The thread is
/// started by the first call that has a deadline.
pub(crate) fn watch(call: &CallContext, deadline: Instant) -> io::Result<Watched> {
    static DEADLINES: Deadlines = Deadlines {
        calls: Mutex::new(Calls {
            is_started: false,
            waiting: BTreeMap::new(),
            next: 0,
        }),
        earlier: Condvar::new(),
    };

    let deadlines = &DEADLINES;
    let mut calls = deadlines.lock();
    if !calls.is_started {
        thread::Builder::new()
            .name("call-deadlines".to_owned())
            .spawn(|| deadlines.run())?;
        calls.is_started = true;
    }
    let key = (deadline, calls.next);
    calls.next += 1;
    calls.waiting.insert(key, Arc::downgrade(call.shared()));
    let first = calls.waiting.first_key_value();
    let is_first = first.is_some_and(|(first, _)| *first == key);
    drop(calls);
    if is_first {
        deadlines.earlier.notify_one();
    }
    Ok(Watched { deadlines, key })
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.deadlines.lock().waiting.remove(&self.key);
    }
}

impl Deadlines {
    fn run(&self) -> ! {
        let mut calls = self.lock();
        loop {
            let Some(first) = calls.waiting.first_entry() else {
                let woken = self.earlier.wait(calls);
                calls = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let (deadline, _) = *first.key();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let call = first.remove();
                // Callbacks run now, and may do what they like with other calls.
                drop(calls);
                if let Some(shared) = call.upgrade() {
                    CallContext::from_shared(shared).exceed_deadline();
                }
                calls = self.lock();
            } else {
                let woken = self.earlier.wait_timeout(calls, left);
                calls = woken.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
