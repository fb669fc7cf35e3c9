//! A call's state: active, told to stop, ended.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use tonic::{Code, Request, Status};

/// Why a call was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CancelReason {
    /// The client cancelled the call or dropped it, or its connection died. HTTP/2 tells a server
    /// no more than that.
    ClientGone,
    /// The call's deadline passed.
    DeadlineExceeded,
    /// The server itself ended it: [`CallContext::cancel`] or [`CallContext::cancel_with_status`].
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

    fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One call, as its handler sees it; clones are the same call.
///
/// A call is *active*, then perhaps *told to stop* while its handler may still answer (a drain does
/// that), then *ended*, once and for good. Everything here works from any thread.
#[derive(Clone)]
pub struct CallContext {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    deadline: Option<Instant>,
    stop: StopFlag,
    /// Notified when the call is told to stop and when it ends.
    changed: Notify,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    callbacks: Vec<Callback>,
    /// The task that carries the response, to be woken when the status is decided elsewhere.
    carrier: Option<Waker>,
}

type Callback = Box<dyn FnOnce(CallEnd) + Send>;

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

impl CallContext {
    /// The context of the call that a request belongs to.
    ///
    /// Without a [`CallContextLayer`](crate::CallContextLayer) on the server there is none to be
    /// found, and this gives one that is never cancelled and has no deadline, so that a handler
    /// need not care, and works in tests that call it directly.
    #[must_use]
    pub fn of<T>(request: &Request<T>) -> CallContext {
        let context = request.extensions().get::<CallContext>();
        context.cloned().unwrap_or_else(|| CallContext::new(None))
    }

    pub(crate) fn new(deadline: Option<Instant>) -> CallContext {
        CallContext {
            shared: Arc::new(Shared {
                deadline,
                stop: StopFlag::default(),
                changed: Notify::new(),
                state: Mutex::new(State {
                    phase: Phase::Active,
                    callbacks: Vec::new(),
                    carrier: None,
                }),
            }),
        }
    }

    pub(crate) fn from_shared(shared: Arc<Shared>) -> CallContext {
        CallContext { shared }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Whether the call has not ended. A call that was told to stop is active until it does.
    #[must_use]
    pub fn is_active(&self) -> bool {
        !matches!(self.lock().phase, Phase::Ended { .. })
    }

    /// Whether the call was told to stop, for whichever reason.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancel_reason().is_some()
    }

    /// Why the call was told to stop, if it was.
    #[must_use]
    pub fn cancel_reason(&self) -> Option<CancelReason> {
        match self.lock().phase {
            Phase::Active => None,
            Phase::Stopping(reason) => Some(reason),
            Phase::Ended { end, .. } => end.cancelled,
        }
    }

    /// How the call ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<CallEnd> {
        match self.lock().phase {
            Phase::Ended { end, .. } => Some(end),
            _ => None,
        }
    }

    /// When the whole call, a stream's last message included, must be over.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.shared.deadline
    }

    /// How much time is left until the deadline: zero after it, `None` without one.
    #[must_use]
    pub fn time_remaining(&self) -> Option<Duration> {
        let deadline = self.shared.deadline?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    /// What threads that work for the call look at. It is requested when the call is told to stop
    /// and when it ends in any way.
    #[must_use]
    pub fn stop_flag(&self) -> StopFlag {
        self.shared.stop.clone()
    }

    /// Registers what is to be done when the call ends, and says whether it is still to come.
    ///
    /// It runs exactly once, however the call ends: at once, on this thread, if it already has
    /// (then this returns `false`), and otherwise on the thread that ends it. Callbacks run in the
    /// order of their registration, outside of every lock; one that panics harms no other. They should
    /// be quick: whatever ends the call waits for them, at a deadline the thread that ends them all.
    pub fn add_callback(&self, callback: impl FnOnce(CallEnd) + Send + 'static) -> bool {
        let mut state = self.lock();
        if let Phase::Ended { end, .. } = state.phase {
            drop(state);
            run(Box::new(callback), end);
            return false;
        }
        state.callbacks.push(Box::new(callback));
        true
    }

    /// Waits until the call is told to stop and gives the reason, or until it ends of itself, and
    /// then gives `None`.
    ///
    /// Dropping the future has no effect on the call.
    pub async fn cancelled(&self) -> Option<CancelReason> {
        loop {
            let changed = self.shared.changed.notified();
            match self.lock().phase {
                Phase::Active => {}
                Phase::Stopping(reason) => return Some(reason),
                Phase::Ended { end, .. } => return end.cancelled,
            }
            changed.await;
        }
    }

    /// Ends the call now with CANCELLED; says whether it had not ended yet.
    pub fn cancel(&self) -> bool {
        self.cancel_with_status(Status::cancelled("the server cancelled the call"))
    }

    /// Ends the call now with `status`, before the response or in the middle of a stream; says
    /// whether it had not ended yet. Messages that have not been sent are not, and the handler's
    /// future or stream is dropped.
    ///
    /// The status is best not OK: a unary call that ends with OK and without a message is an error
    /// to its client.
    pub fn cancel_with_status(&self, status: Status) -> bool {
        self.end_with(CancelReason::Server, Some(status))
    }

    /// Tells the work to stop and lets the handler answer.
    pub(crate) fn announce(&self, reason: CancelReason) {
        let mut state = self.lock();
        if let Phase::Active = state.phase {
            state.phase = Phase::Stopping(reason);
            drop(state);
            self.shared.stop.request();
            self.shared.changed.notify_waiters();
        }
    }

    /// Ends the call for a reason of its own. Without a status there is nobody to send it to.
    pub(crate) fn end_with(&self, reason: CancelReason, status: Option<Status>) -> bool {
        let code = status.as_ref().map_or(Code::Cancelled, Status::code);
        let cancelled = Some(reason);
        self.transition(CallEnd { code, cancelled }, status)
    }

    /// Ends the call with the handler's own answer.
    pub(crate) fn complete(&self, code: Code) -> bool {
        let cancelled = self.cancel_reason();
        self.transition(CallEnd { code, cancelled }, None)
    }

    /// Ends the call because its handler panicked.
    pub(crate) fn panicked(&self) {
        let status = Status::unknown("the handler of this call panicked");
        let cancelled = self.cancel_reason();
        let code = status.code();
        self.transition(CallEnd { code, cancelled }, Some(status));
    }

    fn transition(&self, end: CallEnd, status: Option<Status>) -> bool {
        let mut state = self.lock();
        if let Phase::Ended { .. } = state.phase {
            return false;
        }
        state.phase = Phase::Ended { end, status };
        let callbacks = std::mem::take(&mut state.callbacks);
        let carrier = state.carrier.take();
        drop(state);

        self.shared.stop.request();
        self.shared.changed.notify_waiters();
        if let Some(carrier) = carrier {
            carrier.wake();
        }
        for callback in callbacks {
            run(callback, end);
        }
        true
    }

    /// Ends the call if its deadline has passed. The timer does that too, but a call that is being
    /// polled need not wait for it.
    pub(crate) fn check_deadline(&self) {
        if self.shared.deadline.is_some_and(|at| at <= Instant::now()) {
            self.exceed_deadline();
        }
    }

    pub(crate) fn exceed_deadline(&self) {
        let status = Status::deadline_exceeded("the call's deadline passed");
        self.end_with(CancelReason::DeadlineExceeded, Some(status));
    }

    /// The status that takes the place of the handler's answer, once. Until there is one, the task
    /// is woken when there is.
    pub(crate) fn poll_status(&self, cx: &Context<'_>) -> Poll<Status> {
        let mut state = self.lock();
        if let Phase::Ended { status, .. } = &mut state.phase {
            return status.take().map_or(Poll::Pending, Poll::Ready);
        }
        let known = state.carrier.as_ref();
        if !known.is_some_and(|waker| waker.will_wake(cx.waker())) {
            let stale = state.carrier.replace(cx.waker().clone());
            // Dropping a waker may run anything.
            drop(state);
            drop(stale);
        }
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under the lock, so there is nothing to poison it.
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for CallContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallContext")
            .field("deadline", &self.shared.deadline)
            .field("cancelled", &self.cancel_reason())
            .field("end", &self.end())
            .finish()
    }
}

