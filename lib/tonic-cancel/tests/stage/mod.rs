//! A server on a real socket whose handlers are defined by the test, and clients for it.
//!
//! The service is gRPC's health service: `check` is its unary method, `watch` its streaming one,
//! and the same play runs in both.

#![allow(dead_code, reason = "every test uses a part of it")]

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::HeaderMap;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};
use tokio_stream::{Stream, wrappers::TcpListenerStream};
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};
use tonic_cancel::{Call, CallContext, CallContextLayer, CallOptions, Drain, StreamingCall};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};

/// Maximum time that a test waits for an event.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for an event that must happen.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("the event did not happen in time")
}

/// Returns the next reported event.
pub(crate) async fn next<T>(receiver: &mut UnboundedReceiver<T>) -> T {
    soon(receiver.recv())
        .await
        .expect("every sender is dropped")
}

/// One call, as seen by a play.
pub(crate) struct Scene {
    pub(crate) context: CallContext,
    /// The requested service name.
    pub(crate) line: String,
    pub(crate) is_stream: bool,
    messages: UnboundedSender<HealthCheckResponse>,
}

impl Scene {
    /// Sends a message in a streaming call; does nothing in a unary call.
    pub(crate) fn say(&self) {
        let _ = self.messages.send(HealthCheckResponse::default());
    }
}

type Playing = Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;

#[derive(Clone)]
pub(crate) struct Player(Arc<dyn Fn(Scene) -> Playing + Send + Sync>);

/// Creates a player that runs `play` in every call.
pub(crate) fn player<F>(play: impl Fn(Scene) -> F + Send + Sync + 'static) -> Player
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    Player(Arc::new(move |scene| Box::pin(play(scene))))
}

impl Player {
    fn begin(
        &self,
        request: &Request<HealthCheckRequest>,
        is_stream: bool,
    ) -> (Playing, UnboundedReceiver<HealthCheckResponse>) {
        let (messages, said) = unbounded_channel();
        let playing = self.0(Scene {
            context: CallContext::of(request),
            line: request.get_ref().service.clone(),
            is_stream,
            messages,
        });
        (playing, said)
    }
}

#[tonic::async_trait]
impl Health for Player {
    type WatchStream = Messages;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let (playing, _said) = self.begin(&request, false);
        playing.await?;
        Ok(Response::new(HealthCheckResponse::default()))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Messages>, Status> {
        let (playing, said) = self.begin(&request, true);
        let playing = Some(playing);
        Ok(Response::new(Messages { playing, said }))
    }
}

/// The messages of a play, then its status.
pub(crate) struct Messages {
    playing: Option<Playing>,
    said: UnboundedReceiver<HealthCheckResponse>,
}

