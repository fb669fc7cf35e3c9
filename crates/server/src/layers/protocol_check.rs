//! Checks that a request is valid gRPC before tonic sees it, and explains rejections by tonic that
//! have no message.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use hashfinder_transport::Peer;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, uri::PathAndQuery};
use tokio::time::{Sleep, sleep};
use tonic::{Code, Status, body::Body};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    call_info::{CallInfo, MethodName},
    errors::{CallError, MESSAGE_LEN, cut},
    layers::body_observer::{BodyObserver, LayerFuture, ObservedBody, Polled},
    metrics::Calls,
    rejections::Rejections,
    violation::Violation,
};

/// Maximum length of a message of a request, in bytes. The longest useful message resumes a search
/// from the cursor of the longest query that the module `query` accepts. A test of that module
/// checks that this message fits.
pub(crate) const MAX_MESSAGE_LEN: u32 = 4096;

/// Maximum number of messages of a request to a method that takes several. Each of them gets a
/// response. A client that lists the services by reflection needs a dozen.
const MAX_MESSAGES: usize = 100;

/// Maximum number of bytes of an unknown method's path in the message about it. Paths of real
/// methods are shorter.
const PATH_LEN: usize = 200;

/// Maximum number of header fields of a request. The limit on their total length would allow five
/// times this number, which would take 80 kB until the request has arrived completely. Clients send
/// about ten, and proxies add a few.
const MAX_FIELDS: usize = 100;

/// The five bytes before each message: whether it is compressed, and its length, big-endian
/// (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX_LEN: usize = 5;

/// Value of the `server` header of every response. In a packet capture, it shows which server sent
/// the response.
const SERVER_NAME: &str = "hashfinder";

/// Header fields of a response: the code of its status, and the message and the details of that
/// status.
const STATUS: &str = "grpc-status";
const STATUS_MESSAGE: &str = "grpc-message";
const STATUS_DETAILS: &str = "grpc-status-details-bin";

/// Passes on gRPC requests that arrive in time, and names the server in every response.
///
/// Requests that are not gRPC or have too many headers are rejected with an HTTP status. A message
/// that is too long is rejected as soon as its prefix announces the length, with
/// RESOURCE_EXHAUSTED, as gRPC demands. A request that is not complete in time is rejected with
/// DEADLINE_EXCEEDED. The status for an unknown method gets a message.
///
/// The layer also counts and logs calls that libraries reject after it, before any handler runs. If
/// a method takes one message and a library cannot read it, the layer replaces the library's
/// INTERNAL with INVALID_ARGUMENT: INTERNAL is for the server's own failures. No status message is
/// longer than [`MESSAGE_LEN`].
#[derive(Clone)]
pub(crate) struct ProtocolCheckLayer(Arc<Shared>);

struct Shared {
    calls: Calls,
    rejections: Rejections,
    /// Maximum time for a whole request to arrive; if the method takes several messages, for the
    /// first of them.
    request_timeout: Duration,
}

impl ProtocolCheckLayer {
    pub(crate) fn new(
        calls: Calls,
        rejections: Rejections,
        request_timeout: Duration,
    ) -> ProtocolCheckLayer {
        ProtocolCheckLayer(Arc::new(Shared {
            calls,
            rejections,
            request_timeout,
        }))
    }
}

impl<S> Layer<S> for ProtocolCheckLayer {
    type Service = ProtocolCheckService<S>;

    fn layer(&self, inner: S) -> ProtocolCheckService<S> {
        ProtocolCheckService {
            inner,
            shared: Arc::clone(&self.0),
        }
    }
}

