//! Unruly clients. At random, they make calls of every kind, give up, stop reading, disconnect in
//! the middle of a response, and come back.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Result, bail};
use fastrand::Rng;
use hashfinder_proto::{
    hash_name::{HashNameRequest, hash_finder_client::HashFinderClient},
    v1::{
        CancelSearchRequest, EstimateRequest, Keyspace, ListSearchesRequest, Query, SearchEvent,
        SearchRequest, WatchSearchesRequest, finder_client::FinderClient, keyspace::Alphabet,
        search_event::Event, search_request::From,
    },
};
use prost_types::Duration as WireDuration;
use tokio::{
    net::TcpStream,
    sync::oneshot,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tonic::{
    Request, Status, Streaming,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::healthy::block_on;

/// Number of connections per process.
pub(crate) const VISITORS: usize = 8;

/// Number of short calls, which take hardly any CPU time, that each connection begins per second.
const SHORT_CALLS: f64 = 6.0;

/// Number of client addresses: enough for their ended searches to fill the server's list of ended
/// searches.
const ADDRESSES: u8 = 40;

/// Mean time for which a connection makes calls, in seconds.
const STAY: f64 = 15.0;

/// Mean duration of a long search, which uses all cores, in seconds; and mean budget of one that
/// ends with its hash budget, which takes about as long.
const LONG: f64 = 0.15;
const LONG_HASHES: f64 = 2e7;

/// Mean patience of an impatient client, and mean length of a pause or of patient reading, in
/// seconds.
const IMPATIENCE: f64 = 0.03;
const PAUSE: f64 = 3.0;

/// Maximum duration of any call, so that calls without a deadline cannot take all the cores.
const LONGEST: Duration = Duration::from_secs(20);

/// Maximum number of open calls on a connection. Most connections are at the limit most of the
/// time, so memory use reaches its peak early. An allocator keeps the memory of a peak, and a
/// random number of calls would reach new peaks again and again.
const CALLS: usize = 6;

/// The two flow-control windows of connections, in bytes. The small one is HTTP/2's initial window.
/// The server fills the window of a client that pauses. Filling windows larger than these would
/// take more CPU time than the long searches.
const SMALL_WINDOW: u32 = 65_535;
const LARGE_WINDOW: u32 = 4 * SMALL_WINDOW;

/// A truncated HTTP/2 preface.
const HALF_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nS";

/// Runs clients until stdin ends. Each line of stdin sets how many long searches each connection
/// starts per second.
pub(crate) fn run(target: SocketAddr, seed: u64) -> Result<()> {
    let rate = Arc::new(AtomicU64::new(0.0_f64.to_bits()));
    let (end, ended) = oneshot::channel::<Infallible>();
    let shared_rate = Arc::clone(&rate);
    thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            for line in io::stdin().lines().map_while(Result::ok) {
                if let Ok(rate) = line.parse::<f64>() {
                    shared_rate.store(rate.to_bits(), Ordering::Relaxed);
                }
            }
            drop(end);
        })?;
    block_on(async move {
        let mut random = Rng::with_seed(seed);
        let mut visitors = JoinSet::new();
        for _ in 0..VISITORS {
            visitors.spawn_local(visit(target, random.fork(), Arc::clone(&rate)));
        }
        tokio::select! {
            _ = ended => Ok(()),
            Some(Err(error)) = visitors.join_next() => bail!("a client ended by itself: {error}"),
        }
    })?
}

