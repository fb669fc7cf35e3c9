//! A handler that keeps a core busy, and stops as soon as nobody wants its answer any more.
//!
//! `cargo run --example cpu_bound` starts a server, calls it with a deadline that it cannot keep, and
//! shows that the work has stopped.
//!
//! The service is gRPC's health check because it is at hand; any that tonic generates is used alike.

#![allow(
    clippy::print_stdout,
    missing_docs,
    reason = "a program that shows what happens"
)]

use std::{
    error::Error,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio_stream::Stream;
use tonic::{
    Code, Request, Response, Status,
    transport::{Endpoint, Server, server::TcpIncoming},
};
use tonic_cancel::{Call, CallContext, CallContextLayer, CallOptions, StopFlag, WorkLimit};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};

/// Counts as far as it is asked to.
struct Counter {
    /// Not more at a time than there are cores; the others wait.
    limit: WorkLimit,
    /// How many counts were broken off.
    stopped: Arc<AtomicU64>,
}

/// The work. It knows nothing of gRPC: it looks at a flag, which costs one atomic load.
fn count(most: u64, stop: &StopFlag) -> u64 {
    let mut number = 0;
    while number < most && !stop.is_requested() {
        number += 1;
    }
    number
}

#[tonic::async_trait]
impl Health for Counter {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let context = CallContext::of(&request);
        let most = request.into_inner().service.parse();
        let most = most.map_err(|_| Status::invalid_argument("service: give a number"))?;
        // The guard goes with the work, so that a client that leaves in a hurry makes no room for more
        // before its work has really ended.
        let guard = self.limit.begin(&context).await?;
        let stopped = Arc::clone(&self.stopped);
        let work = context.run_blocking(move |stop| {
            let _guard = guard;
            let counted = count(most, &stop);
            stopped.fetch_add(u64::from(counted < most), Ordering::SeqCst);
        });
        work.await?;
        Ok(Response::new(HealthCheckResponse { status: 1 }))
    }

    type WatchStream =
        Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send + 'static>>;

    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("there is nothing to watch"))
    }
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let limit = WorkLimit::new(std::thread::available_parallelism()?.get());
    let stopped = Arc::new(AtomicU64::new(0));
    let counter = Counter {
        limit: limit.clone(),
        stopped: Arc::clone(&stopped),
    };
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?;
    let address = incoming.local_addr()?;
    let server = Server::builder()
        .layer(CallContextLayer::new())
        .add_service(HealthServer::new(counter));
    tokio::spawn(server.serve_with_incoming(incoming));

    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect_lazy();
    let ask = |most: u64, timeout: Duration| {
        let mut client = HealthClient::new(channel.clone());
        let request = Request::new(HealthCheckRequest {
            service: most.to_string(),
        });
        let options = CallOptions::new().timeout(timeout);
        Call::start(request, options, |request| async move {
            client.check(request).await
        })
    };

    ask(1_000, Duration::from_secs(10)).await?;
    println!("to a thousand: done");

    let status = ask(u64::MAX, Duration::from_millis(50)).await.unwrap_err();
    println!("to the end of all numbers: {}", status.message());
    assert_eq!(status.code(), Code::DeadlineExceeded);
    // The caller knows at once; the core is free when the work has looked at its flag.
    while limit.active_work() > 0 {
        tokio::task::yield_now().await;
    }
    println!(
        "counts that were broken off: {}",
        stopped.load(Ordering::SeqCst)
    );
    assert_eq!(stopped.load(Ordering::SeqCst), 1);
    Ok(())
}
