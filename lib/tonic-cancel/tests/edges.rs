//! Edge cases: contexts used at unusual moments, and unusual server setups.

mod stage;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use stage::{Either, Player, Raw, Scene, Stage, next, player, request, soon, status_of};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Status, body::Body, transport::Server};
use tonic_cancel::{CallContext, CallContextLayer, CallEnd, CallOptions, CancelReason, Drain};
use tonic_health::pb::health_server::HealthServer;
use tonic_web::GrpcWebLayer;
use tower_layer::layer_fn;
use tower_service::Service;

/// Returns a player that runs `play` in every call, and a receiver of how each call ended.
fn reporting<F>(
    play: impl Fn(Scene) -> F + Send + Sync + 'static,
) -> (Player, UnboundedReceiver<CallEnd>)
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (ended, ends) = unbounded_channel();
    let player = player(move |scene: Scene| {
        let ended = ended.clone();
        scene.context.add_callback(move |end| {
            let _ = ended.send(end);
        });
        play(scene)
    });
    (player, ends)
}

async fn call(stage: &Stage, is_stream: bool) -> Either {
    let client = stage.client().await;
    Either::start(is_stream, &client, request(""), CallOptions::new())
}

/// The server's runtime has only the thread that the handler blocks, so only the flag can reach the
/// handler.
#[test]
fn a_handler_that_blocks_the_only_thread_sees_its_deadline_and_the_servers_cancellation() {
    for by_deadline in [true, false] {
        let (player, mut ended) = reporting(move |scene| async move {
            let (context, stop) = (scene.context.clone(), scene.context.stop_flag());
            if !by_deadline {
                std::thread::spawn(move || context.cancel());
            }
            while !stop.is_requested() {
                std::thread::yield_now();
            }
            // Too late to count as the answer.
            Ok(())
        });
        let (address, at) = std::sync::mpsc::channel();
        let server = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(async {
                let stage = Stage::start(player).await;
                address.send(stage.address).unwrap();
                let end = next(&mut ended).await;
                // Wait until the drain no longer counts the call.
                soon(stage.drain.drain(stage::PATIENCE, Duration::ZERO)).await;
                stage.drain.closed().await;
                end
            })
        });
        let client = tokio::runtime::Runtime::new().unwrap();
        let code = client.block_on(async {
            let client = stage::connect(at.recv().unwrap()).await;
            let mut options = CallOptions::new();
            if by_deadline {
                options = options.timeout(Duration::from_secs(3));
            }
            let mut call = Either::start(false, &client, request(""), options);
            call.end().await.unwrap_err().code()
        });
        let (expected, reason) = match by_deadline {
            true => (Code::DeadlineExceeded, CancelReason::DeadlineExceeded),
            false => (Code::Cancelled, CancelReason::Server),
        };
        assert_eq!(code, expected);
        let end = server.join().unwrap();
        assert_eq!((end.code, end.cancelled), (expected, Some(reason)));
    }
}

/// The call is cancelled while its handler begins, before the handler has waited for anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_can_be_cancelled_before_it_first_waits() {
    for is_stream in [false, true] {
        let (player, mut ended) = reporting(|scene| {
            // Runs when the handler is called, before the play is polled.
            assert!(scene.context.cancel());
            std::future::pending()
        });
        let stage = Stage::start(player).await;
        let status = call(&stage, is_stream).await.end().await.unwrap_err();
        assert_eq!(status.code(), Code::Cancelled);
        let end = next(&mut ended).await;
        assert_eq!(end.cancelled, Some(CancelReason::Server));
        assert_eq!(stage.drain.active_calls(), 0);
    }
}

/// A service between the layer and the handler, which cancels the call before its future exists.
#[derive(Clone)]
struct Hasty<S> {
    inner: S,
    ended: UnboundedSender<CallEnd>,
    dropped: UnboundedSender<IsPolled>,
}

type IsPolled = bool;

impl<S> Service<http::Request<Body>> for Hasty<S>
where
    S: Service<http::Request<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Watched<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let context: &CallContext = request.extensions().get().unwrap();
        let ended = self.ended.clone();
        context.add_callback(move |end| ended.send(end).unwrap());
        assert!(context.cancel_with_status(Status::aborted("before it began")));
        Watched {
            inner: Box::pin(self.inner.call(request)),
            is_polled: false,
            dropped: self.dropped.clone(),
        }
    }
}

