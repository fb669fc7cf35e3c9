//! A client's messages, up to their end or to the point where they were cut off, read by a task
//! that outlives its handler.
//!
//! The service is gRPC's reflection service, which has a method whose client streams.

mod stage;

use std::{net::SocketAddr, pin::Pin, time::Duration};

use stage::{next, soon};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};
use tokio_stream::{
    Stream,
    wrappers::{TcpListenerStream, UnboundedReceiverStream},
};
use tonic::{
    Code, Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server},
};
use tonic_cancel::{CallContext, CallContextLayer, CancelReason, Drain};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse,
    server_reflection_client::ServerReflectionClient,
    server_reflection_server::{ServerReflection, ServerReflectionServer},
};

#[derive(Debug, PartialEq)]
enum Seen {
    Message(String),
    /// How the messages ended, as reported by `Requests`.
    End(Result<(), Code>),
}

/// Reads the messages in a separate task.
struct Reader {
    seen: UnboundedSender<Seen>,
    contexts: UnboundedSender<CallContext>,
    /// Whether the handler answers at once and leaves the task behind.
    answers: bool,
}

#[tonic::async_trait]
impl ServerReflection for Reader {
    type ServerReflectionInfoStream =
        Pin<Box<dyn Stream<Item = Result<ServerReflectionResponse, Status>> + Send>>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let context = CallContext::of(&request);
        let mut messages = context.requests(request.into_inner());
        let seen = self.seen.clone();
        tokio::spawn(async move {
            loop {
                let next = match messages.message().await {
                    Ok(Some(message)) => Seen::Message(message.host),
                    Ok(None) => Seen::End(Ok(())),
                    Err(status) => Seen::End(Err(status.code())),
                };
                let is_end = matches!(next, Seen::End(_));
                seen.send(next).unwrap();
                if is_end {
                    // After the end, `message` returns `None`.
                    assert!(messages.message().await.unwrap().is_none());
                    return;
                }
            }
        });
        self.contexts.send(context).unwrap();
        if self.answers {
            return Ok(Response::new(Box::pin(tokio_stream::empty())));
        }
        Ok(Response::new(Box::pin(tokio_stream::pending())))
    }
}

struct House {
    address: SocketAddr,
    drain: Drain,
    seen: UnboundedReceiver<Seen>,
    contexts: UnboundedReceiver<CallContext>,
    client: ServerReflectionClient<Channel>,
}

impl House {
    async fn new(answers: bool) -> House {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, seen) = unbounded_channel();
        let (contexts, contexts_seen) = unbounded_channel();
        let drain = Drain::new();
        let reader = Reader {
            seen: sender,
            contexts,
            answers,
        };
        let server = Server::builder()
            .layer(CallContextLayer::with_drain(drain.clone()))
            .add_service(ServerReflectionServer::new(reader))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        House {
            address,
            drain,
            seen,
            contexts: contexts_seen,
            client: connect(address).await,
        }
    }

    /// Starts a call that has sent "one" and "two". Returns the sender for more.
    async fn begin(&mut self) -> (Messages, UnboundedSender<ServerReflectionRequest>) {
        let (sender, messages) = unbounded_channel();
        for host in ["one", "two"] {
            sender.send(message(host)).unwrap();
        }
        let messages = UnboundedReceiverStream::new(messages);
        let response = self.client.server_reflection_info(messages);
        (soon(response).await.unwrap().into_inner(), sender)
    }

    /// Like `begin`, but waits until both messages have been read.
    async fn call(&mut self) -> (Messages, UnboundedSender<ServerReflectionRequest>) {
        let call = self.begin().await;
        for host in ["one", "two"] {
            assert_eq!(next(&mut self.seen).await, Seen::Message(host.to_owned()));
        }
        call
    }

    async fn end(&mut self) -> Result<(), Code> {
        match next(&mut self.seen).await {
            Seen::End(end) => end,
            other => panic!("not an end: {other:?}"),
        }
    }
}

