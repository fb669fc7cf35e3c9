//! A call, as its handler sees it.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

use super::{
    drain::Membership,
    state::{CallEnd, CancelReason, Lifecycle, Moment, StopFlag},
};
#[cfg(feature = "client")]
use crate::link::Parent;
use crate::timeout;

/// One call, as its handler sees it. Clones refer to the same call.
///
/// A call is *active* until it has *ended*. Before that, a drain may *ask it to stop*; then its
/// handler may still answer. All methods work from any thread.
#[derive(Clone)]
pub struct CallContext {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    terms: Terms,
    state: Lifecycle,
    /// Whether the client's messages were cut off before their end.
    requests_cut: AtomicBool,
    /// Set if a drain counts the call.
    membership: Option<Membership>,
}

/// Time limits of a call and of the outgoing calls that its handler makes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) deadline: Option<Instant>,
    /// How long before this call's deadline its outgoing calls must end.
    pub(crate) margin: Duration,
}

impl Shared {
    pub(crate) fn new(terms: Terms, membership: Option<Membership>) -> Shared {
        Shared {
            terms,
            state: Lifecycle::new(),
            requests_cut: AtomicBool::new(false),
            membership,
        }
    }
}

impl CallContext {
    /// Returns the context of the call that a request belongs to.
    ///
    /// Without a [`CallContextLayer`](crate::CallContextLayer), the request has no context. This
    /// method then returns one that has no deadline and that no other code cancels, so that a
    /// handler needs no special case, and works in tests that call it directly.
    #[must_use]
    pub fn of<T>(request: &Request<T>) -> CallContext {
        let context = request.extensions().get::<CallContext>();
        context.cloned().unwrap_or_else(CallContext::alone)
    }

    /// Creates a context without a drain and without a deadline.
    pub(crate) fn alone() -> CallContext {
        CallContext::from_shared(Arc::new(Shared::new(Terms::default(), None)))
    }

    pub(crate) fn from_shared(shared: Arc<Shared>) -> CallContext {
        CallContext { shared }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn state(&self) -> &Lifecycle {
        &self.shared.state
    }

    pub(crate) fn membership(&self) -> Option<&Membership> {
        self.shared.membership.as_ref()
    }

    /// Whether the call has not ended. A call that was asked to stop is active until it ends.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.end().is_none()
    }

