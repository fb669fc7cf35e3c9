//! The state machine of a call: active, perhaps told to stop, ended.
//!
//! It knows no runtime, only wakers. Whatever it must wake, drop or run it first takes out, and does
//! so when its lock is free again: foreign code may come back to it, or block, or panic.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError, atomic::Ordering},
    task::{Context, Poll, Waker},
};

use slab::Slab;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::sync::{AtomicBool, Mutex, MutexGuard};

/// Why a call was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CancelReason {
    /// The client cancelled the call or dropped it, or its connection died. HTTP/2 tells a server
    /// no more than that.
    ClientGone,
    /// The call's deadline passed.
    DeadlineExceeded,
    /// The server itself ended it: [`CallContext::cancel`](crate::CallContext::cancel) or
    /// [`CallContext::cancel_with_status`](crate::CallContext::cancel_with_status).
    Server,
    /// The server is shutting down and its grace period is over.
    Drain,
}

impl fmt::Display for CancelReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            CancelReason::ClientGone => "client gone",
            CancelReason::DeadlineExceeded => "deadline exceeded",
            CancelReason::Server => "cancelled by the server",
            CancelReason::Drain => "server draining",
        })
    }
}

/// How a call ended, as its callbacks are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallEnd {
    /// The code of the status that the client was sent, or, where it was gone, that it gave itself.
    pub code: Code,
    /// Why the call was told to stop before it was complete; `None` if the handler ended it.
    pub cancelled: Option<CancelReason>,
}

/// Tells work on other threads, by one atomic load, that its call no longer needs it.
///
/// Once requested it stays so. The default is a flag of its own that nobody ever sets.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Whether the work should end. Cheap enough for every turn of a loop that does anything.
    #[inline]
    #[must_use]
    pub fn is_requested(&self) -> bool {
        // It publishes nothing but itself.
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(crate) type Callback = Box<dyn FnOnce(CallEnd) + Send>;

/// What a listener listens for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Moment {
    /// The call is told to stop, or ends without having been told.
    Stop,
    /// The call ends.
    End,
}

/// Who is told of a moment, once.
pub(crate) enum Listener {
    Task(Waker),
    /// Work that somebody else may stop as well.
    Work(StopFlag),
    /// Something of the layer's own that must not outlive the call.
    Hook(Box<dyn FnOnce() + Send>),
}

impl Listener {
    fn tell(self) {
        match self {
            Listener::Task(waker) => unharmed("a waker", || waker.wake()),
            Listener::Work(flag) => flag.request(),
            Listener::Hook(hook) => unharmed("the end of a response", hook),
        }
    }
}

/// The state of one call, for all who have to do with it.
pub(crate) struct Lifecycle {
    stop: StopFlag,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    /// Empty, and to stay so, once their moment has passed.
    at_stop: Slab<Listener>,
    at_end: Slab<Listener>,
    callbacks: Vec<Callback>,
    /// The task that carries the response, to be woken when the status is decided elsewhere.
    carrier: Option<Waker>,
    /// What the call ends with as soon as its handler has nothing to say.
    parting: Option<Status>,
    /// The parent of all tokens that were asked for; gone once the call was told to stop.
    token: Option<CancellationToken>,
}

enum Phase {
    Active,
    /// Told to stop; the handler's own answer is still awaited.
    Stopping(CancelReason),
    Ended {
        end: CallEnd,
        /// What the client is to be sent instead of the handler's answer, until it was sent.
        status: Option<Status>,
    },
}

impl State {
    fn reason(&self) -> Option<CancelReason> {
        match self.phase {
            Phase::Active => None,
            Phase::Stopping(reason) => Some(reason),
            Phase::Ended { end, .. } => end.cancelled,
        }
    }

    fn end(&self) -> Option<CallEnd> {
        match self.phase {
            Phase::Ended { end, .. } => Some(end),
            _ => None,
        }
    }

    fn has_passed(&self, moment: Moment) -> bool {
        match moment {
            Moment::Stop => !matches!(self.phase, Phase::Active),
            Moment::End => matches!(self.phase, Phase::Ended { .. }),
        }
    }

    fn listeners(&mut self, moment: Moment) -> &mut Slab<Listener> {
        match moment {
            Moment::Stop => &mut self.at_stop,
            Moment::End => &mut self.at_end,
        }
    }
}

impl Lifecycle {
    pub(crate) fn new() -> Lifecycle {
        Lifecycle {
            stop: StopFlag::default(),
            state: Mutex::new(State {
                phase: Phase::Active,
                at_stop: Slab::new(),
                at_end: Slab::new(),
                callbacks: Vec::new(),
                carrier: None,
                parting: None,
                token: None,
            }),
        }
    }

    pub(crate) fn stop_flag(&self) -> &StopFlag {
        &self.stop
    }

    pub(crate) fn reason(&self) -> Option<CancelReason> {
        self.lock().reason()
    }

    pub(crate) fn end(&self) -> Option<CallEnd> {
        self.lock().end()
    }

