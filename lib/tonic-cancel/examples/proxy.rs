//! A handler that calls another server, and propagates its caller's deadline and cancellation.
//!
//! `cargo run --example proxy` runs a client, a proxy and a backend. The client cancels, and the
//! backend is notified.

#![allow(
    clippy::print_stdout,
    missing_docs,
    reason = "a program that shows what happens"
)]

use std::{error::Error, net::SocketAddr, pin::Pin, time::Duration};

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tonic_cancel::{Call, CallContext, CallContextLayer, CallEnd, CallOptions, CancelReason};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};

/// Forwards every call.
struct Proxy {
    backend: HealthClient<Channel>,
}

#[tonic::async_trait]
impl Health for Proxy {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let context = CallContext::of(&request);
        // The outgoing call gets the remaining time, and is cancelled when this call ends.
        let onward = context.outgoing(Request::new(request.into_inner()));
        let mut backend = self.backend.clone();
        let call = Call::start(onward, CallOptions::new(), |onward| async move {
            backend.check(onward).await
        });
        call.await
    }

    type WatchStream = Nothing;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Nothing>, Status> {
        Err(Status::unimplemented("this proxy has only unary calls"))
    }
}

/// Never answers, and reports how its calls begin and end.
struct Backend {
    begun: mpsc::UnboundedSender<Option<Duration>>,
    ended: mpsc::UnboundedSender<CallEnd>,
}

#[tonic::async_trait]
impl Health for Backend {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let context = CallContext::of(&request);
        let ended = self.ended.clone();
        // The receiver may be gone.
        context.add_callback(move |end| {
            let _ = ended.send(end);
        });
        let _ = self.begun.send(context.time_remaining());
        std::future::pending().await
    }

    type WatchStream = Nothing;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Nothing>, Status> {
        Err(Status::unimplemented("this backend has only unary calls"))
    }
}

type Nothing = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

/// Serves on a free port.
fn serve(service: impl Health) -> Result<SocketAddr, Box<dyn Error>> {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?;
    let address = incoming.local_addr()?;
    let server = Server::builder()
        .layer(CallContextLayer::new())
        .add_service(HealthServer::new(service));
    tokio::spawn(server.serve_with_incoming(incoming));
    Ok(address)
}

fn client(address: SocketAddr) -> Result<HealthClient<Channel>, Box<dyn Error>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    Ok(HealthClient::new(endpoint.connect_lazy()))
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let (begun, mut begins) = mpsc::unbounded_channel();
    let (ended, mut ends) = mpsc::unbounded_channel();
    let backend = serve(Backend { begun, ended })?;
    let proxy = serve(Proxy {
        backend: client(backend)?,
    })?;

    let mut client = client(proxy)?;
    let request = Request::new(HealthCheckRequest::default());
    let options = CallOptions::new().timeout(Duration::from_secs(60));
    let call = Call::start(request, options, |request| async move {
        client.check(request).await
    });

    let left = begins
        .recv()
        .await
        .flatten()
        .ok_or("the deadline got lost")?;
    println!("the backend has {left:.0?} left of the client's minute");
    assert!(left <= Duration::from_secs(60));

    call.cancel_with_reason("the result is no longer needed");
    println!("the client: {}", call.await.unwrap_err().message());
    let end = ends.recv().await.ok_or("the backend's call never ended")?;
    println!(
        "the backend: {}",
        end.cancelled
            .map_or("completed".to_owned(), |why| why.to_string())
    );
    assert_eq!(end.cancelled, Some(CancelReason::ClientGone));
    Ok(())
}
