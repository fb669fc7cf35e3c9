//! Tests the client's handles against a server that is scripted frame by frame.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, uri::PathAndQuery};
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};
use tokio_stream::StreamExt;
use tonic::{
    Code, Request, Response, Status, Streaming,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_cancel::{Call, CallOptions, Canceller, Done, StreamingCall};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};
use tonic_prost::ProstCodec;

/// Maximum time that a test waits for an event.
const PATIENCE: Duration = Duration::from_secs(30);

/// A message with `status: SERVING`.
const MESSAGE: &[u8] = &[0, 0, 0, 0, 2, 8, 1];

/// A call as seen by the server; the test scripts the response.
struct Arrived {
    headers: HeaderMap,
    respond: h2::server::SendResponse<Bytes>,
    // Keeps the request open.
    _body: h2::RecvStream,
}

impl Arrived {
    /// Sends initial metadata. With `ended`, the response ends with it.
    fn headers(&mut self, metadata: &[(&str, &str)], ended: bool) -> h2::SendStream<Bytes> {
        let mut response = http::Response::builder().header("content-type", "application/grpc");
        for (name, value) in metadata {
            response = response.header(*name, *value);
        }
        let response = response.body(()).unwrap();
        self.respond.send_response(response, ended).unwrap()
    }

    /// Waits until the client resets the call, which has no response yet.
    async fn reset(mut self) -> h2::Reason {
        std::future::poll_fn(|cx| self.respond.poll_reset(cx))
            .await
            .unwrap()
    }
}

fn trailers(metadata: &[(&'static str, &'static str)]) -> HeaderMap {
    let pairs = metadata.iter();
    pairs
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect()
}

struct Scripted {
    channel: Channel,
    client: HealthClient<Channel>,
    arrived: UnboundedReceiver<Arrived>,
}

impl Scripted {
    async fn start() -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (sender, arrived) = unbounded_channel();
        tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(socket).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                let (parts, body) = request.into_parts();
                let headers = parts.headers;
                let arrived = Arrived {
                    headers,
                    respond,
                    _body: body,
                };
                // A test that has ended has dropped the receiver.
                drop(sender.send(arrived));
            }
        });
        let channel = Endpoint::try_from(address).unwrap().connect_lazy();
        Scripted {
            channel: channel.clone(),
            client: HealthClient::new(channel),
            arrived,
        }
    }

    fn check(&self, options: CallOptions) -> Call<HealthCheckResponse> {
        let mut client = self.client.clone();
        Call::start(request(), options, |request| async move {
            client.check(request).await
        })
    }

    fn watch(&self, options: CallOptions) -> StreamingCall<HealthCheckResponse> {
        let mut client = self.client.clone();
        StreamingCall::start(request(), options, |request| async move {
            client.watch(request).await
        })
    }

    /// Starts a call with a request stream that sends one request and stays open.
    fn converse(&self) -> StreamingCall<HealthCheckResponse> {
        let mut client = Grpc::new(self.channel.clone());
        let requests = tokio_stream::once(HealthCheckRequest::default());
        let requests = Request::new(requests.chain(tokio_stream::pending()));
        StreamingCall::start(requests, NO_OPTIONS, |requests| async move {
            client
                .ready()
                .await
                .map_err(|e| Status::unknown(e.to_string()))?;
            let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
            let path = PathAndQuery::from_static("/test.Test/Converse");
            client.streaming(requests, path, codec).await
        })
    }

    async fn arrived(&mut self) -> Arrived {
        let arrived = tokio::time::timeout(PATIENCE, self.arrived.recv()).await;
        arrived.expect("no call arrived").unwrap()
    }
}

fn request() -> Request<HealthCheckRequest> {
    Request::new(HealthCheckRequest::default())
}

/// Waits for an event that must happen.
async fn ends<T>(what: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(PATIENCE, what).await;
    ended.expect("it does not end")
}

const NO_OPTIONS: CallOptions = CallOptions::new();

