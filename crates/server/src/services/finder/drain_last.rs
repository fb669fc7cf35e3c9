//! Makes a drain wait for searches before it ends the calls that only watch them.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use hashfinder_proto::v1::finder_server::{FinderServer, SERVICE_NAME};
use http::Request;
use tonic::{body::Body, server::NamedService};
use tonic_cancel::{CallContextLayer, CallContextService, Drain};
use tower_layer::Layer;
use tower_service::Service;

use super::service::FinderService;

/// The methods whose calls do not end by themselves.
const WATCHES: [&str; 2] = [
    "hashfinder.v1.Finder/WatchSearches",
    "hashfinder.v1.Finder/WatchOperation",
];

type Server = CallContextService<FinderServer<FinderService>>;

/// The `Finder` service, with the drain that each of its methods needs. Calls that watch end by
/// themselves late or never, so they are [aside](Drain::aside); a drain waits for the calls of all
/// other methods.
#[derive(Clone)]
pub(crate) struct DrainWatchesLast {
    watches: Server,
    others: Server,
}

impl DrainWatchesLast {
    pub(crate) fn new(service: FinderService, drain: &Drain) -> DrainWatchesLast {
        let server = FinderServer::new(service);
        let last = CallContextLayer::with_drain(drain.aside());
        DrainWatchesLast {
            watches: last.layer(server.clone()),
            others: CallContextLayer::with_drain(drain.clone()).layer(server),
        }
    }
}

impl NamedService for DrainWatchesLast {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<Request<Body>> for DrainWatchesLast {
    type Response = <Server as Service<Request<Body>>>::Response;
    type Error = Infallible;
    type Future = <Server as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // A tonic server is always ready for another call.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = request.uri().path().trim_start_matches('/');
        if WATCHES.contains(&method) {
            self.watches.call(request)
        } else {
            self.others.call(request)
        }
    }
}
