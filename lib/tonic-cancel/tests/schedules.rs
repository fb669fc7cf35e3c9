//! Calls of every kind, ended by either side at random moments. Checks that no task, permit, work
//! or callback is left.
//!
//! `SCHEDULES` sets the number of calls, and `SCHEDULES_SEED` the seed of the random choices.

mod stage;

use std::{
    env, panic,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use stage::{Either, Player, Scene, player, request, soon};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Status, transport::Server};
use tonic_cancel::{
    CallContext, CallContextLayer, CallOptions, Drain, DrainOptions, StopFlag, WorkLimit,
};
use tonic_health::pb::health_server::HealthServer;

/// Default number of calls. They take about 40 seconds without optimization.
const SCHEDULES: u64 = 100_000;

/// Number of calls to one server. The server is drained after all of them or between two of them.
const BATCH: u64 = 250;

/// Maximum number of these calls under way at a time.
const AT_A_TIME: usize = 50;

/// Limit of concurrent pieces of work, low enough that some must wait.
const ROOM: usize = 8;

/// Message of a panic that is part of a schedule.
const WANTED: &str = "a panic that a schedule wants";

/// splitmix64: random enough for this, and the same on every platform.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Yields to other tasks a random number of times.
    async fn pause(&mut self) {
        for _ in 0..self.below(40) {
            tokio::task::yield_now().await;
        }
    }
}

/// Counts as present until it is dropped. In the end, none may be left.
struct Here(Arc<AtomicUsize>);

impl Drop for Here {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[derive(Clone, Default)]
struct Counts {
    here: Arc<AtomicUsize>,
    registered: Arc<AtomicUsize>,
    ran: Arc<AtomicUsize>,
    ends: Arc<[AtomicUsize; 17]>,
}

impl Counts {
    fn here(&self) -> Here {
        self.here.fetch_add(1, SeqCst);
        Here(Arc::clone(&self.here))
    }

