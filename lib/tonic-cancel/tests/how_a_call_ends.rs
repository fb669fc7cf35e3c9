//! Every way in which a call can end, unary and streaming, over real sockets. Checks the client's
//! result, the argument of the call's callback, and that the work on a separate thread stops.

mod stage;

use std::{net::SocketAddr, time::Duration, vec::IntoIter};

use stage::{Either, Scene, Stage, connect, next, player, request, soon};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
};
use tonic::{Code, Request, Response, Status};
use tonic_cancel::{
    CallContext, CallEnd, CallOptions, CancelReason, DeadlinePolicy, Drained, WorkLimit,
};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_server::Health};
use tonic_types::{ErrorDetails, StatusExt};

/// Events that a handler reports to the test.
struct Seen {
    began: UnboundedReceiver<CallContext>,
    ended: UnboundedReceiver<CallEnd>,
    stopped: UnboundedReceiver<()>,
}

#[derive(Clone)]
struct Reports {
    began: UnboundedSender<CallContext>,
    ended: UnboundedSender<CallEnd>,
    stopped: UnboundedSender<()>,
    room: WorkLimit,
}

fn reports() -> (Reports, Seen) {
    let (began, began_seen) = unbounded_channel();
    let (ended, ended_seen) = unbounded_channel();
    let (stopped, stopped_seen) = unbounded_channel();
    let reports = Reports {
        began,
        ended,
        stopped,
        room: WorkLimit::new(0),
    };
    let seen = Seen {
        began: began_seen,
        ended: ended_seen,
        stopped: stopped_seen,
    };
    (reports, seen)
}

/// Status details of several types.
fn details() -> ErrorDetails {
    let mut details = ErrorDetails::with_error_info(
        "A_REASON",
        "tests",
        [("key".to_owned(), "value".to_owned())],
    );
    details
        .set_retry_info(Some(Duration::from_secs(7)))
        .add_quota_failure_violation("subject", "a quota");
    details
}

fn with_details(code: Code) -> Status {
    Status::with_error_details(code, "as rich as they get", details())
}

/// The handler of every test: sends a message, starts a thread, and then follows the script.
async fn play(reports: Reports, scene: Scene) -> Result<(), Status> {
    let context = scene.context.clone();
    let ended = reports.ended.clone();
    context.add_callback(move |end| {
        let _ = ended.send(end);
    });
    if scene.line == "no room" {
        let room = reports.room.begin_within(&context, Duration::ZERO).await;
        // The handler replaces the status with its own.
        return room
            .map(drop)
            .map_err(|_| with_details(Code::ResourceExhausted));
    }
    let (stop, stopped) = (context.stop_flag(), reports.stopped.clone());
    std::thread::spawn(move || {
        while !stop.is_requested() {
            std::thread::yield_now();
        }
        let _ = stopped.send(());
    });
    scene.say();
    // Let a stream send its message before anything else happens.
    tokio::task::yield_now().await;
    reports.began.send(context.clone()).unwrap();
    match scene.line.as_str() {
        "answer" => Ok(()),
        "fail" => Err(with_details(Code::NotFound)),
        "panic" => panic!("a panic that this test wants"),
        "listen" => {
            assert_eq!(context.cancelled().await, Some(CancelReason::Drain));
            Err(with_details(Code::Unavailable))
        }
        "hang" => std::future::pending().await,
        other => panic!("no such line: {other:?}"),
    }
}

/// A server, a client, and the proxy between them.
struct House {
    stage: Stage,
    seen: Seen,
    proxy: Proxy,
}

impl House {
    async fn new(policy: DeadlinePolicy) -> House {
        let (reports, seen) = reports();
        let player = player(move |scene| play(reports.clone(), scene));
        let stage = Stage::with(|layer| layer.deadlines(policy), player).await;
        let proxy = Proxy::start(stage.address).await;
        House { stage, seen, proxy }
    }

    async fn call(&self, is_stream: bool, line: &str, options: CallOptions) -> Either {
        let client = connect(self.proxy.address).await;
        Either::start(is_stream, &client, request(line), options)
    }

