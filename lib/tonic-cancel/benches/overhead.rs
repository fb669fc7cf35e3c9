//! Measures the layer's overhead, and how late calls end after their deadlines. Prints one name and
//! value per line.
//!
//! Servers with and without the layer run in separate processes, and are measured in turn, so that
//! other load on the machine affects both.

#![allow(clippy::print_stdout, reason = "its figures are read there")]

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::SocketAddr,
    pin::Pin,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::{net::TcpListener, runtime::Runtime, sync::Semaphore, task::JoinSet};
use tokio_stream::{Stream, StreamExt, wrappers::TcpListenerStream};
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};
use tonic_cancel::{CallContext, CallContextLayer, StopFlag};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower_service::Service;

const CONNECTIONS: usize = 4;
const IN_FLIGHT: usize = 64;

/// How long one server is measured before it is the other one's turn. It is short, because
/// disturbances on a machine last longer.
const TURN: Duration = Duration::from_millis(250);

/// How much is measured.
#[derive(Clone, Copy)]
struct Size {
    /// Number of server pairs, each newly started. Two processes of the same program differ in
    /// speed by some percent as long as they run.
    pairs: usize,
    /// Number of open streams.
    streams: usize,
    /// Number of calls with deadlines.
    deadlines: u64,
}

/// The size without `--short`.
const FULL: Size = Size {
    pairs: 16,
    streams: 10_000,
    deadlines: 10_000,
};

/// The size with `--short`, which only shows that the benchmark works.
const SHORT: Size = Size {
    pairs: 1,
    streams: 500,
    deadlines: 200,
};

/// Number of streams per connection, well within the usual limits.
const STREAMS_EACH: usize = 500;

const LONGEST_MS: u64 = 500;
/// Number of calls with deadlines under way at a time.
const DEADLINES_AT_A_TIME: usize = 1000;

fn main() {
    let arguments: Vec<String> = env::args().collect();
    match arguments.iter().position(|argument| argument == "serve") {
        Some(at) => serve(arguments[at + 1] == "with"),
        None if arguments.iter().any(|argument| argument == "--short") => measure(SHORT),
        None => measure(FULL),
    }
}

fn measure(size: Size) {
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        throughput("without deadlines", None, size).await;
        let timeout = Some(Duration::from_secs(60));
        throughput("with deadlines", timeout, size).await;
        memory(size).await;
    });
    drop(runtime);
    Runtime::new().unwrap().block_on(deadlines(size));
}

/// Measures calls per second with and without the layer, and the server's CPU time per call.
async fn throughput(name: &str, timeout: Option<Duration>, size: Size) {
    let (mut rates, mut costs) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let mut ratios = Vec::new();
    for pair in 0..size.pairs {
        let servers = [Process::start(false), Process::start(true)];
        let mut calls = [0.0; 2];
        // The first two turns warm up. The order of the others alternates between pairs.
        let order = [0, 1, pair % 2, 1 - pair % 2, 1 - pair % 2, pair % 2];
        for (turn, which) in order.into_iter().enumerate() {
            let server = &servers[which];
            let (before, began) = (server.busy(), Instant::now());
            let count = load(server.address, timeout).await;
            if turn >= 2 {
                let rate = count / began.elapsed().as_secs_f64();
                calls[which] += rate;
                rates[which].push(rate);
                costs[which].push((server.busy() - before) / count * 1e6);
            }
        }
        ratios.push(calls[1] / calls[0]);
    }
    for (which, server) in ["without the layer", "with the layer"].iter().enumerate() {
        let (rates, costs) = (rates[which].clone(), costs[which].clone());
        println!("unary calls a second {name}, {server}\t{}", middle(rates));
        println!(
            "us of the server's time for a unary call {name}, {server}\t{}",
            middle(costs)
        );
    }
    println!(
        "unary calls a second {name}, with the layer / without\t{}",
        middle(ratios)
    );
}