/// Connects, makes calls and disconnects, again and again.
///
/// Dropping the future closes the connection with all its open calls.
async fn visit(target: SocketAddr, mut random: Rng, rate: Arc<AtomicU64>) -> Infallible {
    loop {
        if random.u8(..10) == 0 {
            knock(target, &mut random).await;
        }
        let Ok(channel) = connect(target, &mut random).await else {
            // The server is busy, or has no room.
            sleep(exponential(&mut random, 0.5)).await;
            continue;
        };
        let until = Instant::now() + exponential(&mut random, STAY);
        let mut calls = JoinSet::new();
        while Instant::now() < until {
            let long = f64::from_bits(rate.load(Ordering::Relaxed));
            sleep(exponential(&mut random, 1.0 / (SHORT_CALLS + long))).await;
            while calls.try_join_next().is_some() {}
            let is_long = random.f64() * (SHORT_CALLS + long) < long;
            let (channel, mut random) = (channel.clone(), random.fork());
            if calls.len() < CALLS {
                calls.spawn_local(timeout(LONGEST, async move {
                    if is_long {
                        long_call(channel, &mut random).await;
                    } else {
                        short_call(channel, &mut random).await;
                    }
                }));
            }
        }
        // Half of the time, wait a while for the last responses.
        if random.bool() {
            let _ = timeout(exponential(&mut random, PAUSE), calls.join_all()).await;
        }
    }
}

/// Connects from one of the client addresses; half of the connections have a small window.
async fn connect(target: SocketAddr, random: &mut Rng) -> Result<Channel> {
    let from = Ipv4Addr::new(127, 2, 0, random.u8(1..=ADDRESSES));
    let window = if random.bool() {
        SMALL_WINDOW
    } else {
        LARGE_WINDOW
    };
    let endpoint = Endpoint::from_shared(format!("http://{target}"))?
        .connect_timeout(LONGEST)
        .local_address(Some(IpAddr::from(from)))
        .initial_stream_window_size(window)
        .initial_connection_window_size(window);
    Ok(endpoint.connect().await?)
}

/// Opens a connection that sends nothing or nonsense, waits, and closes it.
async fn knock(target: SocketAddr, random: &mut Rng) {
    let Ok(socket) = TcpStream::connect(target).await else {
        return;
    };
    let garbage = random.u64(..).to_be_bytes();
    let said: &[u8] = match random.u8(..3) {
        0 => &[],
        1 => HALF_PREFACE,
        _ => &garbage,
    };
    if socket.writable().await.is_ok() {
        // The server need not read this.
        let _ = socket.try_write(said);
    }
    sleep(exponential(random, 0.5)).await;
}

/// Runs a search that uses all cores until it is cancelled, times out or spends its budget.
async fn long_call(channel: Channel, random: &mut Rng) {
    let time = exponential(random, LONG);
    match random.u8(..4) {
        0 => {
            let mut request = Request::new(random_request(random, 9..=20));
            request.set_timeout(time);
            let _ = HashFinderClient::new(channel).find(request).await;
        }
        1 => {
            let mut client = HashFinderClient::new(channel);
            let call = client.find_range(random_request(random, 9..=20));
            let _ = timeout(time, read_answer(call, usize::MAX)).await;
        }
        2 => {
            let request = search(random, 9..=20, 0);
            let mut client = FinderClient::new(channel);
            let Ok(stream) = client.search(request).await else {
                return;
            };
            let mut events = stream.into_inner();
            let Ok(Some(SearchEvent {
                event: Some(Event::Accepted(accepted)),
                ..
            })) = events.message().await
            else {
                return;
            };
            let _ = timeout(time, read(&mut events, usize::MAX)).await;
            let cancelled = client.cancel_search(CancelSearchRequest {
                search_id: accepted.search_id,
                reason: name(random, 0..=40),
            });
            let _ = cancelled.await;
            read(&mut events, usize::MAX).await;
        }
        _ => {
            let budget = exponential(random, 1.0).as_secs_f64() * LONG_HASHES;
            let request = search(random, 9..=20, budget as u64);
            let mut client = FinderClient::new(channel);
            let cursor = end(&mut client, request).await;
            if let Some(cursor) = cursor.filter(|cursor| !cursor.is_empty()) {
                let request = SearchRequest {
                    from: Some(From::Cursor(cursor)),
                    maximum_hashes: budget as u64,
                    progress_interval: None,
                };
                let _ = end(&mut client, request).await;
            }
        }
    }
}

/// Runs a search to its end. Returns its cursor.
async fn end(client: &mut FinderClient<Channel>, request: SearchRequest) -> Option<String> {
    let mut events = client.search(request).await.ok()?.into_inner();
    loop {
        if let Event::Ended(ended) = events.message().await.ok()??.event? {
            return Some(ended.cursor);
        }
    }
}

