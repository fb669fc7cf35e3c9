//! The tower layer that gives every call its context, and ends the call when its context has ended.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::{Code, Status};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    context::{CallContext, Terms},
    deadlines::{self, Watched},
    drain::Drain,
    policy::DeadlinePolicy,
    requests::RequestBody,
    state::CancelReason,
};
use crate::timeout;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Puts a [`CallContext`] into every request, and enforces it.
///
/// - The client's `grpc-timeout` applies to the whole call, including streams, and ends it with
///   DEADLINE_EXCEEDED. A call with a malformed timeout is rejected with INVALID_ARGUMENT. A
///   [`DeadlinePolicy`] can add further limits.
/// - A handler that panics, before its response or in its stream, ends only its own call, with
///   UNKNOWN.
/// - While the [`Drain`] is closed, calls are rejected before their handler runs.
///
/// Add it to a whole server (`tonic::transport::Server::layer`) or to single services, but only
/// once on the path to each service. A separate thread enforces deadlines, so they hold even if a
/// handler blocks the runtime's threads.
///
/// If an outer layer drops a call, for example on a timeout, this layer reports that the client is
/// gone. For a time limit, use a [`DeadlinePolicy`] instead of tonic's `Server::timeout`.
///
/// This layer supports only gRPC, so a layer that translates from another protocol must be outside
/// of it. For gRPC-Web:
/// `Server::builder().accept_http1(true).layer(GrpcWebLayer::new()).layer(CallContextLayer::new())`
#[derive(Clone, Debug, Default)]
pub struct CallContextLayer {
    drain: Drain,
    rules: Rules,
}

#[derive(Clone, Copy, Debug)]
struct Rules {
    deadlines: DeadlinePolicy,
    margin: Duration,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            deadlines: DeadlinePolicy::new(),
            margin: CallContextLayer::OUTGOING_MARGIN,
        }
    }
}

impl CallContextLayer {
    /// Default time by which outgoing calls must end before the incoming one: long enough for the
    /// handler to receive an answer over a nearby network and turn it into its own, and too short
    /// to be noticed.
    pub const OUTGOING_MARGIN: Duration = Duration::from_millis(5);

    /// Creates a layer with a private drain, which no other code can close.
    #[must_use]
    pub fn new() -> CallContextLayer {
        CallContextLayer::default()
    }

    /// Creates a layer whose calls are tracked and ended by `drain`.
    #[must_use]
    pub fn with_drain(drain: Drain) -> CallContextLayer {
        CallContextLayer {
            drain,
            rules: Rules::default(),
        }
    }

    /// Sets the limits on how long calls may take.
    #[must_use]
    pub fn deadlines(mut self, policy: DeadlinePolicy) -> CallContextLayer {
        self.rules.deadlines = policy;
        self
    }

    /// Sets how long before its own deadline a handler's outgoing calls must end, so that it still
    /// has time to answer. It applies to calls made with [`CallContext::outgoing`].
    #[must_use]
    pub fn outgoing_margin(mut self, margin: Duration) -> CallContextLayer {
        self.rules.margin = margin;
        self
    }
}

impl<S> Layer<S> for CallContextLayer {
    type Service = CallContextService<S>;

    fn layer(&self, inner: S) -> CallContextService<S> {
        CallContextService {
            inner,
            drain: self.drain.clone(),
            rules: self.rules,
        }
    }
}

/// Service that puts a [`CallContext`] into every request; see [`CallContextLayer`].
#[derive(Clone, Debug)]
pub struct CallContextService<S> {
    inner: S,
    drain: Drain,
    rules: Rules,
}

impl<S> CallContextService<S> {
    /// Creates the context of a new call. If the call is rejected, it has already ended.
    fn begin(&self, headers: &HeaderMap) -> Guard {
        let timeout = timeout::parse(headers).and_then(|asked| self.rules.deadlines.allow(asked));
        let timeout = match timeout {
            Ok(timeout) => timeout,
            Err(status) => {
                let context = CallContext::alone();
                context.end_with(CancelReason::Server, Some(status));
                return Guard::new(context);
            }
        };
        // A timeout that overflows the clock counts as no deadline.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let context = self.drain.admit(Terms {
            deadline,
            margin: self.rules.margin,
        });
        let mut guard = Guard::new(context);
        if let Some(deadline) = deadline {
            match deadlines::watch(&guard.context, deadline) {
                Ok(watched) => guard.watched = Some(watched),
                Err(error) => {
                    // Without the thread, the deadline cannot be enforced, so the call is rejected.
                    let status =
                        Status::resource_exhausted(format!("no thread for deadlines: {error}"));
                    guard.context.end_with(CancelReason::Server, Some(status));
                }
            }
        }
        guard
    }
}

