//! Whole servers in this process, called by real clients over real sockets or a pipe.

use std::{
    convert::Infallible,
    future::{Ready, pending, ready},
    num::{NonZeroU64, NonZeroUsize},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hashfinder_client::{ConnectOptions, Connection, ServerAddress};
use hashfinder_proto::{
    Details, Reason,
    hash_name::{HashNameRequest, hash_finder_client::HashFinderClient},
    v1::{
        EndReason, ListSearchesRequest, Query, SearchRequest, finder_client::FinderClient,
        search_event::Event, search_request::From,
    },
};
use hashfinder_server::{
    Activity, DrainReport, HostPort, Listen, Searches, Server, Settings, StartError,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::TcpStream,
    sync::oneshot,
    task::{JoinHandle, yield_now},
    time::timeout,
};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use tower_service::Service;

/// Longer than any step takes, even on a very busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A name for which a search takes longer than any test.
const ENDLESS: &str = "hashfinderhashfinderhash";

/// A server that serves until it is asked to stop.
struct Serving {
    address: String,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<DrainReport>>,
}

impl Serving {
    async fn start(settings: Settings) -> Serving {
        let server = Server::new(settings).await.unwrap();
        let address = server.address().unwrap().to_owned();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async {
            let _ = stopped.await;
            "the test"
        };
        let task = tokio::spawn(server.serve(stopped, pending::<&str>()));
        Serving {
            address,
            stop,
            task,
        }
    }

    async fn connect(&self) -> Connection {
        let address: ServerAddress = self.address.parse().unwrap();
        let options = ConnectOptions::default();
        let connected = Connection::open(&address, &options, PATIENCE, PATIENCE, drop);
        connected.await.unwrap()
    }

    async fn stop(self) -> DrainReport {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap()
    }
}

fn find(name: &str) -> HashNameRequest {
    HashNameRequest {
        desired_name: name.to_owned(),
        ..HashNameRequest::default()
    }
}

fn search(name: &str) -> SearchRequest {
    SearchRequest {
        from: Some(From::Query(Query {
            desired_names: vec![name.to_owned()],
            ..Query::default()
        })),
        ..SearchRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_default_settings_answers_and_stops() {
    let server = Serving::start(Settings::default()).await;
    let connection = server.connect().await;
    let mut client = HashFinderClient::new(connection.channel());
    let found = client.find(find("doc")).await.unwrap().into_inner();
    assert!(found.hashed_name.to_lowercase().contains("doc"));
    drop(client);
    connection.close().await;
    assert_eq!(server.stop().await, DrainReport::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_stops_a_search_and_gives_it_a_cursor() {
    let settings = Settings {
        drain_grace: Duration::ZERO,
        ..Settings::default()
    };
    let server = Serving::start(settings).await;
    let connection = server.connect().await;
    let mut finder = FinderClient::new(connection.channel());
    let mut events = finder.search(search(ENDLESS)).await.unwrap().into_inner();
    // The first event shows that the search has started.
    assert!(events.message().await.unwrap().is_some());
    let report = tokio::spawn(server.stop());
    let status = loop {
        match events.message().await {
            Ok(Some(event)) => assert!(!matches!(event.event, Some(Event::Candidate(_)))),
            Ok(None) => panic!("a stopped search ended without an error"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let details = Details::of(&status);
    assert!(details.has(Reason::Draining) && details.cursor.is_some());
    drop((events, finder));
    connection.close().await;
    let report = report.await.unwrap();
    assert_eq!((report.stopped_calls, report.forced_calls), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_beyond_its_budget_is_stopped_and_resumed() {
    let settings = Settings {
        searches: Searches {
            maximum_hashes: NonZeroU64::new(100_000).unwrap(),
            ..Searches::default()
        },
        ..Settings::default()
    };
    let server = Serving::start(settings).await;
    let connection = server.connect().await;
    let mut finder = FinderClient::new(connection.channel());
    let mut request = search(ENDLESS);
    for round in 1..=2 {
        let mut events = finder.search(request).await.unwrap().into_inner();
        let ended = loop {
            match events
                .message()
                .await
                .unwrap()
                .and_then(|event| event.event)
            {
                Some(Event::Ended(ended)) => break ended,
                Some(_) => {}
                None => panic!("the stream ended without an end of the search"),
            }
        };
        let status = events.message().await.unwrap_err();
        assert!(
            Details::of(&status).has(Reason::HashBudgetSpent),
            "{status}"
        );
        assert_eq!(ended.frontier, round * 100_000);
        request = SearchRequest {
            from: Some(From::Cursor(ended.cursor)),
            ..SearchRequest::default()
        };
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_disconnects_leaves_nothing_behind() {
    let server = Serving::start(Settings::default()).await;
    let connection = server.connect().await;
    let mut finder = FinderClient::new(connection.channel());
    let mut events = finder.search(search(ENDLESS)).await.unwrap().into_inner();
    assert!(events.message().await.unwrap().is_some());
    drop((events, finder));
    connection.close().await;
    let connection = server.connect().await;
    let mut finder = FinderClient::new(connection.channel());
    let ended = async {
        loop {
            let request = ListSearchesRequest::default();
            let list = finder.list_searches(request).await.unwrap().into_inner();
            let all = list.searches;
            assert_eq!(all.len(), 1);
            if all[0].ended_at.is_some() {
                return all[0].end_reason();
            }
            yield_now().await;
        }
    };
    let reason = timeout(PATIENCE, ended).await.unwrap();
    assert_eq!(reason, EndReason::CancelledByClient);
}

/// Connects to a server through a pipe.
#[derive(Clone)]
struct Pipe(Arc<Server>);

impl Service<http::Uri> for Pipe {
    type Response = TokioIo<DuplexStream>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let (ours, theirs) = duplex(1 << 16);
        let server = Arc::clone(&self.0);
        tokio::spawn(async move { server.serve_connection(theirs).await });
        ready(Ok(TokioIo::new(ours)))
    }
}

/// Waits until a server has exactly this number of calls and searches.
async fn until(server: &Server, calls: usize, searches: usize) {
    let expected = Activity { calls, searches };
    let reached = async {
        while server.activity() != expected {
            yield_now().await;
        }
    };
    timeout(PATIENCE, reached).await.unwrap();
}

#[tokio::test]
async fn a_server_without_a_socket_serves_a_pipe() {
    let settings = Settings {
        listen: None,
        searches: Searches {
            workers: Some(NonZeroUsize::MIN),
            ..Searches::default()
        },
        ..Settings::default()
    };
    let server = Arc::new(Server::new(settings).await.unwrap());
    let endpoint = Endpoint::from_static("http://localhost");
    let pipe = Pipe(Arc::clone(&server));
    let channel: Channel = endpoint.connect_with_connector(pipe).await.unwrap();
    let mut client = HashFinderClient::new(channel);
    assert!(client.find(find("doc")).await.is_ok());
    let call = tokio::spawn(async move { client.find(find(ENDLESS)).await });
    until(&server, 1, 1).await;
    call.abort();
    until(&server, 0, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_is_cut_short_waits_for_no_call() {
    let settings = Settings {
        drain_grace: Duration::from_secs(3600),
        ..Settings::default()
    };
    let server = Server::new(settings).await.unwrap();
    let address: ServerAddress = server.address().unwrap().parse().unwrap();
    let (stop, stopped) = oneshot::channel::<&str>();
    let (hurry, hurried) = oneshot::channel::<&str>();
    let serving = server.serve(async { stopped.await.unwrap() }, async {
        hurried.await.unwrap()
    });
    let serving = tokio::spawn(serving);
    let options = ConnectOptions::default();
    let connection = Connection::open(&address, &options, PATIENCE, PATIENCE, drop);
    let connection = connection.await.unwrap();
    let mut finder = FinderClient::new(connection.channel());
    let mut events = finder.search(search(ENDLESS)).await.unwrap().into_inner();
    assert!(events.message().await.unwrap().is_some());
    stop.send("the test").unwrap();
    hurry.send("the test").unwrap();
    let report = serving.await.unwrap().unwrap();
    assert!(report.cut_short && report.left_behind);
}

/// Regression: the metrics port still answered after the server had stopped, and the engine was
/// never dropped.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_frees_its_ports() {
    let settings = Settings {
        metrics: Some(HostPort {
            host: "127.0.0.1".to_owned(),
            port: free_port(),
        }),
        ..Settings::default()
    };
    for _ in 0..2 {
        let server = Serving::start(settings.clone()).await;
        let at = settings.metrics.as_ref().unwrap();
        let mut metrics = TcpStream::connect((&*at.host, at.port)).await.unwrap();
        metrics
            .write_all(b"GET /healthz HTTP/1.0\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        metrics.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("200 OK"), "{answer}");
        server.stop().await;
        // An aborted task drops its socket only when the runtime next runs it.
        let left = async {
            while TcpStream::connect((&*at.host, at.port)).await.is_ok() {
                yield_now().await;
            }
        };
        timeout(PATIENCE, left).await.unwrap();
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test]
async fn setting_errors_differ_from_system_errors() {
    let open = Settings {
        listen: Some(Listen::Tcp {
            at: HostPort {
                host: "0.0.0.0".to_owned(),
                port: 0,
            },
            reuse_port: false,
        }),
        ..Settings::default()
    };
    let error = Server::new(open).await.unwrap_err();
    assert!(matches!(error, StartError::Settings(_)), "{error}");
    let mut crowded = Settings::default();
    crowded.connections.connections = Some(NonZeroUsize::MAX);
    let error = Server::new(crowded).await.unwrap_err();
    assert!(matches!(error, StartError::Settings(_)), "{error}");
    assert!(
        error.to_string().starts_with("maximum-connections "),
        "{error}"
    );
    let first = Server::new(Settings::default()).await.unwrap();
    let taken = Settings {
        listen: Some(Listen::Tcp {
            at: first.address().unwrap().parse().unwrap(),
            reuse_port: false,
        }),
        ..Settings::default()
    };
    let error = Server::new(taken).await.unwrap_err();
    assert!(matches!(error, StartError::System(_)), "{error}");
}