/// Makes a call of any other kind: one that is answered at once, one that waits, or one that is
/// rejected.
async fn short_call(channel: Channel, random: &mut Rng) {
    let mut finder = FinderClient::new(channel.clone());
    match random.u8(..20) {
        0..5 => {
            let request = hurried(random, |random| random_request(random, 1..=3));
            let mut client = HashFinderClient::new(channel);
            impatient(random, client.find(request)).await;
        }
        5..7 => {
            // The deadline is too short for the search.
            let mut request = Request::new(random_request(random, 9..=20));
            request.set_timeout(exponential(random, IMPATIENCE / 10.0));
            let _ = HashFinderClient::new(channel).find(request).await;
        }
        7..9 => {
            // Read some of the many candidates.
            let mut client = HashFinderClient::new(channel);
            read_answer(client.find_range(near(random)), random.usize(..200)).await;
        }
        9 => {
            // Read, pause, continue, and disconnect without cancelling.
            let mut client = HashFinderClient::new(channel);
            if let Ok(stream) = client.find_range(near(random)).await {
                let mut stream = stream.into_inner();
                for _ in 0..3 {
                    read(&mut stream, random.usize(..100)).await;
                    sleep(exponential(random, PAUSE)).await;
                }
            }
        }
        10 => {
            let request = hurried(random, |random| search(random, 1..=3, 0));
            let call = read_answer(finder.search(request), usize::MAX);
            let _ = timeout(exponential(random, PAUSE), call).await;
        }
        11..13 => {
            let request = hurried(random, |random| EstimateRequest {
                query: Some(query(random, 1..=12)),
            });
            impatient(random, finder.estimate(request)).await;
        }
        13..15 => {
            let request = hurried(random, |random| ListSearchesRequest {
                page_size: random.i32(0..200),
                ..ListSearchesRequest::default()
            });
            let page = impatient(random, finder.list_searches(request)).await;
            let page = page.map(tonic::Response::into_inner).unwrap_or_default();
            if random.bool()
                && let Some(one) = random.choice(&page.searches)
            {
                let cancelled = finder.cancel_search(CancelSearchRequest {
                    search_id: one.search_id.clone(),
                    reason: String::new(),
                });
                let _ = cancelled.await;
            }
        }
        15 => {
            let request = hurried(random, |random| WatchSearchesRequest {
                interval: Some(WireDuration {
                    seconds: 0,
                    nanos: random.i32(100_000_000..1_000_000_000),
                }),
                ..WatchSearchesRequest::default()
            });
            let call = read_answer(finder.watch_searches(request), usize::MAX);
            let _ = timeout(exponential(random, PAUSE), call).await;
        }
        16 => {
            let request = HealthCheckRequest {
                service: String::new(),
            };
            let mut client = HealthClient::new(channel);
            if random.bool() {
                impatient(random, client.check(request)).await;
            } else {
                let call = read_answer(client.watch(request), usize::MAX);
                let _ = timeout(exponential(random, PAUSE), call).await;
            }
        }
        _ => wrong_call(channel, random).await,
    }
}

/// Makes a call that the server rejects: an invalid or oversized request.
async fn wrong_call(channel: Channel, random: &mut Rng) {
    let mut reference = HashFinderClient::new(channel.clone());
    let mut finder = FinderClient::new(channel);
    match random.u8(..6) {
        0 => {
            let request = HashNameRequest {
                ideal_hamming_distance: -1,
                ..random_request(random, 1..=3)
            };
            let _ = reference.find(request).await;
        }
        1 => {
            let _ = reference.find(random_request(random, 29..=8000)).await;
        }
        2 => {
            let request = HashNameRequest {
                desired_name: "=".repeat(random.usize(..6)),
                ..HashNameRequest::default()
            };
            read_answer(reference.find_range(request), usize::MAX).await;
        }
        3 => {
            let request = SearchRequest {
                from: Some(From::Cursor(format!("hf2_{}", name(random, 0..=100)))),
                ..SearchRequest::default()
            };
            read_answer(finder.search(request), usize::MAX).await;
        }
        4 => {
            let request = CancelSearchRequest {
                search_id: name(random, 0..=40),
                reason: name(random, 0..=400),
            };
            let _ = finder.cancel_search(request).await;
        }
        _ => {
            let request = ListSearchesRequest {
                page_token: name(random, 1..=40),
                client: name(random, 0..=20),
                ..ListSearchesRequest::default()
            };
            let _ = finder.list_searches(request).await;
        }
    }
}