impl<S, ReqBody, ResBody> Service<http::Request<ReqBody>> for CallContextService<S>
where
    S: Service<http::Request<tonic::body::Body>, Response = http::Response<ResBody>>,
    ReqBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    ResBody: Body<Data = Bytes> + Send + 'static,
{
    type Response = http::Response<CallBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<ReqBody>) -> Self::Future {
        let guard = self.begin(request.headers());
        let mut inner = None;
        if guard.context.is_active() {
            let version = request.version();
            let mut request = request.map(|body| {
                let context = guard.context.clone();
                tonic::body::Body::new(RequestBody::new(body, version, context))
            });
            request.extensions_mut().insert(guard.context.clone());
            match catch_unwind(AssertUnwindSafe(|| self.inner.call(request))) {
                Ok(future) => inner = Some(future),
                Err(_) => guard.context.panicked(),
            }
        }
        ResponseFuture {
            inner,
            guard: Some(guard),
        }
    }
}

/// Lives as long as the call does on the wire. If it is dropped before the call has ended, the
/// client is gone, or an outer layer has dropped the call. The two cannot be distinguished.
struct Guard {
    context: CallContext,
    /// The entry in the deadline queue, held until the call has ended.
    watched: Option<Watched>,
}

impl Guard {
    fn new(context: CallContext) -> Guard {
        Guard {
            context,
            watched: None,
        }
    }

    /// Ends the call with the code of the handler's answer. If the call has already ended in
    /// another way, returns as `Err` the status to send instead.
    fn complete(self, code: Code, cx: &Context<'_>) -> Result<(), Status> {
        if !self.context.complete(code)
            && let Poll::Ready(status) = self.context.state().poll_status(cx)
        {
            return Err(status);
        }
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.watched = None;
        self.context.end_with(CancelReason::ClientGone, None);
    }
}

