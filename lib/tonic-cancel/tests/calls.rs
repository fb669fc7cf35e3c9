//! How a call ends, over real sockets, seen from both sides.
//!
//! The service is gRPC's health service with a custom handler: `check` is its unary method, `watch`
//! its streaming one. The requested service name selects the behaviour.

mod stage;

use std::{
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use stage::{PATIENCE, Raw, soon, status_of};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_stream::{Stream, wrappers::TcpListenerStream};
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};
use tonic_cancel::{
    Call, CallContext, CallContextLayer, CallEnd, CallOptions, CancelReason, Done, Drain,
    StillRunning, StreamingCall,
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};

type Messages = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

/// Events that a handler reports to the test.
#[derive(Debug, PartialEq)]
enum Seen {
    Began,
    /// A loop on a separate thread saw the stop flag.
    Stopped,
    Ended(CallEnd),
}

#[derive(Clone)]
struct Behaving {
    seen: UnboundedSender<Seen>,
}

/// The details that a status must carry unchanged.
const DETAILS: &[u8] = b"\x08\x08any bytes\xff";

impl Behaving {
    fn begin(&self, request: &Request<HealthCheckRequest>) -> (CallContext, String) {
        let context = CallContext::of(request);
        let seen = self.seen.clone();
        seen.send(Seen::Began).unwrap();
        // The test may have ended before the last calls.
        context.add_callback(move |end| drop(seen.send(Seen::Ended(end))));
        (context, request.get_ref().service.clone())
    }

    fn cancel_from_a_thread(context: CallContext) {
        std::thread::spawn(move || {
            let details = DETAILS.into();
            let status = Status::with_details(Code::ResourceExhausted, "enough", details);
            context.cancel_with_status(status)
        });
    }
}

#[tonic::async_trait]
impl Health for Behaving {
    type WatchStream = Messages;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let (context, behaviour) = self.begin(&request);
        match behaviour.as_str() {
            "answer" => return Ok(Response::new(HealthCheckResponse::default())),
            "refuse" => return Err(Status::not_found("no such thing")),
            "panic" => panic!("a panic that this test wants"),
            "cancel" => Self::cancel_from_a_thread(context),
            "polite" => {
                let reason = context.cancelled().await;
                return Err(Status::unavailable(format!("stopped: {reason:?}")));
            }
            "block" => {
                // Blocks its thread and never awaits; only the flag reaches it.
                let stop = context.stop_flag();
                let began = Instant::now();
                while !stop.is_requested() {
                    // The test's own timeout may need the thread that this loop blocks.
                    assert!(began.elapsed() < PATIENCE, "the flag was not set");
                    std::thread::yield_now();
                }
                self.seen.send(Seen::Stopped).unwrap();
            }
            "hang" => {}
            other => panic!("no behaviour {other:?}"),
        }
        std::future::pending().await
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Messages>, Status> {
        let (context, behaviour) = self.begin(&request);
        Ok(Response::new(Box::pin(Stepwise {
            context,
            behaviour,
            step: 0,
        })))
    }
}

/// A stream that sends one message and then follows the behaviour.
struct Stepwise {
    context: CallContext,
    behaviour: String,
    step: u64,
}

impl Stream for Stepwise {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.step += 1;
        if self.step == 1 {
            return Poll::Ready(Some(Ok(HealthCheckResponse::default())));
        }
        match self.behaviour.as_str() {
            "answer" => Poll::Ready(None),
            "refuse" => Poll::Ready(Some(Err(Status::not_found("no such thing")))),
            // Panic in a separate poll, after the previous message has been sent.
            "panic" if self.step == 2 => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            "panic" => panic!("a panic that this test wants"),
            "cancel" => {
                Behaving::cancel_from_a_thread(self.context.clone());
                Poll::Pending
            }
            "flood" => Poll::Ready(Some(Ok(HealthCheckResponse { status: 1 }))),
            "polite" => {
                let (context, waker) = (self.context.clone(), cx.waker().clone());
                if let Some(reason) = self.context.cancel_reason() {
                    let status = Status::unavailable(format!("stopped: {:?}", Some(reason)));
                    return Poll::Ready(Some(Err(status)));
                }
                tokio::spawn(async move {
                    context.cancelled().await;
                    waker.wake();
                });
                Poll::Pending
            }
            "hang" => Poll::Pending,
            other => panic!("no behaviour {other:?}"),
        }
    }
}