    /// Waits until the work of a call has stopped. Returns how the call ended for its handler.
    async fn ended(&mut self) -> (Code, Option<CancelReason>) {
        let end = next(&mut self.seen.ended).await;
        next(&mut self.seen.stopped).await;
        (end.code, end.cancelled)
    }

    /// Asserts that no callback ran twice, and that no call and no work is left.
    async fn quiet(mut self) {
        soon(self.stage.drain.drain(Duration::MAX, Duration::ZERO)).await;
        assert!(self.seen.ended.try_recv().is_err());
        assert_eq!(self.stage.drain.active_calls(), 0);
        assert_eq!(self.stage.drain.active_work(), 0);
    }
}

/// A proxied connection that a test can break for both sides.
struct Proxy {
    address: SocketAddr,
    carrying: JoinHandle<()>,
}

impl Proxy {
    async fn start(to: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let carrying = tokio::spawn(async move {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(to).await.unwrap();
            drop(copy_bidirectional(&mut near, &mut far).await);
        });
        Proxy { address, carrying }
    }

    fn die(&self) {
        self.carrying.abort();
    }
}

const KINDS: [bool; 2] = [false, true];
const FOR_EVER: CallOptions = CallOptions::new();

/// A deadline that passes during a test, but only after its call has reached the handler.
const SHORTLY: Duration = Duration::from_secs(3);

fn said(result: &Result<(), Status>) -> Code {
    result.as_ref().map_or_else(Status::code, |()| Code::Ok)
}

