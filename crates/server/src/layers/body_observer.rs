//! Shared parts of layers: rejecting a call, and observing the body of a request or a response.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

/// What a body returns when it is polled for its next frame.
pub(crate) type Polled<D, E> = Poll<Option<Result<Frame<D>, E>>>;

/// Observes a body for a layer. It is dropped with the body. The body of a response lasts until it
/// has been sent completely or its reader is gone.
pub(crate) trait BodyObserver<D, E> {
    /// Called with the head of the response.
    fn head(&mut self, _status: StatusCode, _headers: &mut HeaderMap) {}

    /// Called with the result of each poll of the body. Returns the result that replaces it.
    fn frame(&mut self, _cx: &mut Context<'_>, polled: Polled<D, E>) -> Polled<D, E> {
        polled
    }

    /// Whether the observer has to see the end of the body. If so, [`Body::is_end_stream`] does not
    /// announce the end, so that the reader polls until the end.
    fn sees_end(&self) -> bool {
        false
    }
}

pin_project! {
    /// A body with its observer.
    pub(crate) struct ObservedBody<B, W> {
        // `None` for an empty body, which has no observer.
        #[pin]
        inner: Option<B>,
        observer: Option<W>,
    }
}

impl<B, W> ObservedBody<B, W> {
    pub(crate) fn new(inner: B, observer: W) -> ObservedBody<B, W> {
        ObservedBody {
            inner: Some(inner),
            observer: Some(observer),
        }
    }
}

impl<B, W> Body for ObservedBody<B, W>
where
    B: Body,
    W: BodyObserver<B::Data, B::Error>,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled<B::Data, B::Error> {
        let this = self.project();
        let (Some(inner), Some(observer)) = (this.inner.as_pin_mut(), this.observer) else {
            return Poll::Ready(None);
        };
        let polled = inner.poll_frame(cx);
        observer.frame(cx, polled)
    }

    fn is_end_stream(&self) -> bool {
        let skips_end = self
            .observer
            .as_ref()
            .is_none_or(|observer| !observer.sees_end());
        self.inner
            .as_ref()
            .is_none_or(|inner| skips_end && inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let nothing = || SizeHint::with_exact(0);
        self.inner.as_ref().map_or_else(nothing, Body::size_hint)
    }
}

pin_project! {
    /// The response to a call that a layer passed on or rejected.
    #[project = LayerFutureProjection]
    pub(crate) enum LayerFuture<F, W> {
        Passed {
            #[pin]
            response: F,
            // Present until the head of the response arrives.
            observer: Option<W>,
        },
        Rejected {
            rejection: Response<()>,
        },
    }
}

impl<F, W> LayerFuture<F, W> {
    pub(crate) fn pass(response: F, observer: W) -> LayerFuture<F, W> {
        LayerFuture::Passed {
            response,
            observer: Some(observer),
        }
    }

    /// Rejects the call with this response.
    pub(crate) fn reject(rejection: Response<()>) -> LayerFuture<F, W> {
        LayerFuture::Rejected { rejection }
    }
}

impl<F, W, B> Future for LayerFuture<F, W>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
    B: Body,
    W: BodyObserver<B::Data, B::Error>,
{
    type Output = Result<Response<ObservedBody<B, W>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(match self.project() {
            LayerFutureProjection::Passed { response, observer } => {
                let (mut head, body) = ready!(response.poll(cx))?.into_parts();
                let mut observer = observer.take();
                if let Some(observer) = &mut observer {
                    observer.head(head.status, &mut head.headers);
                }
                let inner = Some(body);
                Response::from_parts(head, ObservedBody { inner, observer })
            }
            LayerFutureProjection::Rejected { rejection } => {
                std::mem::take(rejection).map(|()| ObservedBody {
                    inner: None,
                    observer: None,
                })
            }
        }))
    }
}