struct TestServer {
    address: SocketAddr,
    drain: Drain,
    seen: UnboundedReceiver<Seen>,
}

impl TestServer {
    async fn start() -> TestServer {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let drain = Drain::new();
        let (sender, seen) = unbounded_channel();
        let server = Server::builder()
            .layer(CallContextLayer::with_drain(drain.clone()))
            .add_service(HealthServer::new(Behaving { seen: sender }))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        TestServer {
            address,
            drain,
            seen,
        }
    }

    async fn client(&self) -> HealthClient<Channel> {
        let endpoint = Endpoint::try_from(format!("http://{}", self.address)).unwrap();
        HealthClient::new(endpoint.connect().await.unwrap())
    }

    async fn next(&mut self) -> Seen {
        let seen = tokio::time::timeout(PATIENCE, self.seen.recv()).await;
        seen.expect("the handler said nothing").unwrap()
    }

    async fn began(&mut self) {
        assert_eq!(self.next().await, Seen::Began);
    }

    async fn ended(&mut self) -> CallEnd {
        match self.next().await {
            Seen::Ended(end) => end,
            other => panic!("not an end: {other:?}"),
        }
    }

    async fn ended_by(&mut self, code: Code, cancelled: Option<CancelReason>) {
        let end = self.ended().await;
        assert_eq!((end.code, end.cancelled), (code, cancelled));
    }
}

fn request(behaviour: &str) -> Request<HealthCheckRequest> {
    Request::new(HealthCheckRequest {
        service: behaviour.to_owned(),
    })
}

async fn check(
    server: &TestServer,
    behaviour: &str,
    options: CallOptions,
) -> Call<HealthCheckResponse> {
    let mut client = server.client().await;
    Call::start(request(behaviour), options, |request| async move {
        client.check(request).await
    })
}

/// Starts a stream and reads its first message.
async fn watch(
    server: &mut TestServer,
    behaviour: &str,
    options: CallOptions,
) -> StreamingCall<HealthCheckResponse> {
    let mut client = server.client().await;
    let mut call = StreamingCall::start(request(behaviour), options, |request| async move {
        client.watch(request).await
    });
    server.began().await;
    assert!(call.message().await.unwrap().is_some());
    call
}

const UNTIL_CANCELLED: CallOptions = CallOptions::new();

/// A deadline that passes during a test, but only after its call has reached the handler, even if
/// other processes keep all cores busy.
const SHORTLY: Duration = Duration::from_secs(3);

