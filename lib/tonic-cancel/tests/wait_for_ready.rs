//! Calls that wait for their channel, over real sockets. The connector counts its attempts, and the
//! tests wait for these counts.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Uri, uri::PathAndQuery};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::watch,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Request, Response, Status,
    client::Grpc,
    transport::{Channel, Endpoint, Server},
};
use tonic_cancel::{Backoff, Call, CallOptions, ReadyChannel, StreamingCall};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};
use tonic_prost::ProstCodec;
use tower_service::Service;

/// Maximum time that a test waits for an event.
const PATIENCE: Duration = Duration::from_secs(30);

/// The time between attempts in these tests.
const WAIT: Duration = Duration::from_millis(20);

const BACKOFF: Backoff = Backoff {
    initial: WAIT,
    multiplier: 1.0,
    jitter: 0.0,
    max: WAIT,
};

const WAITING: CallOptions = CallOptions::new().wait_for_ready(true);

/// Connects like tonic's connector, and counts the attempts.
#[derive(Clone)]
struct Connector {
    address: SocketAddr,
    attempts: watch::Sender<u64>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<TcpStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        self.attempts.send_modify(|attempts| *attempts += 1);
        let address = self.address;
        Box::pin(async move { TcpStream::connect(address).await.map(TokioIo::new) })
    }
}

/// A client whose server may not be running.
struct Client {
    address: SocketAddr,
    attempts: watch::Sender<u64>,
    channel: ReadyChannel<Channel>,
}

impl Client {
    async fn new() -> Client {
        Client::with_backoff(BACKOFF).await
    }

    async fn with_backoff(backoff: Backoff) -> Client {
        // The listener is dropped, so nothing listens on this address.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (attempts, _) = watch::channel(0);
        let connector = Connector {
            address,
            attempts: attempts.clone(),
        };
        let endpoint = Endpoint::try_from(format!("http://{address}")).unwrap();
        let channel = endpoint.connect_with_connector_lazy(connector);
        Client {
            address,
            attempts,
            channel: ReadyChannel::with_backoff(channel, backoff),
        }
    }

    fn check(&self, options: CallOptions) -> Call<HealthCheckResponse> {
        let mut client = HealthClient::new(self.channel.clone());
        Call::start(request(), options, |request| async move {
            client.check(request).await
        })
    }

    fn watch(&self, options: CallOptions) -> StreamingCall<HealthCheckResponse> {
        let mut client = HealthClient::new(self.channel.clone());
        StreamingCall::start(request(), options, |request| async move {
            client.watch(request).await
        })
    }

    /// Waits for `more` further attempts.
    async fn attempts(&self, more: u64) {
        let mut attempts = self.attempts.subscribe();
        let enough = *attempts.borrow() + more;
        let reached = attempts.wait_for(|attempts| *attempts >= enough);
        tokio::time::timeout(PATIENCE, reached)
            .await
            .unwrap()
            .unwrap();
    }

    /// Asserts that there was at most one attempt for each interval since `since`, plus `already`
    /// attempts.
    fn assert_few_attempts(&self, since: Instant, already: u64) {
        let attempts = *self.attempts.borrow();
        let intervals = since.elapsed().as_millis() / WAIT.as_millis();
        let most = u64::try_from(intervals).unwrap() + already;
        assert!(attempts <= most, "{attempts} attempts, not {most} at most");
    }

    fn serve(&self) -> TestServer {
        TestServer::start(self.address)
    }
}

fn request() -> Request<HealthCheckRequest> {
    Request::new(HealthCheckRequest::default())
}

async fn ends<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, call)
        .await
        .expect("it still waits")
}

/// A health service on a separate runtime, which is shut down with all its connections.
struct TestServer(Option<Runtime>);