/// Waits for a response. One time in three, waits only briefly.
async fn impatient<T>(
    random: &mut Rng,
    call: impl Future<Output = Result<T, Status>>,
) -> Option<T> {
    let patience = if random.u8(..3) == 0 {
        exponential(random, IMPATIENCE)
    } else {
        LONGEST
    };
    timeout(patience, call).await.ok()?.ok()
}

/// Returns a request with a short deadline, a long one, or none.
fn hurried<T>(random: &mut Rng, message: impl FnOnce(&mut Rng) -> T) -> Request<T> {
    let mut request = Request::new(message(random));
    match random.u8(..3) {
        0 => request.set_timeout(exponential(random, IMPATIENCE)),
        1 => request.set_timeout(LONGEST),
        _ => {}
    }
    request
}

/// Makes a call, and reads at most `most` messages of its response.
///
/// Dropping the future cancels the call.
async fn read_answer<T>(
    call: impl Future<Output = Result<tonic::Response<Streaming<T>>, Status>>,
    most: usize,
) {
    if let Ok(answer) = call.await {
        read(&mut answer.into_inner(), most).await;
    }
}

async fn read<T>(stream: &mut Streaming<T>, most: usize) {
    for _ in 0..most {
        if !matches!(stream.message().await, Ok(Some(_))) {
            return;
        }
    }
}

/// Returns a request for a random name of a length within `lengths`.
fn random_request(random: &mut Rng, lengths: RangeInclusive<usize>) -> HashNameRequest {
    HashNameRequest {
        desired_name: name(random, lengths),
        ideal_hamming_distance: 0,
        interesting_hamming_distance: random.i32(0..3),
    }
}

/// Returns a request that does not end soon, and that finds candidates faster than a client can use
/// them.
fn near(random: &mut Rng) -> HashNameRequest {
    HashNameRequest {
        interesting_hamming_distance: 9,
        ..random_request(random, 10..=12)
    }
}

/// Like [`random_request`], for `hashfinder.v1`.
fn search(random: &mut Rng, lengths: RangeInclusive<usize>, maximum_hashes: u64) -> SearchRequest {
    SearchRequest {
        from: Some(From::Query(query(random, lengths))),
        maximum_hashes,
        progress_interval: random.bool().then_some(WireDuration {
            seconds: 0,
            nanos: 100_000_000,
        }),
    }
}

/// Returns a query with random names and, one time in four, random values of other fields. Some of
/// these queries are invalid.
fn query(random: &mut Rng, lengths: RangeInclusive<usize>) -> Query {
    let names = random.usize(1..=4);
    let plain = Query {
        desired_names: (0..names).map(|_| name(random, lengths.clone())).collect(),
        interesting_distance: random.i32(0..3),
        ..Query::default()
    };
    if random.u8(..4) > 0 {
        return plain;
    }
    Query {
        algorithm: random.i32(0..5),
        encoding: random.i32(0..5),
        anchor: random.i32(0..4),
        case_sensitive: random.bool(),
        keyspace: random.bool().then(|| Keyspace {
            prefix: name(random, 0..=100).into_bytes(),
            suffix: name(random, 0..=100).into_bytes(),
            alphabet: Some(Alphabet::Named(random.i32(0..5))),
        }),
        ..plain
    }
}

fn name(random: &mut Rng, lengths: RangeInclusive<usize>) -> String {
    let length = random.usize(lengths);
    (0..length).map(|_| random.alphanumeric()).collect()
}

/// Returns an exponentially distributed time with this mean in seconds, at most ten times the mean.
fn exponential(random: &mut Rng, mean: f64) -> Duration {
    let share = -(1.0 - random.f64()).ln();
    Duration::from_secs_f64(share.min(10.0) * mean)
}