pin_project! {
    /// Future of the response to a call with a context.
    ///
    /// Dropping it before it is ready ends the call with
    /// [`CancelReason::ClientGone`](crate::CancelReason::ClientGone).
    pub struct ResponseFuture<F> {
        #[pin]
        inner: Option<F>,
        // Present until the response is ready.
        guard: Option<Guard>,
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<http::Response<B>, E>>,
    B: Body<Data = Bytes> + Send + 'static,
{
    type Output = Result<http::Response<CallBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let guard = this.guard.take().expect("polled after it was ready");
        // Check before polling the handler, so that a late answer is discarded. tonic's own timer,
        // which would answer CANCELLED, is polled after this future.
        guard.context.check_deadline();
        if let Poll::Ready(status) = guard.context.state().poll_status(cx) {
            this.inner.set(None);
            return Poll::Ready(Ok(status_only(&status)));
        }
        let response = this.inner.as_mut().as_pin_mut().map(|inner| {
            catch_unwind(AssertUnwindSafe(|| inner.poll(cx))).unwrap_or_else(|_| {
                // Wakes this task, which then sends the status.
                guard.context.panicked();
                Poll::Pending
            })
        });
        let Some(Poll::Ready(response)) = response else {
            if guard.context.end_if_parting()
                && let Poll::Ready(status) = guard.context.state().poll_status(cx)
            {
                this.inner.set(None);
                return Poll::Ready(Ok(status_only(&status)));
            }
            *this.guard = Some(guard);
            return Poll::Pending;
        };
        this.inner.set(None);
        let response = match response {
            Ok(response) => response,
            Err(error) => {
                // The inner service failed without returning a status.
                guard.context.complete(Code::Unknown);
                return Poll::Ready(Err(error));
            }
        };

        let (parts, body) = response.into_parts();
        // A status in the headers means that no body follows.
        let status = Status::from_header_map(&parts.headers);
        let guard = if status.is_some() || body.is_end_stream() {
            let code = status.map_or(Code::Unknown, |status| status.code());
            if let Err(status) = guard.complete(code, cx) {
                return Poll::Ready(Ok(status_only(&status)));
            }
            None
        } else {
            Some(guard)
        };
        let carried = Carried::new(body);
        if let Some(guard) = &guard {
            carried.drop_at_end(&guard.context);
        }
        let response = http::Response::from_parts(parts, CallBody { carried, guard });
        Poll::Ready(Ok(response))
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// Response body of a call with a context: the handler's body, until the call ends in another way.
///
/// Dropping it before its end ends the call with
/// [`CancelReason::ClientGone`].
pub struct CallBody<B> {
    carried: Carried<B>,
    /// Present until the call has ended.
    guard: Option<Guard>,
}

/// The handler's body, which is dropped when the call ends. If it were dropped only by the next
/// poll, a client that does not read would keep the body, with everything that it holds, as long as
/// the connection.
struct Carried<B>(Arc<Mutex<Option<Pin<Box<B>>>>>);

impl<B> Carried<B> {
    fn new(body: B) -> Carried<B> {
        Carried(Arc::new(Mutex::new(Some(Box::pin(body)))))
    }

    fn nothing() -> Carried<B> {
        Carried(Arc::new(Mutex::new(None)))
    }

    /// Drops the body when the call ends.
    fn drop_at_end(&self, context: &CallContext)
    where
        B: Send + 'static,
    {
        let carried = Arc::downgrade(&self.0);
        context.state().at_end(Box::new(move || {
            let body = carried.upgrade().and_then(|body| {
                // If the body is locked, `poll_frame` or `is_end_stream` is running. `poll_frame`
                // then checks whether the call has ended. After `is_end_stream`, the body stays
                // until the next poll.
                body.try_lock().ok().and_then(|mut body| body.take())
            });
            // Drop outside of the lock: the body is the handler's code.
            drop(body);
        }));
    }

    fn lock(&self) -> MutexGuard<'_, Option<Pin<Box<B>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_body(&self) {
        let body = self.lock().take();
        drop(body);
    }
}

impl<B> Body for CallBody<B>
where
    B: Body<Data = Bytes>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        if let Some(guard) = &this.guard {
            guard.context.check_deadline();
            if let Poll::Ready(status) = guard.context.state().poll_status(cx) {
                this.carried.drop_body();
                this.guard = None;
                return Poll::Ready(Some(Ok(trailers(&status))));
            }
        }
        let polled = {
            let mut carried = this.carried.lock();
            let Some(body) = carried.as_mut() else {
                return Poll::Ready(None);
            };
            let poll = AssertUnwindSafe(|| (body.as_mut().poll_frame(cx), body.is_end_stream()));
            catch_unwind(poll)
        };
        let (frame, is_end) = match (polled, &this.guard) {
            (Ok(polled), _) => polled,
            (Err(_), Some(guard)) => {
                // Drops the body and wakes this task, which then sends the status.
                guard.context.panicked();
                return Poll::Pending;
            }
            (Err(_), None) => (Poll::Ready(None), true),
        };
        if let Some(guard) = &this.guard
            && guard.context.state().stop_flag().is_requested()
            && !guard.context.is_active()
        {
            // The call was ended while the body was locked.
            this.carried.drop_body();
        }
        if frame.is_pending()
            && let Some(guard) = &this.guard
            && guard.context.end_if_parting()
            && let Poll::Ready(status) = guard.context.state().poll_status(cx)
        {
            this.guard = None;
            return Poll::Ready(Some(Ok(trailers(&status))));
        }
        let frame = ready!(frame);
        let last = match &frame {
            Some(Ok(frame)) => match frame.trailers_ref() {
                Some(trailers) => Some(Status::from_header_map(trailers)),
                None => is_end.then_some(None),
            },
            Some(Err(_)) | None => Some(None),
        };
        if let Some(status) = last
            && let Some(guard) = this.guard.take()
        {
            let code = status.map_or(Code::Unknown, |status| status.code());
            if let Err(status) = guard.complete(code, cx) {
                this.carried.drop_body();
                return Poll::Ready(Some(Ok(trailers(&status))));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        // While there is a guard, at least a status will follow.
        let body = self.carried.lock();
        self.guard.is_none() && body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        // A status may replace the rest of the handler's body.
        SizeHint::default()
    }
}

impl<B> fmt::Debug for CallBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallBody").finish_non_exhaustive()
    }
}

/// Returns a response that consists only of a status.
fn status_only<B>(status: &Status) -> http::Response<CallBody<B>> {
    let mut response = http::Response::new(CallBody {
        carried: Carried::nothing(),
        guard: None,
    });
    let content_type = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    add_status(response.headers_mut(), status);
    response
}

fn trailers(status: &Status) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    add_status(&mut trailers, status);
    Frame::trailers(trailers)
}

fn add_status(headers: &mut HeaderMap, status: &Status) {
    if status.add_header(headers).is_err() {
        // Some part of the status is not valid in a header. The code always is.
        let code = HeaderValue::from(status.code() as i32);
        headers.insert("grpc-status", code);
    }
}