fn run(callback: Callback, end: CallEnd) {
    if catch_unwind(AssertUnwindSafe(|| callback(end))).is_err() {
        tracing::error!("a callback of a call panicked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn recorder(context: &CallContext) -> mpsc::Receiver<CallEnd> {
        let (sender, receiver) = mpsc::channel();
        context.add_callback(move |end| sender.send(end).unwrap());
        receiver
    }

    #[test]
    fn the_first_end_counts_and_callbacks_run_once() {
        let context = CallContext::new(None);
        let ends = recorder(&context);
        assert!(context.is_active() && !context.is_cancelled());
        assert!(context.cancel_with_status(Status::aborted("enough")));
        assert!(!context.cancel());
        assert!(!context.complete(Code::Ok));
        let end = CallEnd {
            code: Code::Aborted,
            cancelled: Some(CancelReason::Server),
        };
        assert_eq!(ends.iter().collect::<Vec<_>>(), [end]);
        assert_eq!(context.end(), Some(end));
        assert!(context.stop_flag().is_requested());
    }

    #[test]
    fn a_callback_registered_after_the_end_runs_at_once_and_says_so() {
        let context = CallContext::new(None);
        context.complete(Code::Ok);
        let (sender, receiver) = mpsc::channel();
        assert!(!context.add_callback(move |end| sender.send(end).unwrap()));
        assert_eq!(receiver.recv().unwrap().code, Code::Ok);
    }

    #[test]
    fn a_callback_may_panic_cancel_and_register() {
        let context = CallContext::new(None);
        context.add_callback(|_| panic!("a panic that this test wants"));
        let again = context.clone();
        let (sender, receiver) = mpsc::channel();
        context.add_callback(move |_| {
            assert!(!again.cancel());
            again.add_callback(move |end| sender.send(end).unwrap());
        });
        context.complete(Code::Ok);
        assert_eq!(receiver.recv().unwrap().cancelled, None);
    }

    #[test]
    fn an_announced_stop_lets_the_handler_answer() {
        let context = CallContext::new(None);
        let ends = recorder(&context);
        context.announce(CancelReason::Drain);
        assert!(context.is_active() && context.is_cancelled());
        assert!(context.stop_flag().is_requested());
        assert!(ends.try_recv().is_err());
        context.complete(Code::Unavailable);
        assert_eq!(ends.recv().unwrap().cancelled, Some(CancelReason::Drain));
    }

    #[tokio::test]
    async fn waiting_for_a_cancellation_ends_with_the_call() {
        for (cancel, expected) in [(true, Some(CancelReason::Server)), (false, None)] {
            let context = CallContext::new(None);
            let waiting = tokio::spawn({
                let context = context.clone();
                async move { context.cancelled().await }
            });
            tokio::task::yield_now().await;
            if cancel {
                context.cancel();
            } else {
                context.complete(Code::Ok);
            }
            assert_eq!(waiting.await.unwrap(), expected);
            assert_eq!(context.cancelled().await, expected);
        }
    }

    #[test]
    fn a_request_without_the_layer_has_a_context_that_never_ends() {
        let context = CallContext::of(&Request::new(()));
        assert!(context.is_active() && context.time_remaining().is_none());
    }
}
