//! Tests that a connection survives 100,000 cancelled calls with the settings from the crate's
//! docs.

use std::{
    env,
    net::Ipv4Addr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{
    Code, Request, Response, Status,
    transport::{Endpoint, Server},
};
use tonic_cancel::{CallOptions, StreamingCall};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};

/// Number of streams to start and cancel, unless CANCELLED_STREAMS is set: enough to close a
/// connection on which either setting is missing.
const STREAMS: u32 = 100_000;

/// Number of calls under way at a time.
const AT_A_TIME: usize = 8;

/// Sends small messages endlessly, so that some are in flight whenever a call is cancelled.
struct Endless;

type Messages = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Health for Endless {
    type WatchStream = Messages;

    async fn check(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse::default()))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Messages>, Status> {
        // With room for only one message, each message is sent in a separate frame.
        let (sender, messages) = mpsc::channel(1);
        tokio::spawn(async move {
            let message = HealthCheckResponse { status: 1 };
            while sender.send(Ok(message)).await.is_ok() {}
        });
        let messages = ReceiverStream::new(messages);
        Ok(Response::new(Box::pin(messages)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_outlives_its_cancelled_streams() {
    let streams = env::var("CANCELLED_STREAMS").map_or(STREAMS, |text| text.parse().unwrap());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let accepted = Arc::clone(&connections);
    let incoming = TcpListenerStream::new(listener).map(move |socket| {
        accepted.fetch_add(1, Ordering::Relaxed);
        socket
    });
    let server = Server::builder()
        .add_service(HealthServer::new(Endless))
        .serve_with_incoming(incoming);
    tokio::spawn(server);

    let channel = Endpoint::try_from(address)
        .unwrap()
        .http2_max_local_error_reset_streams(None)
        .initial_connection_window_size((1 << 31) - 1)
        .connect_lazy();
    let client = HealthClient::new(channel);
    let left = Arc::new(AtomicU32::new(streams));
    let cancelling = (0..AT_A_TIME).map(|_| {
        let (client, left) = (client.clone(), Arc::clone(&left));
        tokio::spawn(async move {
            let take = |left: u32| left.checked_sub(1);
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .is_ok()
            {
                let mut client = client.clone();
                let request = Request::new(HealthCheckRequest::default());
                let mut call =
                    StreamingCall::start(request, CallOptions::new(), |request| async move {
                        client.watch(request).await
                    });
                assert!(call.message().await.unwrap().is_some());
                assert!(call.cancel());
                let status = loop {
                    if let Err(status) = call.message().await {
                        break status;
                    }
                };
                assert_eq!(status.code(), Code::Cancelled, "{status}");
            }
        })
    });
    for task in cancelling.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let mut client = client;
    assert!(client.check(HealthCheckRequest::default()).await.is_ok());
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}
