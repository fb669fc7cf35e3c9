//! Runs a whole server and shuts it down through its drain: in bounded time, whatever its clients
//! do.

mod stage;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use stage::{Either, Scene, Stage, connect, next, player, request, soon};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        oneshot,
    },
    task::JoinHandle,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Status, service::LayerExt, transport::Server};
use tonic_cancel::{
    CallContext, CallContextLayer, CallOptions, CancelReason, Drain, DrainOptions, Drained,
};
use tonic_health::pb::health_server::HealthServer;

type Ended = JoinHandle<Result<Drained, tonic::transport::Error>>;

/// A server and the signal that stops it.
struct House {
    address: SocketAddr,
    drain: Drain,
    signal: oneshot::Sender<()>,
    ended: Ended,
    began: UnboundedReceiver<CallContext>,
}

async fn play(began: UnboundedSender<CallContext>, scene: Scene) -> Result<(), Status> {
    scene.say();
    tokio::task::yield_now().await;
    began.send(scene.context.clone()).unwrap();
    match scene.line.as_str() {
        "answer" => Ok(()),
        "listen" => {
            let reason = scene.context.cancelled().await;
            assert_eq!(reason, Some(CancelReason::Drain));
            Err(Status::aborted("as asked"))
        }
        // Fills every window on the way to a client that does not read.
        "flood" => loop {
            scene.say();
            tokio::task::yield_now().await;
        },
        "hang" => std::future::pending().await,
        other => panic!("no such line: {other:?}"),
    }
}

async fn open(options: DrainOptions) -> House {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, began) = unbounded_channel();
    let player = player(move |scene| play(sender.clone(), scene));
    let drain = Drain::new();
    let server = Server::builder()
        .layer(CallContextLayer::with_drain(drain.clone()))
        .add_service(HealthServer::new(player));
    let (signal, signalled) = oneshot::channel();
    let ended = tokio::spawn({
        let drain = drain.clone();
        async move {
            let signal = async { signalled.await.unwrap() };
            let incoming = TcpListenerStream::new(listener);
            drain
                .serve(signal, options, |shutdown| {
                    server.serve_with_incoming_shutdown(incoming, shutdown)
                })
                .await
        }
    });
    House {
        address,
        drain,
        signal,
        ended,
        began,
    }
}

impl House {
    async fn call(&mut self, is_stream: bool, line: &str) -> Either {
        let client = connect(self.address).await;
        let mut call = Either::start(is_stream, &client, request(line), CallOptions::new());
        next(&mut self.began).await;
        call.first().await;
        call
    }

    async fn end(self) -> Drained {
        self.signal.send(()).unwrap();
        soon(self.ended).await.unwrap().unwrap()
    }
}

/// A limit that a test never reaches: it waits for events, not for the clock.
const LONG: Duration = Duration::from_secs(3600);

