//! The metrics that gRPC servers usually have: calls by their methods, and how they ended.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use http::{HeaderMap, StatusCode};
use http_body::Body;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};
use prost::{DecodeError, Message};
use prost_types::{FileDescriptorSet, MethodDescriptorProto};
use tonic::Code;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    call_info::{CallInfo, MethodName},
    layers::body_observer::{BodyObserver, LayerFuture, ObservedBody, Polled},
    trace::{CallSpan, Traces},
};

/// The name of each status code, by its number, as gRPC's metrics commonly write it.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Bounds of the histogram of call durations, in seconds. Some calls end with the first thousand
/// secrets of their search, others search for hours.
const SECONDS: [f64; 13] = [
    0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 600.0, 3600.0,
];

/// Label for all methods that this server does not have. Clients choose the names of such methods,
/// so these do not become labels.
const UNKNOWN: &str = "unknown";

type OfMethod = [(&'static str, String); 3];
type OfEnd = [(&'static str, String); 4];

/// The calls of every method. Clones share the counts.
#[derive(Clone)]
pub(crate) struct Calls(Arc<Families>);

struct Families {
    started: Family<OfMethod, Counter>,
    handled: Family<OfEnd, Counter>,
    seconds: Family<OfMethod, Histogram, fn() -> Histogram>,
    /// The known methods, by their paths.
    methods: HashMap<String, Arc<Method>>,
    unknown: Arc<Method>,
}

/// The counters of one method. They exist from the start, so that the first call is seen as an
/// increase.
struct Method {
    name: MethodName,
    /// Whether clients may send it more than one message.
    takes_stream: bool,
    started: Counter,
    handled: [Counter; CODES.len()],
    seconds: Histogram,
}

impl Calls {
    /// Creates the counters for the services of these descriptors.
    ///
    /// # Errors
    ///
    /// If a descriptor is not a `google.protobuf.FileDescriptorSet`.
    pub(crate) fn new(descriptors: &[&[u8]]) -> Result<Calls, DecodeError> {
        let started = Family::default();
        let handled = Family::default();
        let seconds = Family::new_with_constructor((|| Histogram::new(SECONDS)) as fn() -> _);
        let method = |kind: &str, service: &str, name: &str| {
            let labels = [
                ("grpc_type", kind.to_owned()),
                ("grpc_service", service.to_owned()),
                ("grpc_method", name.to_owned()),
            ];
            let handled = CODES.map(|code| {
                let [kind, service, name] = labels.clone();
                let labels: OfEnd = [kind, service, name, ("grpc_code", code.to_owned())];
                Family::<OfEnd, Counter>::get_or_create_owned(&handled, &labels)
            });
            Arc::new(Method {
                name: MethodName::new(service, name),
                takes_stream: ["client_stream", "bidi_stream"].contains(&kind),
                started: Family::<OfMethod, Counter>::get_or_create_owned(&started, &labels),
                handled,
                seconds: seconds.get_or_create_owned(&labels),
            })
        };
        let mut methods = HashMap::new();
        for descriptors in descriptors {
            for file in FileDescriptorSet::decode(*descriptors)?.file {
                for service in &file.service {
                    let service_name = format!("{}.{}", file.package(), service.name());
                    for of_service in &service.method {
                        let name = of_service.name();
                        let counters = method(kind(of_service), &service_name, name);
                        methods.insert(format!("/{service_name}/{name}"), counters);
                    }
                }
            }
        }
        let unknown = method(UNKNOWN, UNKNOWN, UNKNOWN);
        Ok(Calls(Arc::new(Families {
            started,
            handled,
            seconds,
            methods,
            unknown,
        })))
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("grpc_server");
        registry.register("started", "Started calls", self.0.started.clone());
        registry.register(
            "handled",
            "Ended calls, by status code; Canceled if the client was gone",
            self.0.handled.clone(),
        );
        registry.register(
            "handling_seconds",
            "Duration of calls in seconds, from the request headers to the end of the response",
            self.0.seconds.clone(),
        );
    }

    /// Whether the method at this path takes more than one message.
    pub(crate) fn takes_stream(&self, path: &str) -> bool {
        (self.0.methods.get(path)).is_some_and(|method| method.takes_stream)
    }

    fn begin(&self, path: &str) -> Call {
        let method = self.0.methods.get(path).unwrap_or(&self.0.unknown);
        method.started.inc();
        Call {
            method: Arc::clone(method),
            began: Instant::now(),
            span: None,
            has_ended: false,
        }
    }
}

fn kind(method: &MethodDescriptorProto) -> &'static str {
    match (method.client_streaming(), method.server_streaming()) {
        (false, false) => "unary",
        (true, false) => "client_stream",
        (false, true) => "server_stream",
        (true, true) => "bidi_stream",
    }
}

/// An open call. If it is dropped before its end, it was cancelled.
pub(crate) struct Call {
    method: Arc<Method>,
    began: Instant,
    span: Option<CallSpan>,
    has_ended: bool,
}

impl Call {
    /// Counts the end of the call. Only the first end counts.
    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        self.method.handled[code as usize].inc();
        let took = self.began.elapsed().as_secs_f64();
        self.method.seconds.observe(took);
        if let Some(span) = self.span.take() {
            span.end(code);
        }
    }

    fn end_with_status_of(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get("grpc-status") {
            self.end(Code::from_bytes(code.as_bytes()));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// Counts all calls and, if there is a collector, traces them. It is the first layer, so it creates
/// the [`CallInfo`] of every call.
#[derive(Clone)]
pub(crate) struct CallsLayer {
    pub(crate) calls: Calls,
    pub(crate) traces: Option<Traces>,
}

impl<S> Layer<S> for CallsLayer {
    type Service = CallsService<S>;

    fn layer(&self, inner: S) -> CallsService<S> {
        CallsService {
            inner,
            layer: self.clone(),
        }
    }
}

#[derive(Clone)]
pub(crate) struct CallsService<S> {
    inner: S,
    layer: CallsLayer,
}

impl<S, A, B> Service<http::Request<A>> for CallsService<S>
where
    S: Service<http::Request<A>, Response = http::Response<B>, Error = Infallible>,
    B: Body,
{
    type Response = http::Response<ObservedBody<B, Call>>;
    type Error = Infallible;
    type Future = LayerFuture<S::Future, Call>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<A>) -> Self::Future {
        let mut call = self.layer.calls.begin(request.uri().path());
        let mut info = CallInfo::new(request.extensions_mut(), call.method.name.clone());
        if let Some(traces) = &self.layer.traces {
            let (service, name) = (info.method.service(), info.method.name());
            call.span = traces.begin(service, name, request.headers(), info.peer.as_ref());
            info.span.clone_from(&call.span);
        }
        request.extensions_mut().insert(info);
        LayerFuture::pass(self.inner.call(request), call)
    }
}

impl<D, E> BodyObserver<D, E> for Call {
    fn head(&mut self, status: StatusCode, headers: &mut HeaderMap) {
        match status {
            // A call that fails at once has its code in its headers.
            StatusCode::OK => self.end_with_status_of(headers),
            // Clients report these rejections as UNKNOWN, which the metrics reserve for the
            // server's own failures.
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => self.end(Code::ResourceExhausted),
            status if status.is_client_error() => self.end(Code::Unimplemented),
            _ => self.end(Code::Unknown),
        }
    }

    fn frame(&mut self, _cx: &mut Context<'_>, polled: Polled<D, E>) -> Polled<D, E> {
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.end_with_status_of(trailers);
                }
            }
            // A response without a status. Clients report it as UNKNOWN, too.
            Poll::Ready(Some(Err(_)) | None) => self.end(Code::Unknown),
            Poll::Pending => {}
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_their_common_names() {
        for (number, name) in CODES.iter().enumerate() {
            let code = Code::from_i32(i32::try_from(number).unwrap());
            let ours = format!("{code:?}").replace("Cancelled", "Canceled");
            assert!(name.eq_ignore_ascii_case(&ours), "{name} {ours}");
        }
    }

    #[test]
    fn a_call_is_counted_once_however_often_it_ends() {
        let calls = Calls::new(&[hashfinder_proto::DESCRIPTORS]).unwrap();
        let path = "/hash_name.HashFinder/Find";
        let mut call = calls.begin(path);
        call.end(Code::NotFound);
        call.end(Code::Ok);
        drop(call);
        drop(calls.begin(path));
        drop(calls.begin("/what.Ever/It\"is\n"));
        let find = &calls.0.methods[path];
        let counted = |method: &Method| method.handled.each_ref().map(Counter::get);
        let mut expected = [0; CODES.len()];
        expected[Code::NotFound as usize] = 1;
        expected[Code::Cancelled as usize] = 1;
        assert_eq!((find.started.get(), counted(find)), (2, expected));
        expected[Code::NotFound as usize] = 0;
        let unknown = &calls.0.unknown;
        assert_eq!((unknown.started.get(), counted(unknown)), (1, expected));
    }
}
