//! A drain waits for searches, and for nobody who watches them.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use http::Request;
use tonic::{body::Body, server::NamedService};
use tonic_cancel::{CallContextLayer, CallContextService, Drain};
use tower_layer::Layer;
use tower_service::Service;

use super::{FinderService, WATCH_SEARCHES};
use crate::rpc::v1pb::finder_server::{FinderServer, SERVICE_NAME};

type Server = CallContextService<FinderServer<FinderService>>;

/// The service, each of whose calls a drain ends as befits it: WatchSearches, which never ends of itself,
/// is [aside](Drain::aside), and whatever else there is is waited for.
#[derive(Clone)]
pub(crate) struct WatchAside {
    watch: Server,
    others: Server,
}

impl WatchAside {
    pub(crate) fn new(service: FinderService, drain: &Drain) -> WatchAside {
        let server = FinderServer::new(service);
        let aside = CallContextLayer::with_drain(drain.aside());
        WatchAside {
            watch: aside.layer(server.clone()),
            others: CallContextLayer::with_drain(drain.clone()).layer(server),
        }
    }
}

impl NamedService for WatchAside {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<Request<Body>> for WatchAside {
    type Response = <Server as Service<Request<Body>>>::Response;
    type Error = Infallible;
    type Future = <Server as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // A tonic server takes any number of calls.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = request.uri().path().trim_start_matches('/');
        if method == WATCH_SEARCHES {
            self.watch.call(request)
        } else {
            self.others.call(request)
        }
    }
}
