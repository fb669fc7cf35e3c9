//! Calls that handlers make for a call. There are three hops, each a server on a separate socket.
//! Tests what reaches each hop.

mod stage;

use std::time::Duration;

use stage::{Either, Player, Scene, Stage, next, player, request};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tonic::{Code, Status, transport::Channel};
use tonic_cancel::{CallEnd, CallOptions, CancelReason, DeadlinePolicy};
use tonic_health::pb::health_client::HealthClient;

/// How a hop calls the next one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Means {
    /// A `Call` or `StreamingCall`, in a task that outlives the handler.
    Linked,
    /// A plain tonic client, in the handler itself.
    Plain,
}

/// Events that a hop reports to the test.
struct Hop {
    began: UnboundedReceiver<Option<Duration>>,
    ended: UnboundedReceiver<CallEnd>,
}

#[derive(Clone)]
struct Reports {
    began: UnboundedSender<Option<Duration>>,
    ended: UnboundedSender<CallEnd>,
}

fn hop(next: Option<(HealthClient<Channel>, Means)>) -> (Player, Hop) {
    let (began, began_seen) = unbounded_channel();
    let (ended, ended_seen) = unbounded_channel();
    let reports = Reports { began, ended };
    let player = player(move |scene| play(reports.clone(), next.clone(), scene));
    let hop = Hop {
        began: began_seen,
        ended: ended_seen,
    };
    (player, hop)
}

async fn play(
    reports: Reports,
    next: Option<(HealthClient<Channel>, Means)>,
    scene: Scene,
) -> Result<(), Status> {
    let hangs = scene.line == "hang";
    let result = forward(reports, next, scene).await;
    if hangs {
        // Make the call end by something other than its answer.
        std::future::pending::<()>().await;
    }
    result
}

/// Makes the next call, if there is a next hop, and returns its result.
async fn forward(
    reports: Reports,
    next: Option<(HealthClient<Channel>, Means)>,
    scene: Scene,
) -> Result<(), Status> {
    let (context, ended) = (scene.context.clone(), reports.ended.clone());
    context.add_callback(move |end| {
        let _ = ended.send(end);
    });
    reports.began.send(context.time_remaining()).unwrap();
    let Some((mut client, means)) = next else {
        scene.say();
        return std::future::pending().await;
    };
    let onward = context.outgoing(request(&scene.line));
    match (means, scene.is_stream) {
        (Means::Linked, is_stream) => {
            let mut call = Either::start(is_stream, &client, onward, CallOptions::new());
            let forwarding = tokio::spawn(async move {
                if let Either::Stream(call) = &mut call {
                    while call.message().await?.is_some() {
                        scene.say();
                    }
                }
                call.end().await
            });
            forwarding.await.unwrap()
        }
        (Means::Plain, false) => client.check(onward).await.map(drop),
        (Means::Plain, true) => {
            let mut messages = client.watch(onward).await?.into_inner();
            while messages.message().await?.is_some() {
                scene.say();
            }
            Ok(())
        }
    }
}

/// Three hops and a client of the first one. Each hop has its own runtime, so that it can be
/// killed.
struct Chain {
    client: HealthClient<Channel>,
    hops: [Hop; 3],
    stages: Vec<Stage>,
    runtimes: Vec<Option<tokio::runtime::Runtime>>,
}

impl Chain {
    async fn new(means: Means) -> Chain {
        Chain::with(means, DeadlinePolicy::new()).await
    }

    /// Starts three hops, of which the first has `policy`.
    async fn with(means: Means, policy: DeadlinePolicy) -> Chain {
        let (mut hops, mut stages, mut runtimes) = (Vec::new(), Vec::new(), Vec::new());
        let mut address = None;
        // Start the last one first.
        for number in (0..3).rev() {
            let policy = match number {
                0 => policy,
                _ => DeadlinePolicy::new(),
            };
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let (stage, hop) = runtime
                .spawn(async move {
                    let next = match address {
                        Some(address) => Some((stage::connect(address).await, means)),
                        None => None,
                    };
                    let (player, hop) = hop(next);
                    let stage = Stage::with(|layer| layer.deadlines(policy), player);
                    (stage.await, hop)
                })
                .await
                .unwrap();
            address = Some(stage.address);
            hops.insert(0, hop);
            stages.insert(0, stage);
            runtimes.insert(0, Some(runtime));
        }
        Chain {
            client: stages[0].client().await,
            hops: hops.try_into().unwrap_or_else(|_| unreachable!()),
            stages,
            runtimes,
        }
    }

    /// Starts a call and waits until it has reached the last hop. Returns each hop's remaining
    /// time.
    async fn call(&mut self, is_stream: bool, options: CallOptions) -> (Either, Vec<Duration>) {
        self.say("", is_stream, options).await
    }

    async fn say(
        &mut self,
        line: &str,
        is_stream: bool,
        options: CallOptions,
    ) -> (Either, Vec<Duration>) {
        let mut call = Either::start(is_stream, &self.client, request(line), options);
        let mut given = Vec::new();
        for hop in &mut self.hops {
            given.extend(next(&mut hop.began).await);
        }
        call.first().await;
        (call, given)
    }