#[track_caller]
fn assert_rich(result: &Result<(), Status>) {
    let status = result.as_ref().unwrap_err();
    assert_eq!(status.message(), "as rich as they get");
    // `ErrorDetails` cannot be compared directly.
    let got = format!("{:?}", status.get_error_details());
    assert_eq!(got, format!("{:?}", details()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_handler_answers() {
    for kind in KINDS {
        let mut house = House::new(DeadlinePolicy::new()).await;
        let mut call = house.call(kind, "answer", FOR_EVER).await;
        assert_eq!(said(&call.end().await), Code::Ok);
        assert_eq!(house.ended().await, (Code::Ok, None));
        house.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_handler_fails_with_details() {
    for kind in KINDS {
        let mut house = House::new(DeadlinePolicy::new()).await;
        let mut call = house.call(kind, "fail", FOR_EVER).await;
        let result = call.end().await;
        assert_eq!(said(&result), Code::NotFound);
        assert_rich(&result);
        assert_eq!(house.ended().await, (Code::NotFound, None));
        house.quiet().await;
    }
}

/// Typical statuses of services, each with matching details.
fn statuses() -> [Status; 5] {
    let info = |reason| ErrorDetails::with_error_info(reason, "tests", []);
    let mut exhausted = ErrorDetails::with_quota_failure_violation("subject", "a quota");
    exhausted.set_retry_info(Some(Duration::from_secs(7)));
    [
        (
            Code::InvalidArgument,
            ErrorDetails::with_bad_request_violation("a.field", "what is wrong with it"),
        ),
        (Code::PermissionDenied, info("NOT_YOURS")),
        (Code::Unauthenticated, info("WHO_ARE_YOU")),
        (
            Code::NotFound,
            ErrorDetails::with_resource_info("a kind", "a name", "an owner", "is not there"),
        ),
        (Code::ResourceExhausted, exhausted),
    ]
    .map(|(code, details)| Status::with_error_details(code, format!("{code}: 100 % sûr"), details))
}

/// Returns one of [`statuses`]. The requested service name selects which one, and where it is
/// returned.
struct Failing(UnboundedSender<CallEnd>);

impl Failing {
    fn status(&self, request: &Request<HealthCheckRequest>) -> (Status, String) {
        let ended = self.0.clone();
        CallContext::of(request).add_callback(move |end| ended.send(end).unwrap());
        let (number, place) = request.get_ref().service.split_once(' ').unwrap();
        let status = statuses()[number.parse::<usize>().unwrap()].clone();
        (status, place.to_owned())
    }
}

#[tonic::async_trait]
impl Health for Failing {
    type WatchStream = tokio_stream::Iter<IntoIter<Result<HealthCheckResponse, Status>>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        Err(self.status(&request).0)
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (status, place) = self.status(&request);
        let message = Ok(HealthCheckResponse::default());
        let messages = match place.as_str() {
            "instead" => return Err(status),
            "first" => vec![Err(status)],
            "later" => vec![message.clone(), Err(status), message],
            other => panic!("no such place: {other:?}"),
        };
        Ok(Response::new(tokio_stream::iter(messages)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_handlers_status_arrives_as_it_was_given() {
    let (ended, mut ends) = unbounded_channel();
    let stage = Stage::with(|layer| layer, Failing(ended)).await;
    let client = stage.client().await;
    for (number, given) in statuses().iter().enumerate() {
        for (kind, place) in [
            (false, "unary"),
            (true, "instead"),
            (true, "first"),
            (true, "later"),
        ] {
            let line = format!("{number} {place}");
            let mut call = Either::start(kind, &client, request(&line), FOR_EVER);
            if place == "later" {
                call.first().await;
            }
            let got = call.end().await.unwrap_err();
            assert_eq!(got.code(), given.code(), "{line}");
            assert_eq!(got.message(), given.message(), "{line}");
            assert_eq!(got.details(), given.details(), "{line}");
            let end = next(&mut ends).await;
            assert_eq!((end.code, end.cancelled), (given.code(), None), "{line}");
        }
    }
    assert!(ends.try_recv().is_err(), "a callback ran twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_cancels() {
    for kind in KINDS {
        let mut house = House::new(DeadlinePolicy::new()).await;
        let mut call = house.call(kind, "hang", FOR_EVER).await;
        next(&mut house.seen.began).await;
        call.first().await;
        assert!(call.cancel());
        assert_eq!(said(&call.end().await), Code::Cancelled);
        let gone = Some(CancelReason::ClientGone);
        assert_eq!(house.ended().await, (Code::Cancelled, gone));
        house.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_drops_the_call() {
    for kind in KINDS {
        let mut house = House::new(DeadlinePolicy::new()).await;
        let mut call = house.call(kind, "hang", FOR_EVER).await;
        next(&mut house.seen.began).await;
        call.first().await;
        drop(call);
        let gone = Some(CancelReason::ClientGone);
        assert_eq!(house.ended().await, (Code::Cancelled, gone));
        house.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_dies() {
    for kind in KINDS {
        let mut house = House::new(DeadlinePolicy::new()).await;
        let mut call = house.call(kind, "hang", FOR_EVER).await;
        next(&mut house.seen.began).await;
        call.first().await;
        house.proxy.die();
        // tonic may report different codes, but neither OK nor a status from the server.
        let code = said(&call.end().await);
        let made_locally = [Code::Unavailable, Code::Unknown, Code::Cancelled];
        assert!(made_locally.contains(&code), "{code:?}");
        let gone = Some(CancelReason::ClientGone);
        assert_eq!(house.ended().await, (Code::Cancelled, gone));
        house.quiet().await;
    }
}

/// The server's own deadline, for a client without a timer: before the response of a unary call,
/// and in the middle of a stream.
#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_passes_at_the_server() {
    async fn play(kind: bool) {
        let policy = DeadlinePolicy::new().maximum(SHORTLY);
        let mut house = House::new(policy).await;
        let mut call = house.call(kind, "hang", FOR_EVER).await;
        call.first().await;
        let result = call.end().await;
        assert_eq!(said(&result), Code::DeadlineExceeded);
        let passed = Some(CancelReason::DeadlineExceeded);
        assert_eq!(house.ended().await, (Code::DeadlineExceeded, passed));
        house.quiet().await;
    }
    tokio::join!(play(false), play(true));
}

/// The client's own deadline. Either side's clock may be first, so the server sees its own deadline
/// or that the client has gone.
#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_passes_at_the_client() {
    async fn play(kind: bool) {
        let mut house = House::new(DeadlinePolicy::new()).await;
        let shortly = CallOptions::new().timeout(SHORTLY);
        let mut call = house.call(kind, "hang", shortly).await;
        let context = next(&mut house.seen.began).await;
        assert!(context.time_remaining().unwrap() <= SHORTLY);
        call.first().await;
        assert_eq!(said(&call.end().await), Code::DeadlineExceeded);
        let (code, reason) = house.ended().await;
        match reason {
            Some(CancelReason::DeadlineExceeded) => assert_eq!(code, Code::DeadlineExceeded),
            other => assert_eq!(other, Some(CancelReason::ClientGone)),
        }
        house.quiet().await;
    }
    tokio::join!(play(false), play(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_cancels_with_details() {
    for kind in KINDS {
        let mut house = House::new(DeadlinePolicy::new()).await;
        let mut call = house.call(kind, "hang", FOR_EVER).await;
        let context = next(&mut house.seen.began).await;
        call.first().await;
        assert!(context.cancel_with_status(with_details(Code::Aborted)));
        let result = call.end().await;
        assert_eq!(said(&result), Code::Aborted);
        assert_rich(&result);
        let server = Some(CancelReason::Server);
        assert_eq!(house.ended().await, (Code::Aborted, server));
        house.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_asks_a_handler_that_listens_to_stop() {
    for kind in KINDS {
        let mut house = House::new(DeadlinePolicy::new()).await;
        let mut call = house.call(kind, "listen", FOR_EVER).await;
        next(&mut house.seen.began).await;
        call.first().await;
        let drained = soon(house.stage.drain.drain(Duration::ZERO, Duration::MAX)).await;
        assert_eq!((drained.told, drained.forced), (1, 0));
        let result = call.end().await;
        assert_eq!(said(&result), Code::Unavailable);
        assert_rich(&result);
        let drain = Some(CancelReason::Drain);
        assert_eq!(house.ended().await, (Code::Unavailable, drain));
        house.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_forces_a_handler_that_does_not_listen() {
    for kind in KINDS {
        let mut house = House::new(DeadlinePolicy::new()).await;
        let mut call = house.call(kind, "hang", FOR_EVER).await;
        next(&mut house.seen.began).await;
        call.first().await;
        let drained = soon(house.stage.drain.drain(Duration::ZERO, Duration::ZERO)).await;
        assert_eq!((drained.told, drained.forced), (1, 1));
        assert_eq!(said(&call.end().await), Code::Unavailable);
        let drain = Some(CancelReason::Drain);
        assert_eq!(house.ended().await, (Code::Unavailable, drain));
        house.quiet().await;
    }
}

/// A rejected call does not reach a handler, so no callback is registered.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_rejected_before_any_work() {
    for kind in KINDS {
        let policy = DeadlinePolicy::new().minimum(Duration::from_secs(60));
        let mut house = House::new(policy).await;
        let client = connect(house.proxy.address).await;
        let call = |request, options| Either::start(kind, &client, request, options);

        let too_short = CallOptions::new().timeout(Duration::from_secs(59));
        let status = call(request("hang"), too_short).end().await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(status.message().contains("at least 60s"), "{status}");

        let mut bad = request("hang");
        bad.metadata_mut()
            .insert("grpc-timeout", "soon".parse().unwrap());
        let code = said(&call(bad, FOR_EVER).end().await);
        assert_eq!(code, Code::InvalidArgument);

        let drained = house
            .stage
            .drain
            .drain(Duration::ZERO, Duration::ZERO)
            .await;
        assert_eq!(drained, Drained::default());
        let code = said(&call(request("hang"), FOR_EVER).end().await);
        assert_eq!(code, Code::Unavailable);

        assert!(house.seen.began.try_recv().is_err(), "a handler saw it");
        house.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_room_for_its_work() {
    for kind in KINDS {
        let mut house = House::new(DeadlinePolicy::new()).await;
        let mut call = house.call(kind, "no room", FOR_EVER).await;
        let result = call.end().await;
        assert_eq!(said(&result), Code::ResourceExhausted);
        assert_rich(&result);
        let end = next(&mut house.seen.ended).await;
        assert_eq!((end.code, end.cancelled), (Code::ResourceExhausted, None));
        assert!(house.seen.began.try_recv().is_err(), "work was begun");
        house.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_handler_panics() {
    for kind in KINDS {
        let mut house = House::new(DeadlinePolicy::new()).await;
        let mut call = house.call(kind, "panic", FOR_EVER).await;
        assert_eq!(said(&call.end().await), Code::Unknown);
        assert_eq!(house.ended().await, (Code::Unknown, None));
        house.quiet().await;
    }
}