#[tokio::test]
async fn a_stream_returns_its_metadata_as_it_arrives() {
    let mut server = Scripted::start().await;
    let mut call = server.watch(NO_OPTIONS);
    let mut arrived = server.arrived().await;
    let mut body = arrived.headers(&[("x-first", "early")], false);
    // No message has arrived yet.
    let initial = call.initial_metadata().await.unwrap();
    assert_eq!(initial.get("x-first").unwrap(), "early");
    assert!(!call.done() && call.trailing_metadata().is_none());

    body.send_data(MESSAGE.into(), false).unwrap();
    let last = trailers(&[("grpc-status", "0"), ("x-last", "late")]);
    body.send_trailers(last).unwrap();
    assert_eq!(call.message().await.unwrap().unwrap().status, 1);
    assert!(call.message().await.unwrap().is_none());
    let trailing = call.trailing_metadata().unwrap();
    assert_eq!(trailing.get("x-last").unwrap(), "late");
    assert!(!trailing.contains_key("x-first") && !trailing.contains_key("grpc-status"));
    // The initial metadata remains available.
    assert!(call.initial_metadata().await.is_some());
}

#[tokio::test]
async fn a_failed_stream_returns_its_metadata() {
    let mut server = Scripted::start().await;
    let mut call = server.watch(NO_OPTIONS);
    let mut body = server
        .arrived()
        .await
        .headers(&[("x-first", "early")], false);
    let last = trailers(&[("grpc-status", "9"), ("x-last", "late")]);
    body.send_trailers(last).unwrap();
    let status = call.message().await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let trailing = call.trailing_metadata().unwrap();
    assert_eq!(trailing.get("x-last").unwrap(), "late");
    assert!(!trailing.contains_key("x-first"));
    assert!(
        call.initial_metadata()
            .await
            .unwrap()
            .contains_key("x-first")
    );

    // A response that consists only of a status has no initial metadata.
    let mut call = server.watch(NO_OPTIONS);
    let only = [("grpc-status", "9"), ("x-last", "late")];
    server.arrived().await.headers(&only, true);
    assert!(call.initial_metadata().await.is_none());
    assert!(call.trailing_metadata().unwrap().contains_key("x-last"));
    assert!(call.message().await.is_err());
}

#[tokio::test]
async fn a_unary_call_returns_all_metadata_at_its_end() {
    let mut server = Scripted::start().await;
    let mut call = server.check(NO_OPTIONS);
    let mut body = server
        .arrived()
        .await
        .headers(&[("x-first", "early")], false);
    body.send_data(MESSAGE.into(), false).unwrap();
    let last = trailers(&[("grpc-status", "0"), ("x-last", "late")]);
    body.send_trailers(last).unwrap();
    assert!((&mut call).await.is_ok());
    let all = call.trailing_metadata().unwrap();
    assert!(all.contains_key("x-first") && all.contains_key("x-last"));
    assert!(!all.contains_key("grpc-status"));
    let initial = call.initial_metadata().await.unwrap();
    assert_eq!(initial.into_headers(), all.into_headers());

    let call = server.check(NO_OPTIONS);
    let mut body = server
        .arrived()
        .await
        .headers(&[("x-first", "early")], false);
    let last = trailers(&[("grpc-status", "9"), ("x-last", "late")]);
    body.send_trailers(last).unwrap();
    assert!(call.initial_metadata().await.is_none());
    let all = call.trailing_metadata().unwrap();
    assert!(all.contains_key("x-first") && all.contains_key("x-last"));
}

#[tokio::test]
async fn a_call_that_this_side_ends_has_no_metadata() {
    let mut server = Scripted::start().await;
    let call = server.watch(NO_OPTIONS);
    let arrived = server.arrived().await;
    assert!(call.cancel());
    assert!(call.initial_metadata().await.is_none());
    assert!(call.trailing_metadata().unwrap().is_empty());
    assert_eq!(arrived.reset().await, h2::Reason::CANCEL);
}

