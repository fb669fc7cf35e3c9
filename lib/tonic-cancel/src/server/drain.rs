//! Ending a server in bounded time.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::Notify;
use tonic::Status;

use super::context::{CallContext, CancelReason, Shared};

/// Close, wait, force: knows every call of the layers that share it, and ends them in bounded time.
///
/// Clones are the same drain.
#[derive(Clone)]
pub struct Drain {
    shared: Arc<DrainShared>,
}

struct DrainShared {
    refusal: Box<dyn Fn() -> Status + Send + Sync>,
    state: Mutex<DrainState>,
    /// Notified when the last call has ended.
    idle: Notify,
}

#[derive(Default)]
struct DrainState {
    closed: bool,
    calls: HashMap<u64, Weak<Shared>>,
    next: u64,
}

/// What a drain had to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// How many calls outlasted the grace period and were told to stop.
    pub told: usize,
    /// How many of these outlasted the notice as well and were ended without their handlers.
    pub forced: usize,
}

impl Default for Drain {
    fn default() -> Drain {
        Drain::new()
    }
}

impl Drain {
    /// A drain that refuses late calls, and ends the ones that it must force, with UNAVAILABLE.
    #[must_use]
    pub fn new() -> Drain {
        Drain::with_status(|| Status::unavailable("the server is shutting down"))
    }

    /// A drain with a status of its own for calls that it refuses or forces. UNAVAILABLE is what
    /// tells clients to go elsewhere.
    #[must_use]
    pub fn with_status(status: impl Fn() -> Status + Send + Sync + 'static) -> Drain {
        Drain {
            shared: Arc::new(DrainShared {
                refusal: Box::new(status),
                state: Mutex::default(),
                idle: Notify::new(),
            }),
        }
    }

    /// Refuses every call from now on.
    pub fn close(&self) {
        self.lock().closed = true;
    }

    /// How many calls have not ended.
    #[must_use]
    pub fn active_calls(&self) -> usize {
        self.lock().calls.len()
    }

    /// Ends all calls: refuses new ones, lets the others go on for `grace`, then tells them to stop
    /// ([`CancelReason::Drain`]) and gives their handlers `notice` to answer, then ends what is
    /// left. It returns as soon as no call is left, and after `grace` and `notice` at the latest,
    /// also where a stream is not being read: a call that is forced no longer counts, though its
    /// connection may still be there.
    ///
    /// Dropping the future leaves the drain closed and every call as it is.
    pub async fn drain(&self, grace: Duration, notice: Duration) -> Drained {
        self.close();
        let mut drained = Drained::default();
        if tokio::time::timeout(grace, self.idle()).await.is_ok() {
            return drained;
        }
        for call in self.calls() {
            call.announce(CancelReason::Drain);
            drained.told += 1;
        }
        if tokio::time::timeout(notice, self.idle()).await.is_ok() {
            return drained;
        }
        for call in self.calls() {
            let status = (self.shared.refusal)();
            drained.forced += usize::from(call.end_with(CancelReason::Drain, Some(status)));
        }
        drained
    }

    /// Waits until no call is left. Dropping the future has no effect.
    async fn idle(&self) {
        loop {
            let idle = self.shared.idle.notified();
            if self.lock().calls.is_empty() {
                return;
            }
            idle.await;
        }
    }

    /// Counts a call until it ends, or ends it at once if the drain is closed.
    pub(crate) fn admit(&self, call: &CallContext) {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            let status = (self.shared.refusal)();
            call.end_with(CancelReason::Drain, Some(status));
            return;
        }
        let id = state.next;
        state.next += 1;
        state.calls.insert(id, Arc::downgrade(call.shared()));
        drop(state);
        let drain = self.clone();
        call.add_callback(move |_| drain.leave(id));
    }

    fn leave(&self, id: u64) {
        let mut state = self.lock();
        state.calls.remove(&id);
        if state.calls.is_empty() {
            drop(state);
            self.shared.idle.notify_waiters();
        }
    }

    fn calls(&self) -> Vec<CallContext> {
        let state = self.lock();
        let calls = state.calls.values().filter_map(Weak::upgrade);
        calls.map(CallContext::from_shared).collect()
    }

    fn lock(&self) -> MutexGuard<'_, DrainState> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Drain")
            .field("closed", &state.closed)
            .field("active_calls", &state.calls.len())
            .finish()
    }
}
