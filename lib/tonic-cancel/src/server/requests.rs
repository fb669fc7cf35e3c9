//! What the client sends, to its end or to where it was cut.

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
    /// The body of a request with a context, which is told if it breaks off.
    pub(crate) struct RequestBody<B> {
        #[pin]
        inner: B,
        context: CallContext,
        // Whether the protocol tells an end apart from a cut, without an error.
        marks_its_end: bool,
    }
}

impl<B> RequestBody<B> {
    pub(crate) fn new(inner: B, version: Version, context: CallContext) -> RequestBody<B> {
        RequestBody {
            inner,
            context,
            // HTTP/1 has an error for it.
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
            // A stream that is reset without an error ends like this too.
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
    /// The client's messages, which end well only if the client said that there are no more.
    ///
    /// tonic's own stream ends in the same way when the client has sent everything and when it has
    /// gone away. Whoever acts on the whole, a task that outlives the handler above all, must know
    /// which it was.
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
    ///         // All of them: what was cut off has not come here.
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

/// The client's messages, from [`CallContext::requests`]; also a stream.
///
/// After the messages that have arrived comes `None` where the client ended them, and otherwise an
/// error: CANCELLED where they were cut off, or where the call has ended without them, by its
/// handler or because it was cancelled; DEADLINE_EXCEEDED and UNAVAILABLE where it ended by its
/// deadline and by a drain. After the error comes `None`.
///
/// Without a [`CallContextLayer`](crate::CallContextLayer) on the server the difference cannot be known, and
/// every end reads as the client's. With a layer around it whose bodies do not pass `is_end_stream` on,
/// every end over HTTP/2 reads as a cut.
pub struct Requests<T> {
    messages: Streaming<T>,
    ended: Waiting,
    over: bool,
}

impl<T> Requests<T> {
    /// Waits for the next message; `None` is the end that the client gave.
    ///
    /// Dropping the future loses no message.
    ///
    /// # Errors
    ///
    /// Why there are no more messages, if the client did not end them, once; then `None`. What
    /// tonic cannot read is an error of its own.
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
            // Half a message, or whatever the connection died of, is a cut too.
            Poll::Ready(None | Some(Err(_))) if context.requests_were_cut() => {
                Some(Err(Status::cancelled("the client's messages were cut off")))
            }
            Poll::Ready(next) => next,
            Poll::Pending => {
                // Nobody waits for the client's messages any more, and it need not know.
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