fn options(grace: Duration, notice: Duration, close: Duration) -> DrainOptions {
    DrainOptions::new().grace(grace).notice(notice).close(close)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_calls_ends_at_once() {
    let mut house = open(options(LONG, LONG, LONG)).await;
    let mut client = connect(house.address).await;
    assert!(client.check(request("answer")).await.is_ok());
    next(&mut house.began).await;
    let address = house.address;
    assert_eq!(house.end().await, Drained::default());
    assert!(
        TcpStream::connect(address).await.is_err(),
        "it still accepts"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_end_by_themselves_are_waited_for() {
    let mut house = open(options(LONG, LONG, LONG)).await;
    let mut call = house.call(true, "hang").await;
    let (drain, closed) = (house.drain.clone(), house.drain.closed());
    let ended = tokio::spawn(house.end());
    soon(closed).await;
    assert!(!ended.is_finished() && drain.active_calls() == 1);
    call.cancel();
    assert_eq!(call.end().await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(soon(ended).await.unwrap(), Drained::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_asked_to_stop_and_may_answer() {
    for is_stream in [false, true] {
        let mut house = open(options(Duration::ZERO, LONG, LONG)).await;
        let mut call = house.call(is_stream, "listen").await;
        let ended = tokio::spawn(house.end());
        assert_eq!(call.end().await.unwrap_err().code(), Code::Aborted);
        let drained = soon(ended).await.unwrap();
        assert_eq!((drained.told, drained.forced), (1, 0));
        assert!(!drained.left_behind);
    }
}

/// The first reason counts, regardless of how the call ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_leave_after_its_call_was_asked_to_stop() {
    for is_stream in [false, true] {
        let mut house = open(options(Duration::ZERO, LONG, LONG)).await;
        let client = connect(house.address).await;
        let mut call = Either::start(is_stream, &client, request("hang"), CallOptions::new());
        let context = next(&mut house.began).await;
        call.first().await;
        let (sender, mut ends) = unbounded_channel();
        context.add_callback(move |end| sender.send(end).unwrap());
        let ended = tokio::spawn(house.end());
        let drain = Some(CancelReason::Drain);
        assert_eq!(soon(context.cancelled()).await, drain);
        assert!(call.cancel());
        assert_eq!(call.end().await.unwrap_err().code(), Code::Cancelled);
        let end = next(&mut ends).await;
        assert_eq!((end.code, end.cancelled), (Code::Cancelled, drain));
        assert_eq!(context.cancel_reason(), drain);
        let drained = soon(ended).await.unwrap();
        assert_eq!((drained.told, drained.forced), (1, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_do_not_listen_are_forced() {
    let mut house = open(options(Duration::ZERO, Duration::ZERO, LONG)).await;
    let mut unary = house.call(false, "hang").await;
    let mut stream = house.call(true, "hang").await;
    let ended = tokio::spawn(house.end());
    for call in [&mut unary, &mut stream] {
        assert_eq!(call.end().await.unwrap_err().code(), Code::Unavailable);
    }
    let drained = soon(ended).await.unwrap();
    assert_eq!((drained.told, drained.forced), (2, 2));
    assert!(!drained.left_behind);
}

/// tonic's own graceful shutdown waits forever for each of these peers.
#[tokio::test(flavor = "multi_thread")]
async fn peers_that_do_not_read_or_never_began_are_left_behind() {
    let close = Duration::from_millis(100);
    let mut house = open(options(Duration::ZERO, Duration::ZERO, close)).await;
    // Accepted, but never sends anything.
    let silent = TcpStream::connect(house.address).await.unwrap();
    // An incomplete HTTP/2 preface.
    let half = TcpStream::connect(house.address).await.unwrap();
    half.writable().await.unwrap();
    half.try_write(b"PRI * HTTP/2.0\r\n").unwrap();
    // A stream that floods a client that has stopped reading its socket.
    let unread = flood_unread(house.address).await;
    next(&mut house.began).await;

    let began = Instant::now();
    let drained = house.end().await;
    assert_eq!((drained.told, drained.forced), (1, 1));
    assert!(drained.left_behind);
    assert!(began.elapsed() >= close);
    drop((silent, half, unread));
}

/// Opens a raw connection with one flooded stream, then stops reading it.
async fn flood_unread(address: SocketAddr) -> impl Sized {
    let socket = TcpStream::connect(address).await.unwrap();
    let (requests, connection) = h2::client::Builder::new()
        .initial_window_size(0)
        .handshake::<_, bytes::Bytes>(socket)
        .await
        .unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = &mut connection => ended.unwrap(),
            // From here on, nothing is read, and the socket stays open.
            _ = stopped => std::future::pending().await,
        }
    });
    let mut requests = requests.ready().await.unwrap();
    let uri = format!("http://{address}/grpc.health.v1.Health/Watch");
    let head = http::Request::post(uri).header("content-type", "application/grpc");
    let (response, mut body) = requests
        .send_request(head.body(()).unwrap(), false)
        .unwrap();
    let message = b"\0\0\0\0\x07\x0a\x05flood".as_slice();
    body.send_data(message.into(), true).unwrap();
    let response = response.await.unwrap();
    stop.send(()).unwrap();
    (requests, response, body)
}

/// While connections close, the drain waits for the work of ended calls. The result reports work
/// that does not end.
#[tokio::test(flavor = "multi_thread")]
async fn work_that_does_not_end_is_reported() {
    for ends in [true, false] {
        let close = if ends {
            LONG
        } else {
            Duration::from_millis(100)
        };
        let mut house = open(options(Duration::ZERO, Duration::ZERO, close)).await;
        let client = connect(house.address).await;
        let mut call = Either::start(false, &client, request("hang"), CallOptions::new());
        let context = next(&mut house.began).await;
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (working_sender, mut is_working) = unbounded_channel();
        let working = tokio::spawn(async move {
            let work = move |_stop| {
                working_sender.send(()).unwrap();
                held.recv().unwrap();
            };
            context.run_blocking(work).await
        });
        let drain = house.drain.clone();
        // Wait for the work to begin: otherwise a stop request would keep it from beginning.
        next(&mut is_working).await;
        assert_eq!(drain.active_work(), 1);
        let ended = tokio::spawn(house.end());
        assert_eq!(call.end().await.unwrap_err().code(), Code::Unavailable);
        if ends {
            release.send(()).unwrap();
            assert_eq!(soon(ended).await.unwrap().working, 0);
        } else {
            assert_eq!(soon(ended).await.unwrap().working, 1);
            release.send(()).unwrap();
        }
        assert!(soon(working).await.unwrap().is_ok());
        assert_eq!(drain.active_work(), 0);
    }
}

/// Health watches are served until the other calls have ended, and do not delay the drain.
#[tokio::test(flavor = "multi_thread")]
async fn calls_aside_are_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, mut began) = unbounded_channel();
    let aside_player = player(move |scene| play(sender.clone(), scene));
    let drain = Drain::new();
    let aside = CallContextLayer::with_drain(drain.aside());
    let server = Server::builder().add_service(aside.named_layer(HealthServer::new(aside_player)));
    let (signal, signalled) = oneshot::channel();
    // Another server, whose calls belong to the main drain.
    let (sender, mut began_there) = unbounded_channel();
    let there = Stage::sharing(
        drain.clone(),
        player(move |scene| play(sender.clone(), scene)),
    );
    let there = there.await;
    let other = there.client().await;
    let mut other = Either::start(false, &other, request("hang"), CallOptions::new());
    next(&mut began_there).await;

    let closed = drain.closed();
    let ended = tokio::spawn({
        let drain = drain.clone();
        async move {
            let signal = async { signalled.await.unwrap() };
            let incoming = TcpListenerStream::new(listener);
            let options = options(LONG, LONG, LONG);
            let serving = drain.serve(signal, options, |shutdown| {
                server.serve_with_incoming_shutdown(incoming, shutdown)
            });
            serving.await
        }
    });
    let client = connect(address).await;
    let mut watching = Either::start(true, &client, request("hang"), CallOptions::new());
    next(&mut began).await;
    watching.first().await;
    signal.send(()).unwrap();
    soon(closed).await;
    assert!(!ended.is_finished());
    // When the last call of the main drain has ended, the drain ends the watch, too.
    other.cancel();
    assert_eq!(other.end().await.unwrap_err().code(), Code::Cancelled);
    let status = watching.end().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let drained = soon(ended).await.unwrap().unwrap();
    assert_eq!(drained, Drained::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_or_ends_before_the_signal_says_so() {
    let drain = Drain::new();
    let never = std::future::pending;
    let failed = drain.serve(never(), DrainOptions::new(), |_| async { Err("no socket") });
    assert_eq!(soon(failed).await, Err("no socket"));
    let ended = drain.serve(never(), DrainOptions::new(), |_| async { Ok::<(), ()>(()) });
    assert_eq!(soon(ended).await, Ok(Drained::default()));
    // A server that fails after the signal also reports its error, although it was drained.
    let failed = drain.serve(
        std::future::ready(()),
        DrainOptions::new(),
        |closed| async {
            closed.await;
            Err("broken")
        },
    );
    assert_eq!(soon(failed).await, Err("broken"));
}

/// A program drops the future on a second signal. This closes the socket at once.
#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_future_closes_the_socket() {
    let mut house = open(options(LONG, LONG, LONG)).await;
    let mut call = house.call(true, "hang").await;
    house.signal.send(()).unwrap();
    soon(house.drain.closed()).await;
    house.ended.abort();
    assert!(soon(house.ended).await.unwrap_err().is_cancelled());
    assert!(
        TcpStream::connect(house.address).await.is_err(),
        "it still accepts"
    );
    // The calls stay with the runtime, and can still be ended.
    assert_eq!(house.drain.active_calls(), 1);
    house.drain.drain(Duration::ZERO, Duration::ZERO).await;
    assert_eq!(call.end().await.unwrap_err().code(), Code::Unavailable);
}