/// Regression: once its response had begun, a cancelled call with a request stream stayed open. The
/// sender of the stream waited for the next request, and the server did not receive the
/// cancellation.
#[tokio::test]
async fn a_cancellation_ends_the_request_stream() {
    let mut server = Scripted::start().await;
    let mut call = server.converse();
    let mut arrived = server.arrived().await;
    let mut body = arrived.headers(&[], false);
    body.send_data(MESSAGE.into(), false).unwrap();
    assert!(call.message().await.unwrap().is_some());
    assert!(call.cancel());
    let reset = std::future::poll_fn(|cx| body.poll_reset(cx));
    let reset = tokio::time::timeout(PATIENCE, reset).await;
    let reset = reset.map(Result::unwrap);
    assert_eq!(reset.expect("the server gets a reset"), h2::Reason::CANCEL);
    assert_eq!(call.message().await.unwrap_err().code(), Code::Cancelled);
}

#[tokio::test]
async fn the_reason_of_a_cancellation_is_reported() {
    let mut server = Scripted::start().await;
    let mut call = server.check(NO_OPTIONS);
    server.arrived().await;
    let (sender, mut reported) = unbounded_channel();
    call.add_done_callback(move |done| sender.send(done).unwrap());
    assert!(call.cancel_reason().is_none());
    assert!(call.cancel_with_reason("enough"));
    assert!(!call.cancel_with_reason("too late"));
    let status = (&mut call).await.unwrap_err();
    assert!(status.message().ends_with("enough"), "{status}");
    assert_eq!(call.cancel_reason().unwrap(), "enough");
    assert_eq!(reported.recv().await.unwrap().reason.unwrap(), "enough");

    let mut call = server.check(NO_OPTIONS);
    assert!(call.cancel());
    assert!((&mut call).await.is_err());
    assert!(call.cancelled() && call.cancel_reason().is_none());
}

#[tokio::test]
async fn the_earlier_of_timeout_and_deadline_counts() {
    let hour = Duration::from_secs(3600);
    let soon = Instant::now() + Duration::from_millis(50);
    let mut server = Scripted::start().await;
    for options in [
        NO_OPTIONS.timeout(hour).deadline(soon),
        NO_OPTIONS
            .timeout(Duration::from_millis(50))
            .deadline(soon + hour),
        // Already in the past.
        NO_OPTIONS.deadline(soon),
    ] {
        let call = server.check(options);
        let status = call.await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{options:?}");
    }
    // The deadline is sent to the server.
    while server.arrived.try_recv().is_ok() {}
    let _call = server.check(NO_OPTIONS.deadline(Instant::now() + hour));
    let header = server.arrived().await.headers["grpc-timeout"].clone();
    let header = header.to_str().unwrap();
    let left: u64 = header.strip_suffix('m').expect(header).parse().unwrap();
    assert!(left <= 3_600_000 && left > 3_500_000, "{header}");
}

/// The server never answers and has no timer, so the client's own clock ends the call.
#[tokio::test]
async fn a_shorter_timeout_in_the_request_is_kept() {
    // Long enough for the calls to arrive.
    let own = Duration::from_secs(3);
    let hour = Duration::from_secs(3600);
    let mut server = Scripted::start().await;
    let own_request = || {
        let mut request = request();
        request.set_timeout(own);
        request
    };
    let (mut unary, mut streams) = (Vec::new(), Vec::new());
    let mut arrived = Vec::new();
    for options in [
        NO_OPTIONS,
        NO_OPTIONS.timeout(hour),
        NO_OPTIONS.deadline(Instant::now() + hour),
    ] {
        let mut client = server.client.clone();
        unary.push(Call::start(own_request(), options, |request| async move {
            client.check(request).await
        }));
        let mut client = server.client.clone();
        streams.push(StreamingCall::start(
            own_request(),
            options,
            |request| async move { client.watch(request).await },
        ));
        arrived.extend([server.arrived().await, server.arrived().await]);
    }
    for call in &arrived {
        let header = call.headers["grpc-timeout"].to_str().unwrap();
        // The client may choose any of these units.
        let (number, unit) = header.split_at(header.len() - 1);
        let micros = match unit {
            "u" => 1,
            "m" => 1000,
            "S" => 1_000_000,
            other => panic!("{other:?} for seconds"),
        };
        let sent = Duration::from_micros(number.parse::<u64>().unwrap() * micros);
        assert!(sent <= own, "{header}");
    }
    for call in unary {
        let status = ends(call).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    }
    for mut call in streams {
        let status = ends(call.message()).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
        assert_eq!(call.code(), Some(Code::DeadlineExceeded));
    }
}

