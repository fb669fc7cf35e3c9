//! How a layer goes with a call: it may refuse it, and else sees what passes, to the last frame.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

/// What a body says when it is asked for its next frame.
pub(crate) type Polled<D, E> = Poll<Option<Result<Frame<D>, E>>>;

/// What a layer has to do with a call. It is dropped with the body that it goes with: one of an answer is
/// there until the last of it was sent, or until nobody is there any more to read it.
pub(crate) trait Escort<D, E> {
    /// The answer begins.
    fn head(&mut self, _status: StatusCode, _headers: &mut HeaderMap) {}

    /// The body was asked for its next frame; whoever asks gets what comes back.
    fn frame(&mut self, _cx: &mut Context<'_>, polled: Polled<D, E>) -> Polled<D, E> {
        polled
    }

    /// Whether a reader has to read to the end even of a body that is known to have ended, so that the escort
    /// sees the end.
    fn sees_end(&self) -> bool {
        false
    }
}

pin_project! {
    /// A body with whoever goes with it.
    pub(crate) struct Escorted<B, W> {
        // None has nothing in it, and nobody goes with it.
        #[pin]
        inner: Option<B>,
        escort: Option<W>,
    }
}

impl<B, W> Escorted<B, W> {
    pub(crate) fn new(inner: B, escort: W) -> Escorted<B, W> {
        Escorted {
            inner: Some(inner),
            escort: Some(escort),
        }
    }
}

impl<B, W> Body for Escorted<B, W>
where
    B: Body,
    W: Escort<B::Data, B::Error>,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled<B::Data, B::Error> {
        let this = self.project();
        let (Some(inner), Some(escort)) = (this.inner.as_pin_mut(), this.escort) else {
            return Poll::Ready(None);
        };
        let polled = inner.poll_frame(cx);
        escort.frame(cx, polled)
    }

    fn is_end_stream(&self) -> bool {
        let skips_end = self.escort.as_ref().is_none_or(|escort| !escort.sees_end());
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
    /// The answer to a call that a layer let pass, or refused.
    #[project = PassageProjection]
    pub(crate) enum Passage<F, W> {
        Open {
            #[pin]
            answer: F,
            // Until the answer begins.
            escort: Option<W>,
        },
        Closed {
            refusal: Response<()>,
        },
    }
}

impl<F, W> Passage<F, W> {
    pub(crate) fn open(answer: F, escort: W) -> Passage<F, W> {
        Passage::Open {
            answer,
            escort: Some(escort),
        }
    }

    /// Nobody behind the layer has seen the call.
    pub(crate) fn closed(refusal: Response<()>) -> Passage<F, W> {
        Passage::Closed { refusal }
    }
}

impl<F, W, B> Future for Passage<F, W>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
    B: Body,
    W: Escort<B::Data, B::Error>,
{
    type Output = Result<Response<Escorted<B, W>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(match self.project() {
            PassageProjection::Open { answer, escort } => {
                let (mut head, body) = ready!(answer.poll(cx))?.into_parts();
                let mut escort = escort.take();
                if let Some(escort) = &mut escort {
                    escort.head(head.status, &mut head.headers);
                }
                let inner = Some(body);
                Response::from_parts(head, Escorted { inner, escort })
            }
            PassageProjection::Closed { refusal } => std::mem::take(refusal).map(|()| Escorted {
                inner: None,
                escort: None,
            }),
        }))
    }
}