#[derive(Clone)]
pub(crate) struct ProtocolCheckService<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S, B> Service<http::Request<Body>> for ProtocolCheckService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<B>, Error = Infallible>,
    B: http_body::Body,
{
    type Response = http::Response<ObservedBody<B, Answer>>;
    type Error = Infallible;
    type Future = LayerFuture<S::Future, Answer>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let info = CallInfo::of(request.extensions());
        let call = Arc::new(Call {
            shared: Arc::clone(&self.shared),
            path: request.uri().path_and_query().cloned(),
            method: info.method.clone(),
            peer: info.peer.clone(),
            cut_short: OnceLock::new(),
        });
        if let Some(rejection) = call.rejection(request.method(), request.headers()) {
            return LayerFuture::reject(rejection);
        }
        let request = request.map(|inner| {
            let arrival = Arrival {
                call: Arc::clone(&call),
                expected: Expected::default(),
                messages: 0,
                is_over: false,
                timeout: None,
            };
            Body::new(ObservedBody::new(inner, arrival))
        });
        LayerFuture::pass(self.inner.call(request), Answer(call))
    }
}

/// A call that this layer has received.
struct Call {
    shared: Arc<Shared>,
    path: Option<PathAndQuery>,
    method: MethodName,
    peer: Option<Peer>,
    /// Why the request was not read to its end, if it was not.
    cut_short: OnceLock<CutShort>,
}

/// Why a request was not read to its end.
enum CutShort {
    /// The server stopped reading it, and ends the call with this error.
    ByServer(CallError),
    /// The client reset the stream, or its connection ended.
    ByClient,
}

impl Call {
    fn path(&self) -> &str {
        self.path.as_ref().map_or("", PathAndQuery::path)
    }

    /// Returns the response to a request that is not gRPC or has too many headers. It has an HTTP
    /// status, because the client may not know gRPC's statuses (gRPC over HTTP/2, "Requests").
    fn rejection(&self, method: &Method, headers: &HeaderMap) -> Option<http::Response<()>> {
        let (why, code) = if method != Method::POST {
            (Violation::NotPost, StatusCode::METHOD_NOT_ALLOWED)
        } else if !headers.get(header::CONTENT_TYPE).is_some_and(is_grpc) {
            (Violation::NotGrpc, StatusCode::UNSUPPORTED_MEDIA_TYPE)
        } else if headers.len() > MAX_FIELDS {
            let code = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            (Violation::TooManyFields, code)
        } else {
            return None;
        };
        let shown = format_args!("HTTP {}", code.as_str());
        self.violation(why, shown);
        let mut rejection = http::Response::new(());
        *rejection.status_mut() = code;
        if code == StatusCode::METHOD_NOT_ALLOWED {
            let post = HeaderValue::from_static("POST");
            rejection.headers_mut().insert(header::ALLOW, post);
        }
        say_who_we_are(rejection.headers_mut());
        Some(rejection)
    }

    /// Counts and logs the violation.
    fn violation(&self, why: Violation, code: impl std::fmt::Debug) {
        let rejections = &self.shared.rejections;
        rejections.reject_violation(why, self.method.name(), self.peer.as_ref(), code);
    }

    /// Records, counts and logs that the server stops reading the request because of this error.
    /// Returns the status that ends the call.
    fn break_off(&self, error: CallError) -> Status {
        let rejections = &self.shared.rejections;
        // A handler may drop this status, as if the request had been read to its end. `Answer` then
        // sends the error.
        let _ = self.cut_short.set(CutShort::ByServer(error.clone()));
        rejections.reject(error, self.method.name(), self.peer.as_ref(), None)
    }
}

/// Whether this is gRPC's content type, with the only message encoding that the server supports.
fn is_grpc(content_type: &HeaderValue) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    const PROTO: &[u8] = b"+proto";
    fn without<'a>(text: &'a [u8], start: &[u8]) -> Option<&'a [u8]> {
        let (head, rest) = text.split_at_checked(start.len())?;
        head.eq_ignore_ascii_case(start).then_some(rest)
    }
    without(content_type.as_bytes(), GRPC).is_some_and(|rest| {
        let rest = without(rest, PROTO).unwrap_or(rest);
        rest.trim_ascii_start()
            .first()
            .is_none_or(|next| *next == b';')
    })
}