#[tokio::test]
async fn an_expired_call_is_not_sent() {
    let mut server = Scripted::start().await;
    // Connect first, so that nothing else delays the calls.
    let first = server.check(NO_OPTIONS);
    server.arrived().await;
    for _ in 0..20 {
        let now = Instant::now();
        for options in [
            NO_OPTIONS.timeout(Duration::ZERO),
            NO_OPTIONS.deadline(now),
            NO_OPTIONS.deadline(now).wait_for_ready(true),
        ] {
            let status = ends(server.check(options)).await.unwrap_err();
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
            let mut call = server.watch(options);
            let status = ends(call.message()).await.unwrap_err();
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
        }
    }
    // When a later call has arrived, calls sent earlier have arrived, too.
    let later = server.check(NO_OPTIONS);
    let arrived = server.arrived().await;
    let is_later = !arrived.headers.contains_key("grpc-timeout");
    assert!(is_later, "it was sent");
    assert!(server.arrived.try_recv().is_err(), "it was sent");
    drop((first, later));
}

#[tokio::test]
async fn an_endless_stream_ends_by_its_deadline() {
    let mut server = Scripted::start().await;
    // Long enough for a message to arrive.
    let mut call = server.watch(NO_OPTIONS.timeout(Duration::from_secs(2)));
    let mut arrived = server.arrived().await;
    let mut body = arrived.headers(&[], false);
    let sending = tokio::spawn(async move {
        // Send until the client resets the stream.
        while body.send_data(MESSAGE.into(), false).is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let mut messages = 0;
    let status = loop {
        match call.message().await {
            Ok(message) => messages += usize::from(message.is_some()),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(messages > 0);
    assert_eq!(call.code(), Some(Code::DeadlineExceeded));
    sending.await.unwrap();
}

/// If a call is cancelled before its first poll, the client's code never runs.
#[tokio::test]
async fn a_call_can_be_cancelled_before_its_first_poll() {
    // The carrier cannot run before this task waits, because there is only one thread.
    let never = |_| async { panic!("it was polled") };
    let call: Call<()> = Call::start(Request::new(()), NO_OPTIONS, never);
    assert!(call.cancel());
    assert_eq!(call.await.unwrap_err().code(), Code::Cancelled);

    let never = |_| async { panic!("it was polled") };
    let mut call: StreamingCall<()> = StreamingCall::start(Request::new(()), NO_OPTIONS, never);
    assert!(call.cancel());
    assert_eq!(call.message().await.unwrap_err().code(), Code::Cancelled);
    assert!(call.message().await.unwrap().is_none());
}

#[tokio::test]
async fn cancelling_after_the_end_changes_nothing() {
    let answer = |_| async { Ok(Response::new(7)) };
    let mut call: Call<u8> = Call::start(Request::new(()), NO_OPTIONS, answer);
    assert_eq!((&mut call).await.unwrap().into_inner(), 7);
    assert!(!call.cancel() && !call.cancel_with_reason("late"));
    assert_eq!((call.code(), call.cancelled()), (Some(Code::Ok), false));
    assert!(call.cancel_reason().is_none());
}

#[tokio::test]
#[should_panic(expected = "handed out before")]
async fn a_response_is_handed_out_once() {
    let answer = |_| async { Ok(Response::new(7)) };
    let mut call: Call<u8> = Call::start(Request::new(()), NO_OPTIONS, answer);
    assert!(call.result(PATIENCE).await.unwrap().is_ok());
    let _ = call.result(PATIENCE).await;
}

fn hanging() -> Call<()> {
    Call::start(Request::new(()), NO_OPTIONS, |_| std::future::pending())
}

#[tokio::test]
async fn a_call_can_be_cancelled_from_other_threads() {
    let call = hanging();
    // Only the first canceller gets `true`.
    let cancellers: Vec<Canceller> = (0..8).map(|_| call.canceller()).collect();
    let cancelling = cancellers.into_iter().map(|canceller| {
        // These threads have no runtime.
        std::thread::spawn(move || canceller.cancel_with_reason("from a thread"))
    });
    let threads: Vec<_> = cancelling.collect();
    let told_first = threads.into_iter().map(|thread| thread.join().unwrap());
    assert_eq!(told_first.filter(|first| *first).count(), 1);
    assert_eq!(call.await.unwrap_err().code(), Code::Cancelled);
}

#[tokio::test]
async fn callbacks_may_use_calls_freely() {
    let (first, second) = (hanging(), hanging());
    let (own, other) = (first.canceller(), second.canceller());
    let (sender, mut reported) = unbounded_channel();
    let again = Arc::new(first);
    let weak = Arc::downgrade(&again);
    again.add_done_callback(move |done| {
        // The callback's own call is over. The other call is not.
        assert!(!own.cancel());
        assert!(other.cancel());
        // A callback registered now runs at once.
        if let Some(call) = weak.upgrade() {
            let sender = sender.clone();
            assert!(!call.add_done_callback(move |done| sender.send(done).unwrap()));
        }
        sender.send(done).unwrap();
    });
    again.cancel();
    for _ in 0..2 {
        let done = reported.recv().await.unwrap();
        assert_eq!((done.code, done.cancelled), (Code::Cancelled, true));
    }
    assert!(second.await.is_err());
}

#[tokio::test]
async fn a_callback_after_the_end_runs_at_once_on_this_thread() {
    let mut call = hanging();
    call.cancel();
    assert!((&mut call).await.is_err());
    let (sender, reported) = mpsc::channel();
    let here = std::thread::current().id();
    let callback = move |done: Done| {
        sender
            .send((done.code, std::thread::current().id()))
            .unwrap();
        panic!("a panic that this test wants");
    };
    assert!(!call.add_done_callback(callback));
    assert_eq!(reported.recv().unwrap(), (Code::Cancelled, here));
}

/// Returns a future that never completes and reports when it is dropped.
fn held(sender: UnboundedSender<&'static str>) -> impl Future<Output = ()> + Send {
    struct Held(UnboundedSender<&'static str>);
    impl Drop for Held {
        fn drop(&mut self) {
            self.0.send("dropped").unwrap();
        }
    }
    let held = Held(sender);
    async move {
        held.0.send("began").unwrap();
        std::future::pending::<()>().await;
    }
}

#[tokio::test]
async fn dropping_cancels_and_detaching_does_not() {
    let (sender, mut reported) = unbounded_channel();
    let start = |rpc: UnboundedSender<_>| -> Call<()> {
        Call::start(Request::new(()), NO_OPTIONS, |_| async {
            held(rpc).await;
            Ok(Response::new(()))
        })
    };
    let call = start(sender.clone());
    assert_eq!(reported.recv().await, Some("began"));
    let canceller = call.canceller();
    drop(call);
    assert_eq!(reported.recv().await, Some("dropped"));
    assert!(!canceller.cancel(), "it was cancelled by the drop");

    let call = start(sender.clone());
    assert_eq!(reported.recv().await, Some("began"));
    let canceller = call.canceller();
    call.detach();
    assert!(reported.try_recv().is_err());
    // The detached call can still be cancelled.
    assert!(canceller.cancel());
    assert_eq!(reported.recv().await, Some("dropped"));

    let rpc = held(sender);
    let call: StreamingCall<()> =
        StreamingCall::start(Request::new(()), NO_OPTIONS, |_| async move {
            rpc.await;
            Result::<Response<Streaming<()>>, _>::Err(Status::unknown(""))
        });
    assert_eq!(reported.recv().await, Some("began"));
    drop(call);
    assert_eq!(reported.recv().await, Some("dropped"));
}