/// When dropped, reports whether it was ever polled.
struct Watched<F> {
    inner: Pin<Box<F>>,
    is_polled: IsPolled,
    dropped: UnboundedSender<IsPolled>,
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.is_polled = true;
        self.inner.as_mut().poll(cx)
    }
}

impl<F> Drop for Watched<F> {
    fn drop(&mut self) {
        let _ = self.dropped.send(self.is_polled);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_can_be_cancelled_before_its_first_poll() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ended, mut ends) = unbounded_channel();
    let (dropped, mut drops) = unbounded_channel();
    let player = player(|_| async { panic!("the handler began") });
    let server = Server::builder()
        .layer(CallContextLayer::new())
        .layer(layer_fn(move |inner| Hasty {
            inner,
            ended: ended.clone(),
            dropped: dropped.clone(),
        }))
        .add_service(HealthServer::new(player));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let client = stage::connect(address).await;
    for is_stream in [false, true] {
        let mut call = Either::start(is_stream, &client, request(""), CallOptions::new());
        let status = call.end().await.unwrap_err();
        assert_eq!(status.code(), Code::Aborted);
        assert_eq!(status.message(), "before it began");
        let (end, is_polled) = (next(&mut ends).await, next(&mut drops).await);
        let server = Some(CancelReason::Server);
        assert_eq!((end.code, end.cancelled), (Code::Aborted, server));
        assert!(!is_polled);
    }
    assert!(ends.try_recv().is_err(), "a callback ran twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_first_cancellation_counts() {
    for is_stream in [false, true] {
        let (again, mut seen) = unbounded_channel();
        let (player, mut ended) = reporting(move |scene| {
            let again = again.clone();
            async move {
                let context = scene.context.clone();
                let within = context.clone();
                context
                    .add_callback(move |_| again.send((within.cancel(), within.clone())).unwrap());
                let status = Status::aborted("the first one counts");
                let other = context.clone();
                let first = std::thread::spawn(move || other.cancel_with_status(status));
                assert!(first.join().unwrap());
                assert!(!context.cancel());
                // The call has ended, so this message is not sent.
                scene.say();
                Ok(())
            }
        });
        let stage = Stage::start(player).await;
        let status = call(&stage, is_stream).await.end().await.unwrap_err();
        assert_eq!(status.message(), "the first one counts");
        assert_eq!(next(&mut ended).await.code, Code::Aborted);
        let (within, context) = next(&mut seen).await;
        assert!(!within && !context.cancel());
        assert_eq!(context.end().unwrap().code, Code::Aborted);
        assert!(ended.try_recv().is_err(), "a callback ran twice");
    }
}

/// A handler's stream must be dropped when its call ends, even if the client never reads.
#[tokio::test(flavor = "multi_thread")]
async fn an_unread_stream_is_dropped_when_its_call_ends() {
    // 0: the stream is never polled. 8: room for one message and a bit more.
    for window in [0, 8] {
        for by_deadline in [true, false] {
            let (began, mut contexts) = unbounded_channel();
            // When the stream is dropped, this sender is, too, and `dropped` ends.
            let (held, mut dropped) = unbounded_channel::<()>();
            let held = std::sync::Mutex::new(Some(held));
            let (player, mut ended) = reporting(move |scene: Scene| {
                let held = (scene.line == "flood").then(|| held.lock().unwrap().take());
                if held.is_some() {
                    began.send(scene.context.clone()).unwrap();
                    (0..100).for_each(|_| scene.say());
                }
                async move {
                    if held.is_none() {
                        return Err(Status::not_found("as asked"));
                    }
                    std::future::pending().await
                }
            });
            let stage = Stage::start(player).await;
            let mut raw = Raw::connect(stage.address, Some(window)).await;
            let timeout = by_deadline.then_some("1S");
            let _unread = raw.call("Watch", "flood", timeout).await;
            let context: CallContext = next(&mut contexts).await;
            if !by_deadline {
                assert!(context.cancel_with_status(Status::aborted("enough")));
            }
            let reason = match by_deadline {
                true => CancelReason::DeadlineExceeded,
                false => CancelReason::Server,
            };
            assert_eq!(next(&mut ended).await.cancelled, Some(reason));
            assert_eq!(soon(dropped.recv()).await, None);
            // The connection is still open, and so is the stream on it.
            let response = raw.call("Check", "fail", None).await;
            assert_eq!(status_of(response).await, Some(Code::NotFound));
        }
    }
}

/// A callback that panics, on any thread, blocks neither the status nor other callbacks.
#[tokio::test(flavor = "multi_thread")]
async fn a_callback_that_panics_does_not_affect_others() {
    for is_stream in [false, true] {
        let (player, mut ended) = reporting(|scene| async move {
            scene
                .context
                .add_callback(|_| panic!("a panic that this test wants"));
            scene
                .context
                .cancel_with_status(Status::aborted("all the same"));
            Ok(())
        });
        let stage = Stage::start(player).await;
        let status = call(&stage, is_stream).await.end().await.unwrap_err();
        assert_eq!(status.code(), Code::Aborted);
        assert_eq!(next(&mut ended).await.code, Code::Aborted);
        assert_eq!(stage.drain.active_calls(), 0);
    }
}

/// Handlers work without the layer; the context then reports no deadline and never ends.
#[tokio::test(flavor = "multi_thread")]
async fn handlers_work_without_the_layer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, mut contexts) = unbounded_channel::<CallContext>();
    let player = player(move |scene| {
        let sender = sender.clone();
        async move {
            let context = scene.context.clone();
            assert_eq!(context.deadline(), None);
            let is_stopping = context.run_blocking(|stop| stop.is_requested()).await?;
            assert!(!is_stopping);
            scene.say();
            sender.send(context).unwrap();
            Ok(())
        }
    });
    let server = Server::builder().add_service(HealthServer::new(player));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let client = stage::connect(address).await;
    for is_stream in [false, true] {
        let options = CallOptions::new().timeout(stage::PATIENCE);
        let mut call = Either::start(is_stream, &client, request(""), options);
        call.first().await;
        assert!(call.end().await.is_ok());
        let context = next(&mut contexts).await;
        assert!(context.is_active() && !context.is_cancelled());
    }
}