impl Stream for Messages {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // Send pending messages before the play can panic or end.
        if let Poll::Ready(Some(message)) = self.said.poll_recv(cx) {
            return Poll::Ready(Some(Ok(message)));
        }
        let Some(playing) = &mut self.playing else {
            return Poll::Ready(None);
        };
        let ended = playing.as_mut().poll(cx);
        if let Poll::Ready(Some(message)) = self.said.poll_recv(cx) {
            if let Poll::Ready(result) = ended {
                self.playing = Some(Box::pin(std::future::ready(result)));
            }
            return Poll::Ready(Some(Ok(message)));
        }
        match ended {
            Poll::Ready(result) => {
                self.playing = None;
                Poll::Ready(result.err().map(Err))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

/// A server whose handlers are a [`Player`].
pub(crate) struct Stage {
    pub(crate) address: SocketAddr,
    pub(crate) drain: Drain,
    /// The server's task, which a test may abort.
    pub(crate) server: tokio::task::JoinHandle<()>,
}

impl Stage {
    pub(crate) async fn start(player: Player) -> Stage {
        Stage::with(|layer| layer, player).await
    }

    pub(crate) async fn sharing(drain: Drain, player: Player) -> Stage {
        Stage::of(drain, |layer| layer, player).await
    }

    pub(crate) async fn with(
        rules: impl FnOnce(CallContextLayer) -> CallContextLayer,
        service: impl Health,
    ) -> Stage {
        Stage::of(Drain::new(), rules, service).await
    }

    async fn of(
        drain: Drain,
        rules: impl FnOnce(CallContextLayer) -> CallContextLayer,
        service: impl Health,
    ) -> Stage {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder()
            .layer(rules(CallContextLayer::with_drain(drain.clone())))
            .add_service(HealthServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener));
        Stage {
            address,
            drain,
            server: tokio::spawn(async { server.await.unwrap() }),
        }
    }

    pub(crate) async fn client(&self) -> HealthClient<Channel> {
        connect(self.address).await
    }
}

pub(crate) async fn connect(address: SocketAddr) -> HealthClient<Channel> {
    let endpoint = Endpoint::try_from(format!("http://{address}")).unwrap();
    HealthClient::new(soon(endpoint.connect()).await.unwrap())
}

pub(crate) fn request(line: &str) -> Request<HealthCheckRequest> {
    Request::new(HealthCheckRequest {
        service: line.to_owned(),
    })
}

/// A running call of either kind.
pub(crate) enum Either {
    Unary(Call<HealthCheckResponse>),
    Stream(StreamingCall<HealthCheckResponse>),
}

impl Either {
    pub(crate) fn start(
        is_stream: bool,
        client: &HealthClient<Channel>,
        request: Request<HealthCheckRequest>,
        options: CallOptions,
    ) -> Either {
        let mut client = client.clone();
        if is_stream {
            Either::Stream(StreamingCall::start(
                request,
                options,
                |request| async move { client.watch(request).await },
            ))
        } else {
            Either::Unary(Call::start(request, options, |request| async move {
                client.check(request).await
            }))
        }
    }

    /// Waits for a stream's first message, which shows that its play is running.
    pub(crate) async fn first(&mut self) {
        if let Either::Stream(call) = self {
            assert!(soon(call.message()).await.unwrap().is_some());
        }
    }

    /// Waits for the end of the call.
    pub(crate) async fn end(&mut self) -> Result<(), Status> {
        match self {
            Either::Unary(call) => soon(call).await.map(drop),
            Either::Stream(call) => {
                while soon(call.message()).await?.is_some() {}
                Ok(())
            }
        }
    }

    pub(crate) fn cancel(&self) -> bool {
        match self {
            Either::Unary(call) => call.cancel(),
            Either::Stream(call) => call.cancel(),
        }
    }
}

/// An HTTP/2 client without gRPC.
pub(crate) struct Raw {
    requests: h2::client::SendRequest<bytes::Bytes>,
    authority: String,
}

impl Raw {
    pub(crate) async fn connect(address: SocketAddr, window: Option<u32>) -> Raw {
        let socket = TcpStream::connect(address).await.unwrap();
        let mut builder = h2::client::Builder::new();
        if let Some(window) = window {
            builder.initial_window_size(window);
        }
        let (requests, connection) = builder.handshake(socket).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        Raw {
            requests,
            authority: address.to_string(),
        }
    }

    pub(crate) async fn call(
        &mut self,
        method: &str,
        line: &str,
        timeout: Option<&str>,
    ) -> http::Response<h2::RecvStream> {
        let uri = format!("http://{}/grpc.health.v1.Health/{method}", self.authority);
        let mut request = http::Request::post(uri)
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(timeout) = timeout {
            request = request.header("grpc-timeout", timeout);
        }
        let request = request.body(()).unwrap();
        let mut requests = self.requests.clone().ready().await.unwrap();
        let (response, mut body) = requests.send_request(request, false).unwrap();
        // The message: a length prefix, then field 1, the service name.
        let mut message = vec![0, 0, 0, 0, line.len() as u8 + 2];
        message.extend([0x0a, line.len() as u8]);
        message.extend(line.as_bytes());
        // A server that rejected the call by its headers may already have closed the stream.
        let _ = body.send_data(message.into(), true);
        soon(response).await.unwrap()
    }
}

/// Returns the status of a response, from its headers or its trailers.
pub(crate) async fn status_of(response: http::Response<h2::RecvStream>) -> Option<Code> {
    let code = |headers: &HeaderMap| Status::from_header_map(headers).map(|s| s.code());
    let (parts, mut body) = response.into_parts();
    if let Some(code) = code(&parts.headers) {
        return Some(code);
    }
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    code(&body.trailers().await.unwrap()?)
}