impl TestServer {
    fn start(address: SocketAddr) -> TestServer {
        let runtime = Runtime::new().unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::bind(address).await.unwrap();
            let (_reporter, health) = tonic_health::server::health_reporter();
            Server::builder()
                .add_service(health)
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        TestServer(Some(runtime))
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // The port is free only after the shutdown.
            tokio::task::block_in_place(|| runtime.shutdown_timeout(PATIENCE));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_wait_for_a_server_that_starts_later() {
    let client = Client::new().await;
    let unary = client.check(WAITING);
    let mut stream = client.watch(WAITING.timeout(PATIENCE));
    client.attempts(3).await;
    assert!(!unary.done() && !stream.done());
    let _server = client.serve();
    assert_eq!(ends(unary).await.unwrap().into_inner().status, 1);
    assert_eq!(ends(stream.message()).await.unwrap().unwrap().status, 1);
    // From now on, no call has to wait.
    assert!(ends(client.check(WAITING)).await.is_ok());
    assert!(ends(client.check(CallOptions::new())).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_option_a_call_fails_at_once() {
    let client = Client::new().await;
    let status = ends(client.check(CallOptions::new())).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert_eq!(*client.attempts.borrow(), 1);

    // The same holds while another call waits.
    let hour = Duration::from_secs(3600);
    let client = Client::with_backoff(Backoff {
        initial: hour,
        max: hour,
        ..BACKOFF
    })
    .await;
    let waiting = client.check(WAITING);
    client.attempts(1).await;
    let status = ends(client.check(CallOptions::new())).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(!waiting.done());

    // When such a call connects, waiting calls stop waiting.
    let _server = client.serve();
    while ends(client.check(CallOptions::new())).await.is_err() {}
    assert!(ends(waiting).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_passes_while_a_call_waits() {
    let client = Client::new().await;
    // Long enough for one attempt to have failed.
    let timeout = Duration::from_secs(3);
    let status = ends(client.check(WAITING.timeout(timeout))).await;
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    // The status says what the call was waiting for.
    assert!(status.message().contains("refused"), "{status}");
    let mut stream = client.watch(WAITING.deadline(Instant::now() + WAIT));
    let status = ends(stream.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_call_is_cancelled_and_another_takes_its_turn() {
    let client = Client::new().await;
    let first = client.check(WAITING);
    client.attempts(2).await;
    let second = client.check(WAITING);
    assert!(first.cancel());
    assert_eq!(ends(first).await.unwrap_err().code(), Code::Cancelled);
    client.attempts(2).await;
    let third = client.watch(WAITING);
    drop(second);
    client.attempts(2).await;
    let _server = client.serve();
    let mut third = third;
    assert!(ends(third.message()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_waiting_calls_make_one_attempt_at_a_time() {
    let client = Client::new().await;
    let began = Instant::now();
    let calls: Vec<_> = (0..1000).map(|_| client.check(WAITING)).collect();
    client.attempts(5).await;
    client.assert_few_attempts(began, 1);
    assert!(calls.iter().all(|call| !call.done()));
    // Many calls are cancelled, and their turns must pass to others.
    for call in &calls[..500] {
        assert!(call.cancel());
    }
    client.attempts(5).await;
    client.assert_few_attempts(began, 1);
    let _server = client.serve();
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(ends(call).await.is_ok(), number >= 500);
    }
    client.assert_few_attempts(began, 2);
}

/// All calls are queued on the channel before the first of them notices that the connection is
/// gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_calls_on_a_connection_that_is_lost_all_wait() {
    let client = Client::new().await;
    let server = client.serve();
    let mut stream = client.watch(WAITING);
    assert!(ends(stream.message()).await.unwrap().is_some());
    drop(server);
    // Wait until the client notices the loss. After that, nothing can be sent, so nothing can be
    // lost.
    assert!(ends(stream.message()).await.is_err());
    let calls: Vec<_> = (0..1000).map(|_| client.check(WAITING)).collect();
    client.attempts(3).await;
    let _server = client.serve();
    for call in calls {
        ends(call).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_channel_the_status_says_what_is_missing() {
    let client = Client::new().await;
    let endpoint = Endpoint::try_from(format!("http://{}", client.address)).unwrap();
    let mut plain = HealthClient::new(endpoint.connect_lazy());
    let call = Call::start(request(), WAITING, |request| async move {
        plain.check(request).await
    });
    let status = ends(call).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("ReadyChannel"), "{status}");
}

/// Serves one connection with one call. Answers the call with OK after its last request, and
/// returns the headers and the bytes of the request.
async fn receive(address: SocketAddr) -> (http::HeaderMap, Vec<u8>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let (socket, _) = listener.accept().await.unwrap();
    let mut connection = h2::server::handshake(socket).await.unwrap();
    let (request, mut respond) = connection.accept().await.unwrap().unwrap();
    let (parts, mut body) = request.into_parts();
    let receiving = async {
        let mut bytes = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            bytes.extend(data);
        }
        bytes
    };
    // The connection must be polled meanwhile.
    let bytes = tokio::select! {
        bytes = receiving => bytes,
        _ = connection.accept() => panic!("another call, or none"),
    };
    let response = http::Response::builder().header("content-type", "application/grpc");
    let mut sender = respond
        .send_response(response.body(()).unwrap(), false)
        .unwrap();
    sender
        .send_data(Bytes::from_static(&[0; 5]), false)
        .unwrap();
    let ok = http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
    sender.send_trailers(ok).unwrap();
    // Serve until the client disconnects.
    while connection.accept().await.is_some() {}
    (parts.headers, bytes)
}

fn message(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

async fn upload(
    channel: ReadyChannel<Channel>,
    requests: Request<impl tokio_stream::Stream<Item = HealthCheckRequest> + Send + 'static>,
) -> Result<Response<HealthCheckResponse>, Status> {
    let mut client = Grpc::new(channel);
    let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let path = PathAndQuery::from_static("/test.Test/Upload");
    client.client_streaming(requests, path, codec).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_requests_is_kept_whole_and_the_timeout_is_what_is_left() {
    let client = Client::new().await;
    let timeout = Duration::from_secs(60);
    let requests = tokio_stream::iter(["a", "bc", "def"].map(message));
    let channel = client.channel.clone();
    let call = Call::start(
        Request::new(requests),
        WAITING.timeout(timeout),
        |requests| upload(channel, requests),
    );
    client.attempts(4).await;
    // The three waits between these attempts are over before an attempt finds the server.
    let left = timeout - 3 * WAIT;
    let server = tokio::spawn(receive(client.address));
    assert!(ends(call).await.is_ok());
    // The server ends when its last client is dropped.
    drop(client);
    let (headers, bytes) = ends(server).await.unwrap();
    let mut whole = Vec::new();
    for text in ["a", "bc", "def"] {
        let length = u8::try_from(text.len()).unwrap();
        whole.extend([0, 0, 0, 0, length + 2, 0x0a, length]);
        whole.extend(text.bytes());
    }
    assert_eq!(bytes, whole);
    let header = headers["grpc-timeout"].to_str().unwrap();
    let sent: u64 = header.strip_suffix('u').expect(header).parse().unwrap();
    assert!(
        Duration::from_micros(sent) <= left,
        "{header}, not {left:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_is_replaced_and_sent_calls_are_not_repeated() {
    let client = Client::new().await;
    for _ in 0..3 {
        let server = client.serve();
        let mut sent = client.watch(WAITING);
        assert!(ends(sent.message()).await.unwrap().is_some());
        drop(server);
        // The call had begun, so it fails, and must not look complete.
        assert!(ends(sent.message()).await.is_err());
        assert!(sent.done() && !sent.cancelled());
    }
    let waiting = client.check(WAITING);
    client.attempts(2).await;
    assert!(!waiting.done());
    let _server = client.serve();
    assert!(ends(waiting).await.is_ok());
}

/// The first call connects. The others continue as soon as there is a connection, without waiting
/// for the server's answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_slow_to_answer_counts_as_ready() {
    let client = Client::new().await;
    let listener = TcpListener::bind(client.address).await.unwrap();
    let calls: Vec<_> = (0..10).map(|_| client.check(WAITING)).collect();
    let (socket, _) = listener.accept().await.unwrap();
    let mut connection = h2::server::handshake(socket).await.unwrap();
    let mut unanswered = Vec::new();
    while unanswered.len() < calls.len() {
        unanswered.push(ends(connection.accept()).await.unwrap().unwrap());
    }
    assert_eq!(*client.attempts.borrow(), 1);
}
