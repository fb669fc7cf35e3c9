//! Request messages, up to their end or to the point where they were cut off.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_core::Stream;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::{Status, Streaming};

use super::{
    context::{CallContext, Waiting},
    state::Moment,
};

pin_project! {
    /// The body of a request. Marks the call's context if the body is cut off.
    pub(crate) struct RequestBody<B> {
        #[pin]
        inner: B,
        context: CallContext,
        // Whether the body can be cut off without an error. After such a cut, `is_end_stream` is
        // `false`.
        marks_its_end: bool,
    }
}

impl<B> RequestBody<B> {
    pub(crate) fn new(inner: B, version: Version, context: CallContext) -> RequestBody<B> {
        RequestBody {
            inner,
            context,
            // HTTP/1 always reports a cut as an error.
            marks_its_end: version == Version::HTTP_2,
        }
    }
}

impl<B: Body<Data = Bytes>> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        let cut = match &frame {
            Some(Ok(_)) => false,
            Some(Err(_)) => true,
            // A stream that was reset without an error also ends with `None`.
            None => *this.marks_its_end && !this.inner.is_end_stream(),
        };
        if cut {
            this.context.cut_requests();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl CallContext {
    /// Returns the client's messages as a stream that ends without an error only if the client
    /// ended it.
    ///
    /// tonic's own stream ends in the same way when the client has sent everything and when the
    /// client has gone away. Code that needs the complete stream must know the difference,
    /// especially a task that outlives the handler.
    ///
    /// ```
    /// use tonic::{Request, Response, Status, Streaming};
    /// use tonic_cancel::CallContext;
    ///
    /// async fn upload(request: Request<Streaming<String>>) -> Result<Response<u64>, Status> {
    ///     let context = CallContext::of(&request);
    ///     let mut lines = context.requests(request.into_inner());
    ///     let stored = tokio::spawn(async move {
    ///         let mut count = 0;
    ///         while let Some(_line) = lines.message().await? {
    ///             count += 1;
    ///         }
    ///         // The stream is complete: a cut is an error above.
    ///         Ok::<u64, Status>(count)
    ///     });
    ///     Ok(Response::new(stored.await.map_err(|e| Status::internal(e.to_string()))??))
    /// }
    /// ```
    pub fn requests<T>(&self, messages: Streaming<T>) -> Requests<T> {
        Requests {
            messages,
            ended: Waiting::new(self.clone(), Moment::End),
            over: false,
        }
    }
}

/// The client's messages, from [`CallContext::requests`]. This is also a stream.
///
/// After the last message that has arrived, [`message`](Self::message) returns `None` if the client
/// ended its stream, and otherwise an error:
///
/// - CANCELLED if the messages were cut off, or if the call ended before them because its handler
///   returned or it was cancelled
/// - DEADLINE_EXCEEDED if the call ended by its deadline
/// - UNAVAILABLE if the call ended by a drain
///
/// After the error, it returns `None`.
///
/// Without a [`CallContextLayer`](crate::CallContextLayer) on the server, the difference is
/// unknown, and every end counts as the client's. If a layer outside of it uses bodies that do not
/// forward `is_end_stream`, every end over HTTP/2 counts as a cut.
pub struct Requests<T> {
    messages: Streaming<T>,
    ended: Waiting,
    over: bool,
}

impl<T> Requests<T> {
    /// Waits for the next message. Returns `None` when the client has ended its stream.
    ///
    /// Dropping the future loses no message.
    ///
    /// # Errors
    ///
    /// If the client did not end its stream, returns an error that says why the messages ended,
    /// once, and then `None`. A message that tonic cannot decode is also an error.
    pub async fn message(&mut self) -> Result<Option<T>, Status> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx))
            .await
            .transpose()
    }
}

impl<T> Stream for Requests<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(None);
        }
        let context = this.ended.context();
        let next = match Pin::new(&mut this.messages).poll_next(cx) {
            // An incomplete message or a connection error is a cut, too.
            Poll::Ready(None | Some(Err(_))) if context.requests_were_cut() => {
                Some(Err(Status::cancelled("the client's messages were cut off")))
            }
            Poll::Ready(next) => next,
            Poll::Pending => {
                // No further message has arrived yet. If the call has ended, none is needed, even
                // if the client has not ended its stream.
                ready!(Pin::new(&mut this.ended).poll(cx));
                Some(Err(this.ended.context().stopped()))
            }
        };
        this.over = !matches!(next, Some(Ok(_)));
        Poll::Ready(next)
    }
}

impl<T> fmt::Debug for Requests<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests")
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}