    /// Whether the call was cancelled or asked to stop, for any reason.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancel_reason().is_some()
    }

    /// Returns why the call was cancelled or asked to stop, if it was.
    #[must_use]
    pub fn cancel_reason(&self) -> Option<CancelReason> {
        self.state().reason()
    }

    /// Returns how the call ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<CallEnd> {
        self.state().end()
    }

    /// Returns the time by which the whole call must have ended, including a stream's last message.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.shared.terms.deadline
    }

    /// Returns the time left until the deadline: zero after it, `None` without a deadline.
    #[must_use]
    pub fn time_remaining(&self) -> Option<Duration> {
        let deadline = self.deadline()?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    /// Returns the flag that threads working for the call should check. It is set when the call is
    /// asked to stop and when it ends in any way.
    #[must_use]
    pub fn stop_flag(&self) -> StopFlag {
        self.state().stop_flag().clone()
    }

    /// Returns a cancellation token, for libraries that support one. It is cancelled when the call
    /// is asked to stop and when it ends in any way. Cancelling the token has no effect on the
    /// call.
    ///
    /// In a loop with short iterations, use a [`StopFlag`] instead: checking a token takes a lock.
    #[must_use]
    pub fn child_token(&self) -> CancellationToken {
        self.state().child_token()
    }

    /// Registers a callback for the end of the call. Returns `false` if the call had ended and the
    /// callback has already run.
    ///
    /// The callback runs exactly once, however the call ends: at once, on this thread, if the call
    /// has already ended, and otherwise on the thread that ends it. Callbacks run in the order of
    /// their registration, outside of every lock. A callback that panics does not affect the
    /// others. Callbacks should be quick, because the code that ends the call waits for them. At a
    /// deadline, that can be the thread that enforces the deadlines of all calls.
    pub fn add_callback(&self, callback: impl FnOnce(CallEnd) + Send + 'static) -> bool {
        self.state().add_callback(Box::new(callback))
    }

    /// Waits until the call is asked to stop or is cancelled, and returns the reason. Returns
    /// `None` if the call ends by itself.
    ///
    /// Dropping the future has no effect on the call.
    pub async fn cancelled(&self) -> Option<CancelReason> {
        Waiting::new(self.clone(), Moment::Stop).await;
        self.cancel_reason()
    }

    /// Ends the call now with CANCELLED. Returns `false` if it had already ended.
    pub fn cancel(&self) -> bool {
        self.cancel_with_status(Status::cancelled("the server cancelled the call"))
    }

    /// Ends the call now with `status`, before the response or in the middle of a stream. Returns
    /// `false` if the call had already ended. Messages not yet sent are discarded, and the
    /// handler's future or stream is dropped.
    ///
    /// Do not use OK: for a client, a unary call that ends with OK but without a message has
    /// failed.
    pub fn cancel_with_status(&self, status: Status) -> bool {
        self.end_with(CancelReason::Server, Some(status))
    }

    /// Propagates this call's remaining time and its cancellation to an outgoing call that its
    /// handler makes.
    ///
    /// - The request's `grpc-timeout` becomes the remaining time, less the layer's
    ///   [margin](crate::CallContextLayer::outgoing_margin), unless the request already has a
    ///   shorter one. If this call has no deadline, the header stays as it is.
    /// - An outgoing call made through [`Call`](crate::Call) or
    ///   [`StreamingCall`](crate::StreamingCall) is cancelled as soon as this one is asked to stop
    ///   or ends, regardless of which task holds the handle. If no time is left, the outgoing call
    ///   ends with DEADLINE_EXCEEDED and is not sent.
    ///
    /// With a plain tonic client, the outgoing call is cancelled only when it is dropped. When this
    /// call ends, the outgoing call is dropped together with the handler's future or stream. It is
    /// not dropped if it was moved to a separate task, or while this call is only asked to stop. If
    /// no time is left, it is sent with a timeout of zero. Then tonic reports CANCELLED or the
    /// other server reports DEADLINE_EXCEEDED, whichever is first. This call ends within the margin
    /// anyway.
    ///
    /// ```
    /// # use tonic::{Request, Response, Status, transport::Channel};
    /// # use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
    /// # use tonic_health::pb::health_client::HealthClient;
    /// use tonic_cancel::{Call, CallContext, CallOptions};
    ///
    /// async fn forward(
    ///     mut next: HealthClient<Channel>,
    ///     request: Request<HealthCheckRequest>,
    /// ) -> Result<Response<HealthCheckResponse>, Status> {
    ///     let context = CallContext::of(&request);
    ///     let onward = context.outgoing(Request::new(request.into_inner()));
    ///     let options = CallOptions::new();
    ///     Call::start(onward, options, |onward| async move { next.check(onward).await }).await
    /// }
    /// ```
    #[must_use]
    pub fn outgoing<T>(&self, mut request: Request<T>) -> Request<T> {
        let Terms { deadline, margin } = self.shared.terms;
        let now = Instant::now();
        let deadline = deadline.map(|at| at.checked_sub(margin).unwrap_or(now));
        if let Some(deadline) = deadline {
            let left = deadline.saturating_duration_since(now);
            // A malformed timeout counts as none.
            let own = timeout::parse(request.metadata().as_ref()).ok().flatten();
            let left = own.map_or(left, |own| own.min(left));
            timeout::write(request.metadata_mut().as_mut(), left);
        }
        #[cfg(feature = "client")]
        request.extensions_mut().insert(self.parent(deadline));
        request
    }

    /// Returns the link through which an outgoing call is cancelled with this one.
    #[cfg(feature = "client")]
    fn parent(&self, deadline: Option<Instant>) -> Parent {
        let context = self.clone();
        Parent::new(deadline, move || {
            let context = context.clone();
            async move {
                let reason = context.cancelled().await;
                reason.map(|reason| reason.to_string())
            }
        })
    }

    /// Asks the work to stop and lets the handler answer; returns whether this changed the state.
    pub(crate) fn announce(&self, reason: CancelReason) -> bool {
        self.state().announce(reason)
    }

    /// Asks the work to stop, and ends the call as soon as its handler has nothing to send
    /// immediately.
    pub(crate) fn part(&self, reason: CancelReason, status: Status) {
        self.state().part(reason, status);
    }

    /// Ends the call if [`part`](Self::part) was called, and returns whether it did. Call this when
    /// the handler has nothing to send.
    pub(crate) fn end_if_parting(&self) -> bool {
        let is_stopping = self.state().stop_flag().is_requested();
        let status = is_stopping.then(|| self.state().take_parting()).flatten();
        status.is_some_and(|status| self.end_with(CancelReason::Drain, Some(status)))
    }

    /// Ends the call for `reason`, with `status`. Without a status, the client is gone, and nothing
    /// is sent.
    pub(crate) fn end_with(&self, reason: CancelReason, status: Option<Status>) -> bool {
        let code = status.as_ref().map_or(Code::Cancelled, Status::code);
        self.finish(code, Some(reason), status)
    }

    /// Ends the call with the code of the handler's own status. Returns `false` if it had already
    /// ended.
    pub(crate) fn complete(&self, code: Code) -> bool {
        self.finish(code, None, None)
    }

    /// Ends the call with UNKNOWN because its handler panicked.
    pub(crate) fn panicked(&self) {
        let status = Status::unknown("the handler of this call panicked");
        self.finish(status.code(), None, Some(status));
    }

    fn finish(&self, code: Code, reason: Option<CancelReason>, status: Option<Status>) -> bool {
        let ended = self.state().finish(code, reason, status);
        if ended && let Some(membership) = self.membership() {
            // Leave after the callbacks, so that all of them have run when the drain sees the last
            // call leave.
            membership.leave();
        }
        ended
    }

    /// Ends the call if its deadline has passed. The thread for deadlines does that, too, but a
    /// call that is polled after its deadline need not wait for it.
    pub(crate) fn check_deadline(&self) {
        if self.deadline().is_some_and(|at| at <= Instant::now()) {
            self.exceed_deadline();
        }
    }

    pub(crate) fn exceed_deadline(&self) {
        self.end_with(CancelReason::DeadlineExceeded, Some(past_deadline()));
    }

    /// Returns a status that says why the call was asked to stop or that it has ended.
    pub(crate) fn stopped(&self) -> Status {
        match self.cancel_reason() {
            Some(CancelReason::DeadlineExceeded) => past_deadline(),
            Some(CancelReason::Drain) => Status::unavailable("the server is shutting down"),
            Some(reason) => Status::cancelled(format!("the call was told to stop: {reason}")),
            None => Status::cancelled("the call has ended"),
        }
    }

    pub(crate) fn cut_requests(&self) {
        self.shared.requests_cut.store(true, Ordering::Release);
    }

    pub(crate) fn requests_were_cut(&self) -> bool {
        self.shared.requests_cut.load(Ordering::Acquire)
    }
}