    /// Tells the work to stop and lets the handler answer.
    ///
    /// Says whether it was neither told before nor has ended.
    pub(crate) fn announce(&self, reason: CancelReason) -> bool {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Active) {
            return false;
        }
        state.phase = Phase::Stopping(reason);
        self.stop.request();
        let listeners = std::mem::take(&mut state.at_stop);
        let token = state.token.take();
        drop(state);
        tell(listeners, token);
        true
    }

    /// Tells the work to stop, and has the response end with `status` as soon as the handler has nothing to
    /// say that it could say at once.
    pub(crate) fn part(&self, reason: CancelReason, status: Status) {
        self.announce(reason);
        let mut state = self.lock();
        state.parting = Some(status);
        let carrier = state.carrier.take();
        drop(state);
        if let Some(carrier) = carrier {
            Listener::Task(carrier).tell();
        }
    }

    /// The status with which a call ends whose handler has nothing to say, if it is to end so.
    pub(crate) fn take_parting(&self) -> Option<Status> {
        self.lock().parting.take()
    }

    /// Has something done when the call ends, before its callbacks; at once if it has ended.
    pub(crate) fn at_end(&self, hook: Box<dyn FnOnce() + Send>) {
        let mut state = self.lock();
        if state.has_passed(Moment::End) {
            drop(state);
            Listener::Hook(hook).tell();
        } else {
            state.at_end.insert(Listener::Hook(hook));
        }
    }

    /// Ends the call, unless it has ended; says whether it had not. If it was told to stop before, that
    /// reason stays. A `status` takes the place of the handler's answer.
    ///
    /// When it returns `true`, every callback registered so far has run.
    pub(crate) fn finish(
        &self,
        code: Code,
        reason: Option<CancelReason>,
        status: Option<Status>,
    ) -> bool {
        let mut state = self.lock();
        if state.end().is_some() {
            return false;
        }
        // Why it was told to stop first stays why.
        let cancelled = state.reason().or(reason);
        let end = CallEnd { code, cancelled };
        state.phase = Phase::Ended { end, status };
        self.stop.request();
        let at_stop = std::mem::take(&mut state.at_stop);
        let at_end = std::mem::take(&mut state.at_end);
        let token = state.token.take();
        let carrier = state.carrier.take();
        let callbacks = std::mem::take(&mut state.callbacks);
        drop(state);

        if let Some(carrier) = carrier {
            Listener::Task(carrier).tell();
        }
        tell(at_stop, token);
        tell(at_end, None);
        for callback in callbacks {
            run(callback, end);
        }
        true
    }

    /// Registers a callback and says whether it is still to come; if not, it has just run.
    pub(crate) fn add_callback(&self, callback: Callback) -> bool {
        let mut state = self.lock();
        if let Some(end) = state.end() {
            drop(state);
            run(callback, end);
            return false;
        }
        state.callbacks.push(callback);
        true
    }

    /// A token that is cancelled when the call is told to stop, and if it was.
    pub(crate) fn child_token(&self) -> CancellationToken {
        let mut state = self.lock();
        if state.has_passed(Moment::Stop) {
            drop(state);
            let token = CancellationToken::new();
            token.cancel();
            return token;
        }
        state.token.get_or_insert_default().child_token()
    }

    /// Sets `flag` when the call is told to stop, or at once if it was; gives the key by which it is
    /// forgotten again.
    pub(crate) fn stop_also(&self, flag: &StopFlag) -> Option<usize> {
        let mut state = self.lock();
        if state.has_passed(Moment::Stop) {
            flag.request();
            return None;
        }
        Some(state.at_stop.insert(Listener::Work(flag.clone())))
    }

    /// Whether the moment has come; until it has, the task is woken when it does. The key is the
    /// caller's to keep, and to [`forget`](Self::forget) when it listens no more.
    pub(crate) fn poll(
        &self,
        moment: Moment,
        key: &mut Option<usize>,
        cx: &Context<'_>,
    ) -> Poll<()> {
        let mut fresh = None;
        loop {
            let mut state = self.lock();
            if state.has_passed(moment) {
                *key = None;
                return Poll::Ready(());
            }
            let listeners = state.listeners(moment);
            if let Some(key) = *key
                && let Some(Listener::Task(known)) = listeners.get(key)
                && known.will_wake(cx.waker())
            {
                return Poll::Pending;
            }
            let Some(waker) = fresh.take() else {
                drop(state);
                fresh = Some(Listener::Task(cx.waker().clone()));
                continue;
            };
            let stale = key.and_then(|key| listeners.try_remove(key));
            *key = Some(listeners.insert(waker));
            drop(state);
            drop(stale);
            return Poll::Pending;
        }
    }

    pub(crate) fn forget(&self, moment: Moment, key: Option<usize>) {
        if let Some(key) = key {
            // There is none any more, and never will be, once the moment has passed.
            let stale = self.lock().listeners(moment).try_remove(key);
            drop(stale);
        }
    }

    /// The status that takes the place of the handler's answer, once. Until there is one, the task
    /// is woken when there is.
    pub(crate) fn poll_status(&self, cx: &Context<'_>) -> Poll<Status> {
        let mut fresh = None;
        loop {
            let mut state = self.lock();
            if let Phase::Ended { status, .. } = &mut state.phase {
                return status.take().map_or(Poll::Pending, Poll::Ready);
            }
            let known = state.carrier.as_ref();
            if known.is_some_and(|waker| waker.will_wake(cx.waker())) {
                return Poll::Pending;
            }
            let Some(waker) = fresh.take() else {
                drop(state);
                fresh = Some(cx.waker().clone());
                continue;
            };
            let stale = state.carrier.replace(waker);
            drop(state);
            drop(stale);
            return Poll::Pending;
        }
    }

    /// How many tasks and flags wait for something.
    #[cfg(all(test, loom))]
    pub(crate) fn listening(&self) -> usize {
        let state = self.lock();
        state.at_stop.len() + state.at_end.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under the lock, so there is nothing to poison it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell(listeners: Slab<Listener>, token: Option<CancellationToken>) {
    for (_, listener) in listeners {
        listener.tell();
    }
    if let Some(token) = token {
        unharmed("a waker", || token.cancel());
    }
}

fn run(callback: Callback, end: CallEnd) {
    unharmed("a callback", || callback(end));
}

/// What panics here must not keep others from being told.
fn unharmed(what: &str, foreign: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(foreign)).is_err() {
        tracing::error!("{what} of a call panicked");
    }
}
