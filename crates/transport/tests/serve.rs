//! Tests a whole listener, with a service that answers every request and an HTTP/2 client.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    num::NonZeroUsize,
    sync::Arc,
    task::{Context, Poll},
};

use hashfinder_transport::{Counts, Listener, OpenCall, Peer, Server, Settings};
use http::{Request, Response};
use tokio::{io::AsyncReadExt, net::TcpStream, sync::oneshot, task::JoinHandle};
use tonic::body::Body;
use tower_service::Service;

/// Answers every request with the client's name.
#[derive(Clone)]
struct Caller;

impl Service<Request<Body>> for Caller {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let peer = request.extensions().get::<Peer>().expect("a peer");
        let open = request.extensions().get::<OpenCall>().expect("a call");
        assert_eq!(open.unread_for(), None);
        let client = peer.client().to_string();
        let mut response = Response::new(Body::empty());
        let client = client.parse().expect("a client's name is plain");
        response.headers_mut().insert("client", client);
        ready(Ok(response))
    }
}

/// Starts a server with these settings. Returns its address, a sender that stops it, and a handle
/// to wait for its end.
fn serve(settings: &Settings) -> (String, oneshot::Sender<()>, JoinHandle<()>) {
    let listener = Listener::tcp(&["127.0.0.1:0".parse().unwrap()], false).unwrap();
    let address = listener.address().unwrap();
    let limits = settings.limits(1024).unwrap();
    let server = Server::new(Caller, None, limits, Counts::default(), Arc::new(|_| {}));
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = async move {
        let stopped = async {
            let _ = stopped.await;
        };
        server.serve(listener, stopped).await.unwrap();
    };
    (address, stop, tokio::spawn(serving))
}

async fn get(address: &str) -> Response<h2::RecvStream> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let (mut client, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://localhost/").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    response.await.unwrap()
}

#[tokio::test]
async fn a_request_carries_its_peer_and_its_call() {
    let (address, stop, served) = serve(&Settings::default());
    let response = get(&address).await;
    assert_eq!(response.headers()["client"], "ip:127.0.0.1");
    drop(response);
    stop.send(()).unwrap();
    served.await.unwrap();
}

#[tokio::test]
async fn a_silent_connection_makes_room_for_the_next() {
    let settings = Settings {
        connections: Some(NonZeroUsize::MIN),
        ..Settings::default()
    };
    let (address, _stop, _served) = serve(&settings);
    let mut silent = TcpStream::connect(&address).await.unwrap();
    // This connection takes the place of the silent one, and sends a request.
    get(&address).await;
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
}