/// gRPC-Web over HTTP/1, with its layer outside of this crate's.
struct Web {
    stream: TcpStream,
    drain: Drain,
}

impl Web {
    async fn ask(player: Player, method: &str, timeout: Option<&str>) -> Web {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let drain = Drain::new();
        let server = Server::builder()
            .accept_http1(true)
            .layer(GrpcWebLayer::new())
            .layer(CallContextLayer::with_drain(drain.clone()))
            .add_service(HealthServer::new(player));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let timeout = timeout.map_or(String::new(), |value| format!("grpc-timeout: {value}\r\n"));
        let head = format!(
            "POST /grpc.health.v1.Health/{method} HTTP/1.1\r\nhost: {address}\r\n\
             content-type: application/grpc-web\r\ncontent-length: 5\r\n{timeout}\r\n\0\0\0\0\0"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        Web { stream, drain }
    }

    /// Reads until `wanted` has arrived, either in the headers or in the trailers, which are in the
    /// body.
    async fn until(&mut self, wanted: &str) {
        let mut all = Vec::new();
        soon(async {
            while !String::from_utf8_lossy(&all)
                .replace(": ", ":")
                .contains(wanted)
            {
                let count = self.stream.read_buf(&mut all).await.unwrap();
                assert!(
                    count > 0,
                    "it ended with {:?}",
                    String::from_utf8_lossy(&all)
                );
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_web_works_over_http_1() {
    for (method, is_stream) in [("Check", false), ("Watch", true)] {
        let (player, mut ended) = reporting(|scene| async move {
            scene.say();
            Ok(())
        });
        let mut web = Web::ask(player, method, None).await;
        web.until("grpc-status:0").await;
        assert_eq!(next(&mut ended).await.code, Code::Ok);

        let (player, mut ended) = reporting(|scene| async move {
            scene.say();
            std::future::pending().await
        });
        let mut web = Web::ask(player, method, Some("500m")).await;
        web.until("grpc-status:4").await;
        let passed = Some(CancelReason::DeadlineExceeded);
        assert_eq!(next(&mut ended).await.cancelled, passed, "{is_stream}");

        let began = Arc::new(tokio::sync::Notify::new());
        let notify = Arc::clone(&began);
        let (player, mut ended) = reporting(move |scene| {
            scene.say();
            notify.notify_one();
            std::future::pending()
        });
        let web = Web::ask(player, method, None).await;
        soon(began.notified()).await;
        drop(web.stream);
        let gone = Some(CancelReason::ClientGone);
        assert_eq!(next(&mut ended).await.cancelled, gone);
        let drained = soon(web.drain.drain(stage::PATIENCE, Duration::ZERO)).await;
        assert_eq!(drained.told, 0);
    }
}