fn say_who_we_are(headers: &mut HeaderMap) {
    let name = HeaderValue::from_static(SERVER_NAME);
    headers.insert(header::SERVER, name);
}

/// Observes the response of a call.
pub(crate) struct Answer(Arc<Call>);

impl<D, E> BodyObserver<D, E> for Answer {
    fn head(&mut self, _status: StatusCode, headers: &mut HeaderMap) {
        if headers.contains_key(STATUS) {
            self.look_at(headers);
            shorten_message(headers);
        }
        say_who_we_are(headers);
    }

    fn frame(&mut self, _cx: &mut Context<'_>, mut polled: Polled<D, E>) -> Polled<D, E> {
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            if let Some(CutShort::ByServer(error)) = self.0.cut_short.get() {
                trailers.clear();
                // The server's own statuses are always valid headers.
                let _ = Status::from(error.clone()).add_header(trailers);
            }
            shorten_message(trailers);
        }
        polled
    }
}

impl Answer {
    /// Counts and explains a rejection by a library. Such a status has no details, unlike the
    /// server's own rejections.
    fn look_at(&self, headers: &mut HeaderMap) {
        if headers.contains_key(STATUS_DETAILS) {
            return;
        }
        let Some(status) = Status::from_header_map(headers) else {
            return;
        };
        if let Some(CutShort::ByClient) = self.0.cut_short.get() {
            // The library's status says that the server failed. The client no longer reads it.
            let _ = Status::cancelled("the client aborted the request").add_header(headers);
            return;
        }
        let (why, explained) = match status.code() {
            Code::Unimplemented if status.message().is_empty() => {
                let path = cut(self.0.path(), PATH_LEN);
                let explained = Status::unimplemented(format!(
                    "unknown method {path}; the server's reflection service lists its methods"
                ));
                (Violation::UnknownMethod, Some(explained))
            }
            Code::InvalidArgument => (Violation::BadTimeout, None),
            // The server does not know the request's compression.
            Code::Unimplemented => (Violation::Malformed, None),
            Code::Internal => {
                let message = format!("cannot read the request: {}", status.message());
                (
                    Violation::Malformed,
                    Some(Status::invalid_argument(message)),
                )
            }
            _ => return,
        };
        let code = explained.as_ref().map_or(status.code(), Status::code);
        if let Some(explained) = explained {
            // This cannot fail: the message is percent-encoded.
            let _ = explained.add_header(headers);
        }
        self.0.violation(why, code);
    }
}

/// Cuts a status message that is too long because a library quoted the request in it.
fn shorten_message(headers: &mut HeaderMap) {
    // The decoded message is never longer than the percent-encoded one.
    if (headers.get(STATUS_MESSAGE)).is_none_or(|message| message.len() <= MESSAGE_LEN) {
        return;
    }
    let Some(status) = Status::from_header_map(headers) else {
        return;
    };
    if status.message().len() > MESSAGE_LEN {
        let message = cut(status.message(), MESSAGE_LEN);
        let _ = Status::new(status.code(), message).add_header(headers);
    }
}

/// Observes the request of a call while it is read.
struct Arrival {
    call: Arc<Call>,
    expected: Expected,
    /// Number of messages that have arrived completely.
    messages: usize,
    /// Whether the timeout no longer applies.
    is_over: bool,
    /// Started when the server first has to wait for the request.
    timeout: Option<Pin<Box<Sleep>>>,
}