/// Makes calls for one turn. Returns their number.
async fn load(address: SocketAddr, timeout: Option<Duration>) -> f64 {
    let (stop, count) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(connect(address).await);
    }
    let mut callers = JoinSet::new();
    for caller in 0..IN_FLIGHT {
        let mut client = clients[caller % CONNECTIONS].clone();
        let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
        callers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let mut request = Request::new(HealthCheckRequest::default());
                if let Some(timeout) = timeout {
                    request.set_timeout(timeout);
                }
                client.check(request).await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    tokio::time::sleep(TURN).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
    count.load(Ordering::Relaxed) as f64
}

/// Measures the memory of the server's process per open stream, with and without the layer.
async fn memory(Size { streams: count, .. }: Size) {
    let mut each = [0.0; 2];
    for (which, bytes) in each.iter_mut().enumerate() {
        let server = Process::start(which == 1);
        // Warm up, so that one-time allocations are not counted.
        drop(open(server.address, STREAMS_EACH).await);
        let before = server.resident();
        let streams = open(server.address, count).await;
        *bytes = (server.resident() - before) / count as f64;
        drop(streams);
    }
    let [without, with] = each;
    println!("bytes for each of {count} open streams, with the layer\t{with}");
    println!("bytes for each of {count} open streams, without it\t{without}");
    println!(
        "bytes that the layer adds to each of {count} open streams\t{}",
        with - without
    );
}

async fn open(address: SocketAddr, number: usize) -> impl Sized {
    let mut streams = Vec::new();
    for _ in 0..number.div_ceil(STREAMS_EACH) {
        let mut client = connect(address).await;
        for _ in 0..STREAMS_EACH.min(number - streams.len()) {
            let request = Request::new(HealthCheckRequest::default());
            let mut messages = client.watch(request).await.unwrap().into_inner();
            assert!(messages.message().await.unwrap().is_some());
            streams.push(messages);
        }
    }
    streams
}

/// Measures how late calls end after their deadlines, for unary calls and streams. The client has
/// no timer, so only the server ends the calls.
async fn deadlines(Size { deadlines, .. }: Size) {
    let (ends, ended) = mpsc::channel();
    let (work, works) = mpsc::channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder()
        .layer(tower_layer::layer_fn(Rename))
        .layer(CallContextLayer::new())
        .layer(tower_layer::layer_fn(move |inner| Watch {
            inner,
            ends: ends.clone(),
            work: work.clone(),
        }))
        .add_service(HealthServer::new(Handler { hangs: true }))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    // The work of all calls. It checks their flags about twice per millisecond, or more often.
    let working = std::thread::spawn(move || {
        let (mut begun, mut flags) = (0, Vec::<StopFlag>::new());
        while begun < deadlines || !flags.is_empty() {
            if let Ok(flag) = works.recv_timeout(Duration::from_micros(500)) {
                flags.push(flag);
                begun += 1;
            }
            flags.retain(|flag| !flag.is_requested());
        }
        begun
    });

    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(connect(address).await);
    }
    let places = Arc::new(Semaphore::new(DEADLINES_AT_A_TIME));
    let mut calls = JoinSet::new();
    for call in 0..deadlines {
        let mut client = clients[call as usize % CONNECTIONS].clone();
        let place = Arc::clone(&places).acquire_owned().await.unwrap();
        // All timeouts up to the longest, equally often, in mixed order.
        let millis = 1 + call * 7919 % LONGEST_MS;
        calls.spawn(async move {
            let _place = place;
            let mut request = Request::new(HealthCheckRequest::default());
            let timeout = format!("{millis}m").parse().unwrap();
            request.metadata_mut().insert(RENAMED, timeout);
            if call % 2 == 0 {
                return client.check(request).await.unwrap_err().code();
            }
            let mut messages = match client.watch(request).await {
                Ok(response) => response.into_inner(),
                Err(status) => return status.code(),
            };
            loop {
                match messages.message().await {
                    Ok(message) => assert!(message.is_some(), "it ended well"),
                    Err(status) => return status.code(),
                }
            }
        });
    }
    while let Some(code) = calls.join_next().await {
        assert_eq!(code.unwrap(), Code::DeadlineExceeded);
    }
    let mut late: Vec<f64> = ended.try_iter().collect();
    late.sort_by(f64::total_cmp);
    let reported = late.len() as u64;
    assert_eq!(reported, deadlines);
    assert_eq!(working.join().unwrap(), deadlines);
    let at = |share: f64| late[((late.len() - 1) as f64 * share) as usize];
    println!(
        "ms past the deadline until a call has ended, p50\t{}",
        at(0.5)
    );
    println!(
        "ms past the deadline until a call has ended, p99\t{}",
        at(0.99)
    );
    println!(
        "ms past the deadline until a call has ended, worst\t{}",
        at(1.0)
    );
    println!("of {deadlines} calls with deadlines, ended with DEADLINE_EXCEEDED\t{reported}");
}