    fn kill(&mut self, hop: usize) {
        self.runtimes[hop].take().unwrap().shutdown_background();
    }

    /// Asserts that no call is left at the hops that still run.
    async fn quiet(mut self) {
        for (stage, runtime) in self.stages.iter().zip(&self.runtimes) {
            if runtime.is_some() {
                stage.drain.drain(stage::PATIENCE, Duration::ZERO).await;
                assert_eq!(stage.drain.active_calls(), 0);
            }
        }
        for runtime in &mut self.runtimes {
            if let Some(runtime) = runtime.take() {
                runtime.shutdown_background();
            }
        }
    }
}

const CASES: [(Means, bool); 4] = [
    (Means::Linked, false),
    (Means::Linked, true),
    (Means::Plain, false),
    (Means::Plain, true),
];
const GONE: Option<CancelReason> = Some(CancelReason::ClientGone);
const PASSED: Option<CancelReason> = Some(CancelReason::DeadlineExceeded);

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_reaches_every_hop() {
    for (means, is_stream) in CASES {
        let mut chain = Chain::new(means).await;
        let (mut call, given) = chain.call(is_stream, CallOptions::new()).await;
        assert_eq!(given, [], "no hop has a deadline");
        call.cancel();
        assert_eq!(call.end().await.unwrap_err().code(), Code::Cancelled);
        for hop in &mut chain.hops {
            let end = next(&mut hop.ended).await;
            assert_eq!((end.code, end.cancelled), (Code::Cancelled, GONE));
        }
        chain.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_reaches_every_hop_and_each_has_less_than_the_one_before() {
    for (means, is_stream) in CASES {
        let mut chain = Chain::new(means).await;
        // Long enough for the call to reach the last hop.
        let timeout = Duration::from_secs(3);
        let options = CallOptions::new().timeout(timeout);
        let (mut call, given) = chain.call(is_stream, options).await;
        let margin = tonic_cancel::CallContextLayer::OUTGOING_MARGIN;
        assert_eq!(given.len(), 3);
        assert!(given[0] <= timeout, "{given:?}");
        assert!(given[1] <= given[0] - margin, "{given:?}");
        assert!(given[2] <= given[1] - margin, "{given:?}");

        let code = call.end().await.unwrap_err().code();
        // With tonic's own client, a hop may get CANCELLED when its time is up.
        let others = [Code::DeadlineExceeded, Code::Cancelled];
        match means {
            Means::Linked => assert_eq!(code, Code::DeadlineExceeded),
            Means::Plain => assert!(others.contains(&code), "{code:?}"),
        }
        for (number, hop) in chain.hops.iter_mut().enumerate() {
            let end = next(&mut hop.ended).await;
            match end.cancelled {
                // The hop ended with the status of the next hop. The last hop has no next one.
                None if means == Means::Linked => assert_eq!(end.code, Code::DeadlineExceeded),
                None => assert!(others.contains(&end.code), "{end:?}"),
                _ => assert_out_of_time(end),
            }
            assert!(number < 2 || end.cancelled.is_some(), "{end:?}");
        }
        chain.quiet().await;
    }
}

/// Asserts that a call ended by its deadline. Either the hop's own clock was first, or that of its
/// caller, which has the same deadline.
#[track_caller]
fn assert_out_of_time(end: CallEnd) {
    let expected = match end.cancelled {
        GONE => (Code::Cancelled, GONE),
        _ => (Code::DeadlineExceeded, PASSED),
    };
    assert_eq!((end.code, end.cancelled), expected);
}

/// No hop answers and the client has no timer: the first hop's own clock ends its call.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_the_first_hop_sets_is_reported_as_such() {
    for (means, is_stream) in CASES {
        let policy = DeadlinePolicy::new().maximum(Duration::from_secs(3));
        let mut chain = Chain::with(means, policy).await;
        let (mut call, given) = chain.say("hang", is_stream, CallOptions::new()).await;
        assert_eq!(given.len(), 3, "every hop has a deadline");
        let status = call.end().await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        let [first, others @ ..] = &mut chain.hops;
        let end = next(&mut first.ended).await;
        let own = (Code::DeadlineExceeded, PASSED);
        assert_eq!((end.code, end.cancelled), own);
        for hop in others {
            assert_out_of_time(next(&mut hop.ended).await);
        }
        chain.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hop_that_dies_ends_the_call_on_both_sides() {
    for (means, is_stream) in CASES {
        let mut chain = Chain::new(means).await;
        let (mut call, _) = chain.call(is_stream, CallOptions::new()).await;
        chain.kill(1);
        let end = next(&mut chain.hops[2].ended).await;
        assert_eq!((end.code, end.cancelled), (Code::Cancelled, GONE));
        let status = call.end().await.unwrap_err();
        let end = next(&mut chain.hops[0].ended).await;
        // The client gets the status that the first hop returned.
        assert_eq!((end.code, end.cancelled), (status.code(), None));
        chain.quiet().await;
    }
}

/// Only this crate's handles propagate the cancellation before the handler has answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_asked_to_stop_cancels_its_outgoing_calls() {
    for is_stream in [false, true] {
        let mut chain = Chain::new(Means::Linked).await;
        let (mut call, _) = chain.call(is_stream, CallOptions::new()).await;
        let drained = chain.stages[0]
            .drain
            .drain(Duration::ZERO, stage::PATIENCE)
            .await;
        assert_eq!((drained.told, drained.forced), (1, 0));
        // The handler returned the status of its outgoing call.
        let status = call.end().await.unwrap_err();
        assert_eq!(status.code(), Code::Cancelled);
        let end = next(&mut chain.hops[0].ended).await;
        assert_eq!(end.cancelled, Some(CancelReason::Drain));
        for hop in &mut chain.hops[1..] {
            let end = next(&mut hop.ended).await;
            assert_eq!((end.code, end.cancelled), (Code::Cancelled, GONE));
        }
        chain.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_time_left_is_not_sent() {
    for is_stream in [false, true] {
        let (last, mut seen) = hop(None);
        let last = Stage::start(last).await;
        let (first, _first_seen) = hop(Some((last.client().await, Means::Linked)));
        // More than the call's whole time.
        let margin = Duration::from_secs(3600);
        let first = Stage::with(|layer| layer.outgoing_margin(margin), first).await;
        let options = CallOptions::new().timeout(Duration::from_secs(600));
        let client = first.client().await;
        let mut call = Either::start(is_stream, &client, request(""), options);
        assert_eq!(call.end().await.unwrap_err().code(), Code::DeadlineExceeded);
        // When a later call has arrived, calls sent earlier have arrived, too.
        let mut later = last.client().await;
        let arrives = tokio::spawn(async move { later.check(request("")).await });
        assert_eq!(next(&mut seen.began).await, None, "it was sent");
        arrives.abort();
    }
}

#[tokio::test]
async fn a_request_keeps_its_own_shorter_timeout() {
    let (sender, mut sent) = unbounded_channel();
    let stage = Stage::start(player(move |scene: Scene| {
        let sender = sender.clone();
        async move {
            for own in [None, Some(1), Some(100_000)] {
                let mut onward = request("");
                if let Some(seconds) = own {
                    onward.set_timeout(Duration::from_secs(seconds));
                }
                let onward = scene.context.outgoing(onward);
                let header = onward.metadata().get("grpc-timeout").cloned();
                let header = header.map(|value| value.to_str().unwrap().to_owned());
                sender.send(header).unwrap();
            }
            Ok(())
        }
    }))
    .await;
    let client = stage.client().await;
    for timeout in [None, Some(Duration::from_secs(50))] {
        let options = timeout.map_or(CallOptions::new(), |t| CallOptions::new().timeout(t));
        let mut call = Either::start(false, &client, request(""), options);
        assert!(call.end().await.is_ok());
        let [none, short, long] = [
            next(&mut sent).await,
            next(&mut sent).await,
            next(&mut sent).await,
        ];
        assert_eq!(short.as_deref(), Some("1000000u"));
        match timeout {
            None => {
                assert_eq!(none, None);
                assert_eq!(long.as_deref(), Some("100000S"));
            }
            Some(_) => {
                for header in [none, long] {
                    let micros = header.unwrap();
                    let micros: u64 = micros.strip_suffix('u').unwrap().parse().unwrap();
                    assert!(micros <= 49_995_000, "{micros}");
                }
            }
        }
    }
}

/// The shorter timeout counts even if the parent call and the options allow more time.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_ends_by_the_shorter_timeout_of_its_request() {
    const OWN: Duration = Duration::from_secs(3);
    const LONG: CallOptions = CallOptions::new().timeout(Duration::from_secs(3600));
    let (last, mut seen) = hop(None);
    let last = Stage::start(last).await;
    let next_client = last.client().await;
    let first = Stage::start(player(move |scene: Scene| {
        let client = next_client.clone();
        async move {
            let mut own = request("");
            own.set_timeout(OWN);
            let onward = scene.context.outgoing(own);
            let options = match scene.line.as_str() {
                "with options" => LONG,
                _ => CallOptions::new(),
            };
            let mut call = Either::start(scene.is_stream, &client, onward, options);
            call.end().await
        }
    }))
    .await;
    let client = first.client().await;
    let mut calls = Vec::new();
    for is_stream in [false, true] {
        for line in ["", "with options"] {
            for options in [CallOptions::new(), LONG] {
                calls.push(Either::start(is_stream, &client, request(line), options));
            }
        }
    }
    for call in &mut calls {
        assert_eq!(call.end().await.unwrap_err().code(), Code::DeadlineExceeded);
        let given = next(&mut seen.began).await;
        assert!(given.unwrap() <= OWN, "{given:?}");
        assert_out_of_time(next(&mut seen.ended).await);
    }
}