impl BodyObserver<Bytes, Status> for Arrival {
    fn frame(
        &mut self,
        cx: &mut Context<'_>,
        polled: Polled<Bytes, Status>,
    ) -> Polled<Bytes, Status> {
        let error = match &polled {
            Poll::Ready(Some(Ok(frame))) => match frame.data_ref() {
                Some(data) => self.read(data).err(),
                // Trailers end the request.
                None => self.end().err(),
            },
            Poll::Ready(Some(Err(_))) => {
                let _ = self.call.cut_short.set(CutShort::ByClient);
                None
            }
            Poll::Ready(None) => self.end().err(),
            Poll::Pending if self.is_over => None,
            Poll::Pending => Some(ready!(self.poll_timeout(cx))),
        };
        match error {
            Some(error) => Poll::Ready(Some(Err(self.call.break_off(error)))),
            None => polled,
        }
    }

    fn sees_end(&self) -> bool {
        true
    }
}

impl Arrival {
    /// Checks that the request has a message, unless its method takes several. tonic rejects a
    /// message that is cut off.
    fn end(&self) -> Result<(), CallError> {
        if self.messages == 0 && self.expected.is_new() && !self.takes_stream() {
            return Err(CallError::MessageMissing);
        }
        Ok(())
    }

    fn read(&mut self, data: &[u8]) -> Result<(), CallError> {
        self.messages += self.expected.read(data)?;
        // If a method takes one message, tonic reads until the client ends the request, so a second
        // message is rejected here.
        let limit = if self.messages > 1 && self.takes_stream() {
            MAX_MESSAGES
        } else {
            1
        };
        if self.messages > limit {
            return Err(CallError::TooManyMessages { limit });
        }
        Ok(())
    }

    fn takes_stream(&self) -> bool {
        self.call.shared.calls.takes_stream(self.call.path())
    }

    fn poll_timeout(&mut self, cx: &mut Context<'_>) -> Poll<CallError> {
        if self.messages > 0 && self.takes_stream() {
            self.is_over = true;
            self.timeout = None;
            return Poll::Pending;
        }
        let limit = self.call.shared.request_timeout;
        let timeout = self.timeout.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(timeout.as_mut().poll(cx));
        self.is_over = true;
        Poll::Ready(CallError::RequestTimeout { limit })
    }
}

/// The part of a request that its next byte belongs to.
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
    /// Whether no byte of the next message has been read.
    fn is_new(&self) -> bool {
        matches!(self, Expected::Prefix { seen: 0, .. })
    }

    /// Reads the next bytes. Returns how many messages end in them.
    fn read(&mut self, mut data: &[u8]) -> Result<usize, CallError> {
        let mut messages = 0;
        while data.has_remaining() {
            match self {
                Expected::Message { left } => {
                    let step = data.remaining().min(*left);
                    data.advance(step);
                    *left -= step;
                    if *left == 0 {
                        messages += 1;
                        *self = Expected::default();
                    }
                }
                Expected::Prefix { seen, length } => {
                    // The four bytes of the length shift out the first byte, the compression flag.
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
                        messages += 1;
                        *self = Expected::default();
                    } else {
                        *self = Expected::Message {
                            left: *length as usize,
                        };
                    }
                }
            }
        }
        Ok(messages)
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
    fn messages_are_counted_however_the_bytes_are_split() {
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
                    .try_fold(0, |sum, chunk| Ok(sum + expected.read(chunk)?));
                assert_eq!(read.is_ok(), fine, "{lengths:?} cut by {cut}");
                match read {
                    Ok(messages) => assert_eq!(messages, lengths.len()),
                    Err(error) => {
                        let status = Status::from(CallError::clone(&error));
                        assert_eq!(status.code(), Code::ResourceExhausted);
                    }
                }
            }
        }
    }

    #[test]
    fn only_grpc_content_types_are_accepted() {
        for (content_type, fine) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc+proto ; a=b", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/grpc+json", false),
            ("application/grpc+protobuf", false),
            ("application/grp", false),
            ("application/json", false),
            ("", false),
        ] {
            let value = HeaderValue::from_static(content_type);
            assert_eq!(is_grpc(&value), fine, "{content_type}");
        }
    }
}
