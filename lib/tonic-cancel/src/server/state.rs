//! The state machine of a call: active, possibly asked to stop, ended.
//!
//! It is independent of the runtime and uses only wakers. Everything that it must wake, drop or run
//! is first taken out of the state, and handled after the lock is released: foreign code may call
//! back into it, block, or panic.

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

/// Why a call was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CancelReason {
    /// The client cancelled the call or dropped it, or the connection died. A server cannot
    /// distinguish these over HTTP/2.
    ClientGone,
    /// The call's deadline passed.
    DeadlineExceeded,
    /// The server itself ended the call with [`CallContext::cancel`](crate::CallContext::cancel) or
    /// [`CallContext::cancel_with_status`](crate::CallContext::cancel_with_status).
    Server,
    /// The server is shutting down. The grace period is over or, for a call that is
    /// [aside](crate::Drain::aside), the other calls have ended.
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

/// How a call ended, as passed to its callbacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallEnd {
    /// Code of the status that was sent to the client; CANCELLED if the client was gone.
    pub code: Code,
    /// Why the call was cancelled or asked to stop before it was complete; `None` if it ended by
    /// itself.
    pub cancelled: Option<CancelReason>,
}

/// Flag that asks work on other threads to stop. Checking it costs one atomic load.
///
/// Once set, it stays set. A default flag belongs to no call and is never set.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Whether the work should stop. Cheap enough to check in every iteration of a loop that does
    /// some work.
    #[inline]
    #[must_use]
    pub fn is_requested(&self) -> bool {
        // The flag publishes no other data.
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(crate) type Callback = Box<dyn FnOnce(CallEnd) + Send>;

/// The event that a listener waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Moment {
    /// The call is asked to stop, or ends without having been asked.
    Stop,
    /// The call ends.
    End,
}

/// A listener for a moment. It is notified once.
pub(crate) enum Listener {
    Task(Waker),
    /// The flag of a piece of work. Other code may set it, too.
    Work(StopFlag),
    /// A function of the layer that drops what must not outlive the call.
    Hook(Box<dyn FnOnce() + Send>),
}

impl Listener {
    fn notify(self) {
        match self {
            Listener::Task(waker) => catch_panic("a waker", || waker.wake()),
            Listener::Work(flag) => flag.request(),
            Listener::Hook(hook) => catch_panic("the end of a response", hook),
        }
    }
}

/// The state of one call, shared by its handler, its work, its response and its drain.
pub(crate) struct Lifecycle {
    stop: StopFlag,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    /// Listeners for [`Moment::Stop`] and, below, for [`Moment::End`]. When the moment comes, its
    /// list is emptied, and stays empty.
    at_stop: Slab<Listener>,
    at_end: Slab<Listener>,
    callbacks: Vec<Callback>,
    /// Waker of the task that sends the response. It is woken when other code has set the status.
    carrier: Option<Waker>,
    /// The status with which the call ends as soon as the handler has nothing to send immediately.
    parting: Option<Status>,
    /// The parent of all tokens handed out; removed when the call is asked to stop or ends.
    token: Option<CancellationToken>,
}

enum Phase {
    Active,
    /// Asked to stop; the handler may still answer.
    Stopping(CancelReason),
    Ended {
        end: CallEnd,
        /// The status to send instead of the handler's answer, until it has been sent.
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

    /// Asks the work to stop and lets the handler answer.
    ///
    /// Returns `false` if the call was already asked to stop or has ended.
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
        notify_all(listeners, token);
        true
    }

    /// Asks the work to stop, and ends the response with `status` as soon as the handler has
    /// nothing to send immediately.
    pub(crate) fn part(&self, reason: CancelReason, status: Status) {
        self.announce(reason);
        let mut state = self.lock();
        state.parting = Some(status);
        let carrier = state.carrier.take();
        drop(state);
        if let Some(carrier) = carrier {
            Listener::Task(carrier).notify();
        }
    }

    /// Takes the status that [`part`](Self::part) has set. Call this when the handler has nothing
    /// to send.
    pub(crate) fn take_parting(&self) -> Option<Status> {
        self.lock().parting.take()
    }

    /// Runs `hook` when the call ends, before its callbacks, or at once if the call has ended.
    pub(crate) fn at_end(&self, hook: Box<dyn FnOnce() + Send>) {
        let mut state = self.lock();
        if state.has_passed(Moment::End) {
            drop(state);
            Listener::Hook(hook).notify();
        } else {
            state.at_end.insert(Listener::Hook(hook));
        }
    }

    /// Ends the call. Returns `false` if it had already ended. If the call was asked to stop
    /// before, that reason is kept. If there is a `status`, it replaces the handler's answer.
    ///
    /// When this returns `true`, every callback that was registered before the end has run.
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
        // The first reason counts.
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
            Listener::Task(carrier).notify();
        }
        notify_all(at_stop, token);
        notify_all(at_end, None);
        for callback in callbacks {
            run(callback, end);
        }
        true
    }

    /// Registers a callback. Returns `false` if the call had ended and the callback has just run.
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

    /// Returns a token that is cancelled when the call is asked to stop or ends, or is already
    /// cancelled if that has happened.
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

    /// Sets `flag` when the call is asked to stop or ends. Returns the key for
    /// [`forget`](Self::forget), or `None` if that has already happened and the flag is set.
    pub(crate) fn stop_also(&self, flag: &StopFlag) -> Option<usize> {
        let mut state = self.lock();
        if state.has_passed(Moment::Stop) {
            flag.request();
            return None;
        }
        Some(state.at_stop.insert(Listener::Work(flag.clone())))
    }

    /// Polls whether `moment` has passed. If it has not, the task is woken when it does. The caller
    /// keeps `key`, and passes it to [`forget`](Self::forget) when it stops listening.
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
            // If the moment has passed, the list is empty, and this removes nothing.
            let stale = self.lock().listeners(moment).try_remove(key);
            drop(stale);
        }
    }

    /// Returns the status that replaces the handler's answer, but only once. If none is set yet,
    /// the task is woken when one is set.
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

    /// Returns the number of registered listeners.
    #[cfg(all(test, loom))]
    pub(crate) fn listening(&self) -> usize {
        let state = self.lock();
        state.at_stop.len() + state.at_end.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under the lock, so nothing can poison it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn notify_all(listeners: Slab<Listener>, token: Option<CancellationToken>) {
    for (_, listener) in listeners {
        listener.notify();
    }
    if let Some(token) = token {
        catch_panic("a waker", || token.cancel());
    }
}

fn run(callback: Callback, end: CallEnd) {
    catch_panic("a callback", || callback(end));
}

/// Runs foreign code, and logs its panic: a panic must not keep other listeners from being
/// notified.
fn catch_panic(what: &str, foreign: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(foreign)).is_err() {
        tracing::error!("{what} of a call panicked");
    }
}
