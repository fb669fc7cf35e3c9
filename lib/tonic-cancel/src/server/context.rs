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

/// One call, as its handler sees it; clones are the same call.
///
/// A call is *active*, then perhaps *told to stop* while its handler may still answer (a drain does
/// that), then *ended*, once and for good. Everything here works from any thread.
#[derive(Clone)]
pub struct CallContext {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    terms: Terms,
    state: Lifecycle,
    /// Whether the client's messages broke off before their end.
    requests_cut: AtomicBool,
    /// There if a drain counts the call.
    membership: Option<Membership>,
}

/// What a call is held to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) deadline: Option<Instant>,
    /// By how much the calls that the handler makes must be over before this one.
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
    /// The context of the call that a request belongs to.
    ///
    /// Without a [`CallContextLayer`](crate::CallContextLayer) on the server there is none to be
    /// found, and this gives one that is never cancelled and has no deadline, so that a handler
    /// need not care, and works in tests that call it directly.
    #[must_use]
    pub fn of<T>(request: &Request<T>) -> CallContext {
        let context = request.extensions().get::<CallContext>();
        context.cloned().unwrap_or_else(CallContext::alone)
    }

    /// A context that no drain knows, without a deadline.
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

    /// Whether the call has not ended. A call that was told to stop is active until it does.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.end().is_none()
    }

    /// Whether the call was told to stop, for whichever reason.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancel_reason().is_some()
    }

    /// Why the call was told to stop, if it was.
    #[must_use]
    pub fn cancel_reason(&self) -> Option<CancelReason> {
        self.state().reason()
    }

    /// How the call ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<CallEnd> {
        self.state().end()
    }

    /// When the whole call, a stream's last message included, must be over.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.shared.terms.deadline
    }

    /// How much time is left until the deadline: zero after it, `None` without one.
    #[must_use]
    pub fn time_remaining(&self) -> Option<Duration> {
        let deadline = self.deadline()?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    /// What threads that work for the call look at. It is requested when the call is told to stop
    /// and when it ends in any way.
    #[must_use]
    pub fn stop_flag(&self) -> StopFlag {
        self.state().stop_flag().clone()
    }

    /// A token that is cancelled when the call is told to stop and when it ends in any way, for
    /// libraries that understand tokens. Cancelling it does nothing to the call.
    ///
    /// A loop that does little in each turn is better off with a [`StopFlag`]: asking a token takes
    /// a lock.
    #[must_use]
    pub fn child_token(&self) -> CancellationToken {
        self.state().child_token()
    }

    /// Registers what is to be done when the call ends, and says whether it is still to come.
    ///
    /// It runs exactly once, however the call ends: at once, on this thread, if it already has
    /// (then this returns `false`), and otherwise on the thread that ends it. Callbacks run in the
    /// order of their registration, outside of every lock; one that panics harms no other. They should
    /// be quick: whatever ends the call waits for them, at a deadline the thread that ends them all.
    pub fn add_callback(&self, callback: impl FnOnce(CallEnd) + Send + 'static) -> bool {
        self.state().add_callback(Box::new(callback))
    }

    /// Waits until the call is told to stop and gives the reason, or until it ends of itself, and
    /// then gives `None`.
    ///
    /// Dropping the future has no effect on the call.
    pub async fn cancelled(&self) -> Option<CancelReason> {
        Waiting::new(self.clone(), Moment::Stop).await;
        self.cancel_reason()
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

    /// Hands what is left of this call's time, and its cancellation, on to a call that its handler
    /// makes.
    ///
    /// - The request's `grpc-timeout` becomes the time that remains, less the layer's
    ///   [margin](crate::CallContextLayer::outgoing_margin), unless the request already has a
    ///   shorter one. Without a deadline it stays as it is.
    /// - Made through [`Call`](crate::Call) or [`StreamingCall`](crate::StreamingCall), the outgoing
    ///   call is cancelled as soon as this one is told to stop or ends, whoever holds its handle. If
    ///   no time is left it ends with DEADLINE_EXCEEDED and is not sent.
    ///
    /// With a client of tonic's alone the outgoing call is cancelled only by being dropped, as it is
    /// with the handler's future or stream when this call ends; not one that was moved to a task of
    /// its own, and not yet where this call was only told to stop. If no time is left such a call is
    /// sent with a timeout of nothing, and tonic reports it as CANCELLED, or its server as
    /// DEADLINE_EXCEEDED, whichever is first; the handler's own call ends within the margin anyway.
    ///
    /// ```
    /// # use tonic::{Request, Response, Status, transport::Channel};
    /// # use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};
    /// use tonic_cancel::{Call, CallContext, CallOptions};
    ///
    /// async fn forward(
    ///     mut next: HealthClient<Channel>,
    ///     request: Request<HealthCheckRequest>,
    /// ) -> Result<Response<HealthCheckResponse>, Status> {
    ///     let context = CallContext::of(&request);
    ///     let onward = context.outgoing(Request::new(request.into_inner()));
    ///     Call::start(onward, CallOptions::new(), |onward| async move { next.check(onward).await }).await
    /// }
    /// ```
    #[must_use]
    pub fn outgoing<T>(&self, mut request: Request<T>) -> Request<T> {
        let Terms { deadline, margin } = self.shared.terms;
        let now = Instant::now();
        let deadline = deadline.map(|at| at.checked_sub(margin).unwrap_or(now));
        if let Some(deadline) = deadline {
            let left = deadline.saturating_duration_since(now);
            // One that cannot be read is none.
            let own = timeout::parse(request.metadata().as_ref()).ok().flatten();
            let left = own.map_or(left, |own| own.min(left));
            timeout::write(request.metadata_mut().as_mut(), left);
        }
        #[cfg(feature = "client")]
        request.extensions_mut().insert(self.parent(deadline));
        request
    }

    /// What an outgoing call learns of this one.
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

    /// Tells the work to stop and lets the handler answer; says whether that was news.
    pub(crate) fn announce(&self, reason: CancelReason) -> bool {
        self.state().announce(reason)
    }

    /// Tells the work to stop, and ends the call as soon as its handler has nothing to say.
    pub(crate) fn part(&self, reason: CancelReason, status: Status) {
        self.state().part(reason, status);
    }

    /// Ends the call if that is what it waits for: its handler has nothing to say now.
    pub(crate) fn is_parting(&self) -> bool {
        let is_told = self.state().stop_flag().is_requested();
        let status = is_told.then(|| self.state().take_parting()).flatten();
        status.is_some_and(|status| self.end_with(CancelReason::Drain, Some(status)))
    }

    /// Ends the call for a reason of its own. Without a status there is nobody to send it to.
    pub(crate) fn end_with(&self, reason: CancelReason, status: Option<Status>) -> bool {
        let code = status.as_ref().map_or(Code::Cancelled, Status::code);
        self.finish(code, Some(reason), status)
    }

    /// Ends the call with the handler's own answer.
    pub(crate) fn complete(&self, code: Code) -> bool {
        self.finish(code, None, None)
    }

    /// Ends the call because its handler panicked.
    pub(crate) fn panicked(&self) {
        let status = Status::unknown("the handler of this call panicked");
        self.finish(status.code(), None, Some(status));
    }

    fn finish(&self, code: Code, reason: Option<CancelReason>, status: Option<Status>) -> bool {
        let ended = self.state().finish(code, reason, status);
        if ended && let Some(membership) = self.membership() {
            // After the callbacks, so that whoever waits for the last call finds them done.
            membership.leave();
        }
        ended
    }

    /// Ends the call if its deadline has passed. The thread for deadlines does that too, but a call
    /// that is being polled need not wait for it.
    pub(crate) fn check_deadline(&self) {
        if self.deadline().is_some_and(|at| at <= Instant::now()) {
            self.exceed_deadline();
        }
    }

    pub(crate) fn exceed_deadline(&self) {
        self.end_with(CancelReason::DeadlineExceeded, Some(past_deadline()));
    }

    /// What tells a handler, or the client, that the call was told to stop, or has ended.
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

/// Waits for a moment of a call; leaves nothing behind in it when dropped.
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
    fn a_callback_registered_after_the_end_runs_at_once_and_says_so() {
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