    /// Returns a callback that counts its runs and their codes.
    fn callback<T, F>(&self, code: F) -> impl FnOnce(T) + Send + use<T, F>
    where
        F: FnOnce(T) -> Code + Send + 'static,
    {
        self.registered.fetch_add(1, SeqCst);
        let (here, counts) = (self.here(), self.clone());
        move |end| {
            let _here = here;
            counts.ran.fetch_add(1, SeqCst);
            counts.ends[code(end) as usize].fetch_add(1, SeqCst);
        }
    }
}

/// The server's side. The client sends the seed of its random choices.
fn plays(counts: Counts, room: WorkLimit) -> Player {
    player(move |scene| {
        let (counts, room) = (counts.clone(), room.clone());
        let here = counts.here();
        async move {
            let _here = here;
            play(&counts, &room, scene).await
        }
    })
}

async fn play(counts: &Counts, room: &WorkLimit, scene: Scene) -> Result<(), Status> {
    let mut rng = Rng(scene.line.parse().unwrap());
    let context = scene.context.clone();
    for _ in 0..rng.below(3) {
        context.add_callback(counts.callback(|end: tonic_cancel::CallEnd| end.code));
    }
    if rng.below(4) == 0 {
        cancel_later(counts, &context, rng.next());
    }
    let token = (rng.below(4) == 0).then(|| context.child_token());
    rng.pause().await;
    for _ in 0..rng.below(4) {
        scene.say();
        rng.pause().await;
    }
    match rng.below(8) {
        0 => Ok(()),
        1 => Err(Status::not_found("drawn by lot")),
        2 => panic!("{WANTED}"),
        3 => std::future::pending().await,
        4 => {
            context.cancelled().await;
            Err(Status::aborted("as planned"))
        }
        5 => {
            if let Some(token) = token {
                token.cancelled().await;
            }
            Ok(())
        }
        _ => {
            let guard = room.begin(&context).await?;
            let (here, turns) = (counts.here(), rng.below(400));
            let panics = rng.below(8) == 0;
            let work = move |stop: StopFlag| {
                let _both = (guard, here);
                for _ in 0..turns {
                    if stop.is_requested() {
                        return;
                    }
                    std::thread::yield_now();
                }
                assert!(!panics, "{WANTED}");
            };
            context.run_blocking(work).await
        }
    }
}

/// Ends the call from a separate task or thread, once or twice.
fn cancel_later(counts: &Counts, context: &CallContext, seed: u64) {
    let (mut rng, here, context) = (Rng(seed), counts.here(), context.clone());
    let cancel = move |rng: &mut Rng| {
        for _ in 0..1 + rng.below(2) {
            if rng.below(2) == 0 {
                context.cancel();
            } else {
                context.cancel_with_status(Status::resource_exhausted("drawn by lot"));
            }
        }
    };
    if rng.below(2) == 0 {
        std::thread::spawn(move || {
            let _here = here;
            cancel(&mut rng);
        });
    } else {
        tokio::spawn(async move {
            let _here = here;
            rng.pause().await;
            cancel(&mut rng);
        });
    }
}

/// The client's side.
async fn call(
    counts: Counts,
    client: tonic_health::pb::health_client::HealthClient<tonic::transport::Channel>,
    seed: u64,
) {
    let _here = counts.here();
    let mut rng = Rng(seed);
    let mut options = CallOptions::new();
    if rng.below(3) == 0 {
        options = options.timeout(Duration::from_micros(rng.below(20_000)));
    }
    let request = request(&rng.next().to_string());
    let mut call = Either::start(rng.below(2) == 0, &client, request, options);
    let done = counts.callback(|done: tonic_cancel::Done| done.code);
    match &call {
        Either::Unary(call) => call.add_done_callback(done),
        Either::Stream(call) => call.add_done_callback(done),
    };
    rng.pause().await;
    match rng.below(4) {
        0 => drop(call),
        1 => {
            call.cancel();
            drop(call.end().await);
        }
        2 => {
            // Read for a while, then drop the call.
            let patience = Duration::from_micros(rng.below(5_000));
            let _ = tokio::time::timeout(patience, call.end()).await;
        }
        _ => {
            let code = call
                .end()
                .await
                .map_or_else(|status| status.code(), |()| Code::Ok);
            let reported = match &call {
                Either::Unary(call) => call.code(),
                Either::Stream(call) => call.code(),
            };
            assert_eq!(reported, Some(code));
        }
    }
}

async fn batch(counts: &Counts, rng: &mut Rng, number: u64) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (drain, room) = (Drain::new(), WorkLimit::new(ROOM));
    let server = Server::builder()
        .layer(CallContextLayer::with_drain(drain.clone()))
        .add_service(HealthServer::new(plays(counts.clone(), room.clone())));
    let (signal, signalled) = tokio::sync::oneshot::channel::<()>();
    let (grace, notice) = (rng.below(20), rng.below(20));
    let options = DrainOptions::new()
        .grace(Duration::from_millis(grace))
        .notice(Duration::from_millis(notice))
        .close(stage::PATIENCE);
    let serving = tokio::spawn({
        let drain = drain.clone();
        async move {
            let signal = async { drop(signalled.await) };
            let incoming = TcpListenerStream::new(listener);
            let serving = drain.serve(signal, options, |shutdown| {
                server.serve_with_incoming_shutdown(incoming, shutdown)
            });
            serving.await.unwrap()
        }
    });
    let clients = [stage::connect(address).await, stage::connect(address).await];
    let mut signal = Some(signal);
    let drained_at = rng.below(2 * number);
    let mut calls = JoinSet::new();
    for turn in 0..number {
        if turn == drained_at {
            signal = None;
        }
        while calls.len() >= AT_A_TIME {
            soon(calls.join_next()).await.unwrap().unwrap();
        }
        let client = clients[rng.below(2) as usize].clone();
        calls.spawn(call(counts.clone(), client, rng.next()));
    }
    // The drain ends calls that hang.
    drop(signal);
    while let Some(ended) = soon(calls.join_next()).await {
        ended.unwrap();
    }
    drop(clients);
    let drained = soon(serving).await.unwrap();
    assert!(!drained.left_behind && drained.working == 0, "{drained:?}");
    let left = (
        drain.active_calls(),
        drain.active_work(),
        room.active_work(),
    );
    assert_eq!(left, (0, 0, 0));
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    env::var(name).map_or(otherwise, |value| value.parse().unwrap())
}

#[test]
fn random_schedules_leave_nothing_behind() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = from_environment("SCHEDULES_SEED", now.as_nanos() as u64);
    let number = from_environment("SCHEDULES", SCHEDULES);
    eprintln!("SCHEDULES={number} SCHEDULES_SEED={seed}");
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str() != Some(WANTED) {
            before(panic);
        }
    }));

    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    let counts = Counts::default();
    runtime.block_on(async {
        let mut rng = Rng(seed);
        for first in (0..number).step_by(BATCH as usize) {
            batch(&counts, &mut rng, BATCH.min(number - first)).await;
        }
        let metrics = tokio::runtime::Handle::current().metrics();
        soon(async {
            while metrics.num_alive_tasks() > 0 || counts.here.load(SeqCst) > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    });
    assert_eq!(counts.registered.load(SeqCst), counts.ran.load(SeqCst));
    let ends = counts.ends.iter().map(|count| count.load(SeqCst));
    let ends: Vec<_> = (0..).map(Code::from_i32).zip(ends).collect();
    let ends: Vec<_> = ends.iter().filter(|(_, count)| *count > 0).collect();
    eprintln!("{ends:?}");
    // All ways of ending occurred.
    for code in [
        Code::Ok,
        Code::Cancelled,
        Code::Unknown,
        Code::DeadlineExceeded,
        Code::NotFound,
        Code::ResourceExhausted,
        Code::Unavailable,
        Code::Aborted,
    ] {
        assert!(ends.iter().any(|(tried, _)| *tried == code), "{code:?}");
    }
}