impl fmt::Debug for CallContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallContext")
            .field("deadline", &self.deadline())
            .field("cancelled", &self.cancel_reason())
            .field("end", &self.end())
            .finish()
    }
}

fn past_deadline() -> Status {
    Status::deadline_exceeded("the call's deadline passed")
}

/// Waits for a moment of a call. Dropping the future deregisters its waker.
pub(crate) struct Waiting {
    context: CallContext,
    moment: Moment,
    key: Option<usize>,
}

impl Waiting {
    pub(crate) fn new(context: CallContext, moment: Moment) -> Waiting {
        Waiting {
            context,
            moment,
            key: None,
        }
    }

    pub(crate) fn context(&self) -> &CallContext {
        &self.context
    }
}

impl Future for Waiting {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Waiting {
            context,
            moment,
            key,
        } = &mut *self;
        context.state().poll(*moment, key, cx)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.context.state().forget(self.moment, self.key.take());
    }
}

#[cfg(all(test, not(loom)))]
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
        let context = CallContext::alone();
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
    fn a_callback_registered_after_the_end_runs_at_once() {
        let context = CallContext::alone();
        context.complete(Code::Ok);
        let (sender, receiver) = mpsc::channel();
        assert!(!context.add_callback(move |end| sender.send(end).unwrap()));
        assert_eq!(receiver.recv().unwrap().code, Code::Ok);
    }

    #[test]
    fn a_callback_may_panic_cancel_and_register() {
        let context = CallContext::alone();
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
        let context = CallContext::alone();
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
            let context = CallContext::alone();
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