async fn connect(address: SocketAddr) -> ServerReflectionClient<Channel> {
    let endpoint = Endpoint::try_from(format!("http://{address}")).unwrap();
    ServerReflectionClient::new(endpoint.connect().await.unwrap())
}

type Messages = Streaming<ServerReflectionResponse>;

fn message(host: &str) -> ServerReflectionRequest {
    ServerReflectionRequest {
        host: host.to_owned(),
        message_request: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_ends_its_messages() {
    let mut house = House::new(false).await;
    let (_response, sender) = house.call().await;
    sender.send(message("three")).unwrap();
    drop(sender);
    assert_eq!(
        next(&mut house.seen).await,
        Seen::Message("three".to_owned())
    );
    assert_eq!(house.end().await, Ok(()));
}

/// In this case, tonic's own stream ends as if the client had sent everything.
#[tokio::test(flavor = "multi_thread")]
async fn the_client_leaves_before_its_last_message() {
    for reason in [h2::Reason::CANCEL, h2::Reason::NO_ERROR] {
        let mut house = House::new(false).await;
        // tonic's client does not reset a stream while it has something to send.
        let socket = TcpStream::connect(house.address).await.unwrap();
        let (requests, connection) = h2::client::handshake(socket).await.unwrap();
        tokio::spawn(connection);
        let method = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        let uri = format!("http://{}/{method}", house.address);
        let head = http::Request::post(uri).header("content-type", "application/grpc");
        let mut requests = requests.ready().await.unwrap();
        let head = head.body(()).unwrap();
        let (_response, mut body) = requests.send_request(head, false).unwrap();
        let one = b"\0\0\0\0\x05\x0a\x03one".as_slice();
        body.send_data(bytes::Bytes::from(one), false).unwrap();
        assert_eq!(next(&mut house.seen).await, Seen::Message("one".to_owned()));
        let context = next(&mut house.contexts).await;
        body.send_reset(reason);
        assert_eq!(house.end().await, Err(Code::Cancelled));
        assert_eq!(
            soon(context.cancelled()).await,
            Some(CancelReason::ClientGone)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_leaves_after_its_last_message() {
    let mut house = House::new(false).await;
    let (response, sender) = house.call().await;
    drop(sender);
    assert_eq!(house.end().await, Ok(()));
    drop(response);
    let context = next(&mut house.contexts).await;
    assert_eq!(
        soon(context.cancelled()).await,
        Some(CancelReason::ClientGone)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_dies() {
    let mut house = House::new(false).await;
    // A client on a separate runtime, which is shut down with all its tasks.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let address = house.address;
    let (response, messages) = runtime
        .spawn(async move {
            let mut client = connect(address).await;
            let (sender, messages) = unbounded_channel();
            sender.send(message("one")).unwrap();
            let messages = UnboundedReceiverStream::new(messages);
            (client.server_reflection_info(messages).await, sender)
        })
        .await
        .unwrap();
    assert_eq!(next(&mut house.seen).await, Seen::Message("one".to_owned()));
    runtime.shutdown_background();
    assert_eq!(house.end().await, Err(Code::Cancelled));
    drop((response, messages));
}

/// The client would continue to send, but its remaining messages are no longer needed.
#[tokio::test(flavor = "multi_thread")]
async fn the_call_ends_before_the_messages() {
    let mut house = House::new(true).await;
    let (_response, _sender) = house.begin().await;
    // The handler may have answered before the messages arrived.
    let end = loop {
        if let Seen::End(end) = next(&mut house.seen).await {
            break end;
        }
    };
    assert_eq!(end, Err(Code::Cancelled));

    let mut house = House::new(false).await;
    let (_response, _sender) = house.call().await;
    let drained = house.drain.drain(Duration::ZERO, Duration::ZERO).await;
    assert_eq!((drained.told, drained.forced), (1, 1));
    assert_eq!(house.end().await, Err(Code::Unavailable));

    let mut house = House::new(false).await;
    let (_response, _sender) = house.call().await;
    assert!(next(&mut house.contexts).await.cancel());
    assert_eq!(house.end().await, Err(Code::Cancelled));
}