fn shortly() -> CallOptions {
    CallOptions::new().timeout(SHORTLY)
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_and_errors_pass_through() {
    let mut server = TestServer::start().await;
    assert!(
        check(&server, "answer", UNTIL_CANCELLED)
            .await
            .await
            .is_ok()
    );
    server.began().await;
    server.ended_by(Code::Ok, None).await;

    let status = check(&server, "refuse", UNTIL_CANCELLED)
        .await
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "no such thing")
    );
    server.began().await;
    server.ended_by(Code::NotFound, None).await;

    let mut call = watch(&mut server, "answer", UNTIL_CANCELLED).await;
    assert!(call.message().await.unwrap().is_none());
    assert_eq!((call.code(), call.cancelled()), (Some(Code::Ok), false));
    server.ended_by(Code::Ok, None).await;

    let mut call = watch(&mut server, "refuse", UNTIL_CANCELLED).await;
    assert_eq!(call.message().await.unwrap_err().code(), Code::NotFound);
    server.ended_by(Code::NotFound, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_cancels() {
    let mut server = TestServer::start().await;
    let mut call = check(&server, "hang", UNTIL_CANCELLED).await;
    server.began().await;
    assert_eq!(call.result(Duration::ZERO).await.unwrap_err(), StillRunning);
    let (sender, mut done) = unbounded_channel();
    assert!(call.add_done_callback(move |done| sender.send(done).unwrap()));
    let canceller = call.canceller();
    assert!(canceller.cancel_with_reason("ctrl-c"));
    assert!(!canceller.cancel());
    let status = call.result(Duration::MAX).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Cancelled);
    assert!(status.message().ends_with("ctrl-c"), "{status}");
    let done: Done = done.recv().await.unwrap();
    assert_eq!((done.code, done.cancelled), (Code::Cancelled, true));
    assert!(call.done() && call.cancelled());
    server
        .ended_by(Code::Cancelled, Some(CancelReason::ClientGone))
        .await;

    let mut call = watch(&mut server, "hang", UNTIL_CANCELLED).await;
    assert!(call.cancel());
    assert_eq!(call.message().await.unwrap_err().code(), Code::Cancelled);
    assert!(call.message().await.unwrap().is_none());
    server
        .ended_by(Code::Cancelled, Some(CancelReason::ClientGone))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_drops_its_handle() {
    let mut server = TestServer::start().await;
    let call = check(&server, "hang", UNTIL_CANCELLED).await;
    server.began().await;
    drop(call);
    assert_eq!(
        server.ended().await.cancelled,
        Some(CancelReason::ClientGone)
    );

    let call = watch(&mut server, "hang", UNTIL_CANCELLED).await;
    drop(call);
    assert_eq!(
        server.ended().await.cancelled,
        Some(CancelReason::ClientGone)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_call_continues() {
    let mut server = TestServer::start().await;
    let call = check(&server, "polite", UNTIL_CANCELLED).await;
    server.began().await;
    call.detach();
    let drained = server.drain.drain(Duration::ZERO, Duration::MAX).await;
    assert_eq!((drained.told, drained.forced), (1, 0));
    server
        .ended_by(Code::Unavailable, Some(CancelReason::Drain))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_dies() {
    let mut server = TestServer::start().await;
    let address = server.address;
    // A client on a separate runtime, which is shut down with all its tasks.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.spawn(async move {
        let endpoint = Endpoint::try_from(format!("http://{address}")).unwrap();
        let mut client = HealthClient::new(endpoint.connect().await.unwrap());
        let mut again = client.clone();
        let _ = tokio::join!(client.check(request("hang")), async {
            let stream = again.watch(request("hang")).await;
            std::future::pending::<()>().await;
            stream
        });
    });
    server.began().await;
    server.began().await;
    runtime.shutdown_background();
    for _ in 0..2 {
        assert_eq!(
            server.ended().await.cancelled,
            Some(CancelReason::ClientGone)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_passes() {
    let mut server = TestServer::start().await;
    let status = check(&server, "hang", shortly()).await.await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    server.began().await;
    let gone = [CancelReason::DeadlineExceeded, CancelReason::ClientGone];
    // Either side's timer may fire first.
    assert!(gone.contains(&server.ended().await.cancelled.unwrap()));

    let mut client = server.client().await;
    let mut call = StreamingCall::start(request("hang"), shortly(), |request| async move {
        client.watch(request).await
    });
    let status = loop {
        match call.message().await {
            Ok(message) => assert!(message.is_some(), "ended well"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(call.code(), Some(Code::DeadlineExceeded));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_covers_connecting() {
    // A listener that never accepts: the connection is made, but the peer sends no HTTP.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", silent.local_addr().unwrap());
    let channel = Endpoint::try_from(address).unwrap().connect_lazy();
    let mut client = HealthClient::new(channel);
    let call = Call::start(request("answer"), shortly(), |request| async move {
        client.check(request).await
    });
    assert_eq!(call.await.unwrap_err().code(), Code::DeadlineExceeded);
}

/// A handler that blocks its thread does not notice that its client leaves, because hyper would
/// notice it in the blocked task.
///
/// The runtime has no other thread, so nothing drives its timers while the handler blocks. With
/// more threads, that happens, too, but less often.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_handler_that_blocks_its_thread_sees_its_deadline_and_a_drain() {
    for (options, reason) in [
        (shortly(), CancelReason::DeadlineExceeded),
        (UNTIL_CANCELLED, CancelReason::Drain),
    ] {
        let mut server = TestServer::start().await;
        let _call = check(&server, "block", options).await;
        server.began().await;
        if reason == CancelReason::Drain {
            server.drain.drain(Duration::ZERO, Duration::ZERO).await;
        }
        let mut seen = [server.next().await, server.next().await];
        seen.sort_by_key(|seen| matches!(seen, Seen::Stopped));
        let [Seen::Ended(end), Seen::Stopped] = seen else {
            panic!("{seen:?}");
        };
        assert_eq!(end.cancelled, Some(reason));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_cancels_with_a_status_and_its_details() {
    let mut server = TestServer::start().await;
    let status = check(&server, "cancel", UNTIL_CANCELLED)
        .await
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::ResourceExhausted, "enough")
    );
    assert_eq!(status.details(), DETAILS);
    server.began().await;
    server
        .ended_by(Code::ResourceExhausted, Some(CancelReason::Server))
        .await;

    let mut call = watch(&mut server, "cancel", UNTIL_CANCELLED).await;
    let status = call.message().await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::ResourceExhausted, "enough")
    );
    assert_eq!(status.details(), DETAILS);
    server
        .ended_by(Code::ResourceExhausted, Some(CancelReason::Server))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_ends_only_its_own_call_with_unknown() {
    let mut server = TestServer::start().await;
    let mut bystander = watch(&mut server, "polite", UNTIL_CANCELLED).await;

    let status = check(&server, "panic", UNTIL_CANCELLED)
        .await
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unknown);
    server.began().await;
    server.ended_by(Code::Unknown, None).await;

    let mut call = watch(&mut server, "panic", UNTIL_CANCELLED).await;
    assert_eq!(call.message().await.unwrap_err().code(), Code::Unknown);
    server.ended_by(Code::Unknown, None).await;

    server.drain.drain(Duration::ZERO, Duration::MAX).await;
    assert_eq!(
        bystander.message().await.unwrap_err().code(),
        Code::Unavailable
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_then_asks_then_forces() {
    let mut server = TestServer::start().await;
    let mut unresponsive = watch(&mut server, "hang", UNTIL_CANCELLED).await;
    let mut listening = watch(&mut server, "polite", UNTIL_CANCELLED).await;
    let late = server.client().await;

    let drain = server.drain.clone();
    let draining = tokio::spawn(async move { drain.drain(Duration::ZERO, SHORTLY).await });
    let status = listening.message().await.unwrap_err();
    assert_eq!(status.message(), "stopped: Some(Drain)");
    let status = unresponsive.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let drained = draining.await.unwrap();
    assert_eq!((drained.told, drained.forced), (2, 1));
    for _ in 0..2 {
        server
            .ended_by(Code::Unavailable, Some(CancelReason::Drain))
            .await;
    }

    // A late call is rejected before its handler runs.
    let mut client = late;
    let status = client.check(request("answer")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(server.drain.active_calls(), 0);
    assert!(server.seen.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_does_not_wait_for_ended_calls() {
    let mut server = TestServer::start().await;
    let mut call = watch(&mut server, "answer", UNTIL_CANCELLED).await;
    assert!(call.message().await.unwrap().is_none());
    let drained = server.drain.drain(Duration::MAX, Duration::MAX).await;
    assert_eq!((drained.told, drained.forced), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unread_stream_ends_by_its_deadline_and_by_a_drain() {
    let mut server = TestServer::start().await;
    // With a window of 0, the server cannot send, so it does not even poll the handler's stream.
    let mut raw = Raw::connect(server.address, Some(0)).await;
    let _unread = raw.call("Watch", "flood", Some("1S")).await;
    server.began().await;
    server
        .ended_by(Code::DeadlineExceeded, Some(CancelReason::DeadlineExceeded))
        .await;

    let _unread = raw.call("Watch", "flood", None).await;
    server.began().await;
    let drained = server.drain.drain(Duration::ZERO, Duration::ZERO).await;
    assert_eq!((drained.told, drained.forced), (1, 1));
    server
        .ended_by(Code::Unavailable, Some(CancelReason::Drain))
        .await;
}

/// The client has no timer, so the status is the server's.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_enforces_the_deadline_by_itself() {
    let mut server = TestServer::start().await;
    let mut raw = Raw::connect(server.address, None).await;
    for (method, code) in [
        ("Check", Code::DeadlineExceeded),
        ("Watch", Code::DeadlineExceeded),
    ] {
        let response = raw.call(method, "hang", Some("1S")).await;
        assert_eq!(status_of(response).await, Some(code), "{method}");
        server.began().await;
        server
            .ended_by(code, Some(CancelReason::DeadlineExceeded))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_timeout_is_rejected() {
    let mut server = TestServer::start().await;
    let mut raw = Raw::connect(server.address, None).await;
    for timeout in ["", "5", "5s", "-5S", "123456789S", "soon"] {
        let response = raw.call("Check", "answer", Some(timeout)).await;
        let code = status_of(response).await;
        assert_eq!(code, Some(Code::InvalidArgument), "{timeout:?}");
    }
    assert!(server.seen.try_recv().is_err(), "a handler saw it");
}

#[tokio::test]
async fn without_the_layer_a_handler_still_works() {
    let (sender, _seen) = unbounded_channel();
    let behaving = Behaving { seen: sender };
    assert!(behaving.check(request("answer")).await.is_ok());
}

/// Calls cancelled at arbitrary moments: each ends once, on both sides.
#[tokio::test(flavor = "multi_thread")]
async fn many_calls_cancelled_at_any_moment_all_end_once() {
    let mut server = TestServer::start().await;
    let client = server.client().await;
    let (sender, mut done) = unbounded_channel();
    for turn in 0..200_u32 {
        let mut client = client.clone();
        let mut call = Call::start(request("hang"), UNTIL_CANCELLED, |request| async move {
            client.check(request).await
        });
        let sender = sender.clone();
        call.add_done_callback(move |_| sender.send(()).unwrap());
        for _ in 0..turn % 17 {
            tokio::task::yield_now().await;
        }
        call.cancel();
        assert_eq!((&mut call).await.unwrap_err().code(), Code::Cancelled);
        // Once the result is available, the call's state is too.
        assert!(call.done() && call.cancelled());
    }
    // The server still answers. A cancelled call that arrives after the drain has begun is rejected
    // before its handler runs.
    let last = check(&server, "answer", UNTIL_CANCELLED).await;
    assert!(last.await.is_ok());
    server.drain.drain(Duration::MAX, Duration::MAX).await;
    let (mut began, mut ended) = (0, 0);
    while let Ok(seen) = server.seen.try_recv() {
        match seen {
            Seen::Began => began += 1,
            Seen::Ended(_) => ended += 1,
            Seen::Stopped => {}
        }
    }
    assert_eq!(began, ended);
    // A callback may run shortly after the result is available. The channel closes when no callback
    // is left.
    drop(sender);
    let mut callbacks = 0;
    while soon(done.recv()).await.is_some() {
        callbacks += 1;
    }
    assert_eq!(callbacks, 200);
}

/// If the client's code panics, its call must not look as if it were still running or complete.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_task_dies_ends_with_unknown() {
    async fn rpc<T>() -> T {
        panic!("a panic that this test wants");
    }
    let (sender, mut done) = unbounded_channel();

    let mut call: Call<()> = Call::start(Request::new(()), UNTIL_CANCELLED, |_| rpc());
    let callback_sender = sender.clone();
    call.add_done_callback(move |done| callback_sender.send(done.code).unwrap());
    assert_eq!((&mut call).await.unwrap_err().code(), Code::Unknown);
    assert!(call.done() && !call.cancelled());
    assert_eq!(done.recv().await, Some(Code::Unknown));

    let mut call: StreamingCall<()> =
        StreamingCall::start(Request::new(()), UNTIL_CANCELLED, |_| rpc());
    call.add_done_callback(move |done| sender.send(done.code).unwrap());
    assert_eq!(call.message().await.unwrap_err().code(), Code::Unknown);
    assert_eq!(call.message().await.unwrap(), None);
    assert_eq!(done.recv().await, Some(Code::Unknown));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_of_millennia_counts_as_none() {
    let mut server = TestServer::start().await;
    for timeout in [Duration::MAX, Duration::from_secs(99_999_999 * 3600)] {
        let call = check(&server, "answer", CallOptions::new().timeout(timeout)).await;
        assert!(call.await.is_ok());
        server.began().await;
        server.ended_by(Code::Ok, None).await;
    }
}
