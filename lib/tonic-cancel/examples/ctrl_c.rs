//! A client that stops on ctrl-C, and a server that then drains.
//!
//! `cargo run --example ctrl_c` runs both in one process. Press ctrl-C: the client's stream is
//! cancelled, the server reports why its call ended, and drains.

#![allow(
    clippy::print_stdout,
    missing_docs,
    reason = "a program that shows what happens"
)]

use std::{
    error::Error,
    io::{Write, stdout},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{signal::ctrl_c, sync::oneshot};
use tokio_stream::Stream;
use tonic::{
    Request, Response, Status,
    transport::{Endpoint, Server, server::TcpIncoming},
};
use tonic_cancel::{
    CallContext, CallContextLayer, CallOptions, Drain, DrainOptions, StreamingCall,
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};

/// Answers with a stream that sends one message and never ends.
struct Endless;

#[tonic::async_trait]
impl Health for Endless {
    async fn check(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        Err(Status::unimplemented("this server has only a stream"))
    }

    type WatchStream = OneMessage;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<OneMessage>, Status> {
        CallContext::of(&request).add_callback(|end| {
            let why = end
                .cancelled
                .map_or("completed".to_owned(), |why| why.to_string());
            println!("the server's call has ended: {why}");
        });
        Ok(Response::new(OneMessage { sent: false }))
    }
}

struct OneMessage {
    sent: bool,
}

impl Stream for OneMessage {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::replace(&mut self.sent, true) {
            return Poll::Pending;
        }
        Poll::Ready(Some(Ok(HealthCheckResponse { status: 1 })))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?;
    let address = incoming.local_addr()?;
    let drain = Drain::new();
    let server = Server::builder()
        .layer(CallContextLayer::with_drain(drain.clone()))
        .add_service(HealthServer::new(Endless));
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(async move {
        // A dropped sender counts as the signal, too.
        let signal = async { drop(stopped.await) };
        let options = DrainOptions::new();
        let serve = |shutdown| server.serve_with_incoming_shutdown(incoming, shutdown);
        drain.serve(signal, options, serve).await
    });

    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect_lazy();
    let mut client = HealthClient::new(channel);
    let request = Request::new(HealthCheckRequest::default());
    let mut call = StreamingCall::start(request, CallOptions::new(), |request| async move {
        client.watch(request).await
    });
    let canceller = call.canceller();
    tokio::spawn(async move {
        if ctrl_c().await.is_ok() {
            canceller.cancel_with_reason("ctrl-C");
        }
    });

    while let Some(message) = call.message().await.transpose() {
        match message {
            Ok(_) => {
                println!("a message; press ctrl-C");
                stdout().flush()?;
            }
            Err(status) => println!("the call is over: {}", status.message()),
        }
    }
    let _ = stop.send(());
    let drained = serving.await??;
    println!("drained; calls that had to be ended: {}", drained.forced);
    Ok(())
}
