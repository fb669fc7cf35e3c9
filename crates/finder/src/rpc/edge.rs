//! What is settled before tonic sees a request, and said where tonic says nothing.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::{HeaderValue, header};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::{Code, Status, body::Body};
use tower_layer::Layer;
use tower_service::Service;

use super::status::CallError;
use crate::metrics::Counts;

/// The longest message of a request, in bytes. The longest that there is a reason for goes on from the
/// cursor of the longest query that `query` lets pass, which a test there sees to.
pub(super) const MAX_MESSAGE_LEN: u32 = 4096;

/// The five bytes before each message: whether it is compressed, and its length, big-endian
/// (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX_LEN: usize = 5;

/// What the `server` header of every response says, so that who reads a capture knows whose they are.
const SERVER_NAME: &str = "hashfinder";

/// Refuses messages that are too long as soon as they announce it, with RESOURCE_EXHAUSTED as gRPC
/// has it, gives UNIMPLEMENTED a message, and says who we are.
#[derive(Clone, Debug)]
pub(crate) struct EdgeLayer(pub(crate) Counts);

impl<S> Layer<S> for EdgeLayer {
    type Service = EdgeService<S>;

    fn layer(&self, inner: S) -> EdgeService<S> {
        EdgeService {
            inner,
            counts: self.0.clone(),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct EdgeService<S> {
    inner: S,
    counts: Counts,
}

impl<S, B> Service<http::Request<Body>> for EdgeService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = EdgeFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let request = request.map(|inner| {
            Body::new(LimitedBody {
                inner,
                expected: Expected::default(),
                counts: self.counts.clone(),
            })
        });
        EdgeFuture {
            inner: self.inner.call(request),
            path,
        }
    }
}

pin_project! {
    pub(crate) struct EdgeFuture<F> {
        #[pin]
        inner: F,
        path: String,
    }
}

impl<F, B, E> Future for EdgeFuture<F>
where
    F: Future<Output = Result<http::Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let mut response = ready!(this.inner.poll(cx))?;
        let silent = Status::from_header_map(response.headers())
            .is_some_and(|s| s.code() == Code::Unimplemented && s.message().is_empty());
        if silent {
            let status = Status::unimplemented(format!(
                "this server has no method {}; its reflection service lists what there is",
                this.path
            ));
            // If the path does not fit into a header, it stays without a message.
            let _ = status.add_header(response.headers_mut());
        }
        let name = HeaderValue::from_static(SERVER_NAME);
        response.headers_mut().insert(header::SERVER, name);
        Poll::Ready(Ok(response))
    }
}

/// What the next byte of a request is.
#[derive(Debug)]
enum Expected {
    Prefix { seen: usize, length: u32 },
    Message { left: usize },
}

impl Default for Expected {
    fn default() -> Expected {
        Expected::Prefix { seen: 0, length: 0 }
    }
}

impl Expected {
    fn read(&mut self, mut data: &[u8]) -> Result<(), CallError> {
        while data.has_remaining() {
            match self {
                Expected::Message { left } => {
                    let step = data.remaining().min(*left);
                    data.advance(step);
                    *left -= step;
                    if *left == 0 {
                        *self = Expected::default();
                    }
                }
                Expected::Prefix { seen, length } => {
                    // The first byte is shifted out by the four of the length.
                    *length = *length << 8 | u32::from(data.get_u8());
                    *seen += 1;
                    if *seen < PREFIX_LEN {
                        continue;
                    }
                    if *length > MAX_MESSAGE_LEN {
                        let (length, limit) = (*length, MAX_MESSAGE_LEN);
                        return Err(CallError::MessageTooLong { length, limit });
                    }
                    if *length == 0 {
                        *self = Expected::default();
                    } else {
                        *self = Expected::Message {
                            left: *length as usize,
                        };
                    }
                }
            }
        }
        Ok(())
    }
}

pin_project! {
    struct LimitedBody {
        #[pin]
        inner: Body,
        expected: Expected,
        counts: Counts,
    }
}

impl http_body::Body for LimitedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(error) = this.expected.read(data)
        {
            this.counts.refused(&error);
            return Poll::Ready(Some(Err(error.into())));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(length.to_be_bytes());
        bytes.extend(std::iter::repeat_n(7, length.min(10_000) as usize));
        bytes
    }

    #[test]
    fn lengths_however_the_bytes_are_cut() {
        for (lengths, fine) in [
            (&[][..], true),
            (&[0, 0, 5], true),
            (&[MAX_MESSAGE_LEN, MAX_MESSAGE_LEN], true),
            (&[MAX_MESSAGE_LEN + 1], false),
            (&[3, u32::MAX], false),
            (&[0, 100_000_000], false),
        ] {
            let bytes: Vec<u8> = lengths.iter().flat_map(|length| message(*length)).collect();
            for cut in [1, 2, 3, 5, 7, 4096, usize::MAX] {
                let mut expected = Expected::default();
                let read = bytes
                    .chunks(cut.min(bytes.len().max(1)))
                    .try_for_each(|chunk| expected.read(chunk));
                assert_eq!(read.is_ok(), fine, "{lengths:?} cut by {cut}");
                if let Err(error) = read {
                    let status = Status::from(error);
                    assert_eq!(status.code(), Code::ResourceExhausted);
                }
            }
        }
    }
}