/// Header with the timeout of a call, which only this server understands.
const RENAMED: &str = "bench-timeout";

/// Renames [`RENAMED`] to `grpc-timeout` at the server, so that the client itself does not enforce
/// the timeout.
#[derive(Clone)]
struct Rename<S>(S);

impl<S: Service<http::Request<B>>, B> Service<http::Request<B>> for Rename<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> S::Future {
        if let Some(timeout) = request.headers_mut().remove(RENAMED) {
            request.headers_mut().insert("grpc-timeout", timeout);
        }
        self.0.call(request)
    }
}

async fn connect(address: SocketAddr) -> HealthClient<Channel> {
    let endpoint = Endpoint::try_from(format!("http://{address}")).unwrap();
    HealthClient::new(endpoint.connect().await.unwrap())
}

/// Reports how late each call ends, in milliseconds, and begins its work. This runs before the
/// handler, because a call that is already late never reaches the handler.
#[derive(Clone)]
struct Watch<S> {
    inner: S,
    ends: mpsc::Sender<f64>,
    work: mpsc::Sender<StopFlag>,
}

impl<S: Service<http::Request<B>>, B> Service<http::Request<B>> for Watch<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> S::Future {
        let context = request.extensions().get::<CallContext>().unwrap();
        let deadline = context.deadline().unwrap();
        self.work.send(context.stop_flag()).unwrap();
        let ends = self.ends.clone();
        context.add_callback(move |end| {
            assert_eq!(end.code, Code::DeadlineExceeded);
            ends.send(deadline.elapsed().as_secs_f64() * 1e3).unwrap();
        });
        self.inner.call(request)
    }
}

/// Answers unary calls at once, unless `hangs`. Streams send one message and stay open.
#[derive(Clone, Default)]
struct Handler {
    /// Whether unary calls are never answered.
    hangs: bool,
}

#[tonic::async_trait]
impl Health for Handler {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(HealthCheckResponse::default()))
    }

    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let one = tokio_stream::once(Ok(HealthCheckResponse::default()));
        Ok(Response::new(Box::pin(one.chain(tokio_stream::pending()))))
    }
}

/// Serves until its stdin is closed.
fn serve(with_the_layer: bool) {
    let runtime = Runtime::new().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    println!("{}", listener.local_addr().unwrap());
    std::io::stdout().flush().unwrap();
    let incoming = TcpListenerStream::new(listener);
    let service = HealthServer::new(Handler::default());
    if with_the_layer {
        let mut server = Server::builder().layer(CallContextLayer::new());
        runtime.spawn(server.add_service(service).serve_with_incoming(incoming));
    } else {
        runtime.spawn(
            Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
    }
    let _ = std::io::stdin().read(&mut [0]);
    runtime.shutdown_background();
}

/// A server in a separate process, which is killed when this value is dropped.
struct Process {
    process: Child,
    address: SocketAddr,
}

impl Process {
    fn start(with_the_layer: bool) -> Process {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["serve", if with_the_layer { "with" } else { "without" }])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = process.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        let address = line.trim().parse().unwrap();
        Process { process, address }
    }

    /// Returns the CPU time of the server's threads, in seconds.
    fn busy(&self) -> f64 {
        let threads = fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        let times = threads.map(|thread| {
            let times = fs::read_to_string(thread.unwrap().path().join("schedstat")).unwrap();
            let running = times.split(' ').next().unwrap();
            running.parse::<f64>().unwrap() / 1e9
        });
        times.sum()
    }

    /// Returns the server's resident memory, in bytes.
    fn resident(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kibibytes * 1024.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // These fail only if the process has already ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
