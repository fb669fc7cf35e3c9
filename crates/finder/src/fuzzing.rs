//! What strangers can send, for the fuzz targets in `fuzz/`. It is there where `cfg(fuzzing)` is set alone.

use std::{
    collections::HashMap,
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use clap::{CommandFactory, FromArgMatches};
use hashfinder_search::{Engine, Kernel};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex, split},
    runtime::Runtime,
    task::yield_now,
    time::timeout,
};
use tonic::Code;
use tonic_cancel::Drain;

pub use crate::{auth::fuzzing::credential, rpc::fuzzing::request};
use crate::{
    auth::{self, Rules},
    cli::Cli,
    commands::serve::{self, Around, Served},
    config::fuzzing::{self as configuration, Program},
    metrics::{Calls, Counts},
    rpc::{ALL_DESCRIPTORS, AddressLimits, Limits, RateLimits, Searches},
    transport::{self, FloodLimits, Lifetimes},
};

/// How many secrets a search may try: beyond the first thousand, which are tried before a worker is woken.
const MAXIMUM_HASHES: NonZeroU64 = NonZeroU64::new(2048).unwrap();

/// How many searches there may be, few enough for one input to come to the limit.
const SEARCHES: usize = 4;

/// How many candidates wait for their reader, few enough for one input to park a search.
const QUEUE_LENGTH: usize = 4;

/// What a connection may do. Nothing but a flood should end it, and a flood has to fit into an input.
const CONNECTION: transport::Limits = transport::Limits {
    connections: NonZeroUsize::MIN,
    of_address: NonZeroUsize::MIN,
    concurrent_streams: 16,
    header_list: 2048,
    keepalive: (LONG, LONG),
    flood: FloodLimits {
        connections: u32::MAX,
        streams: 100,
        resets: 100,
        control_frames: 200,
    },
    lifetimes: Lifetimes {
        handshake: LONG,
        first_request: LONG,
        idle: LONG,
        unread: LONG,
        blocked: LONG,
        age: None,
        grace: LONG,
    },
};

/// Longer than any input takes.
const LONG: Duration = Duration::from_secs(600);

/// How many bytes can be under way in each direction.
const PIPE: usize = 1 << 16;

/// For how many turns of the runtime the server is waited for, which is enough for it to answer.
const TURNS: usize = 24;

/// How long a connection and all that came of it may take. It is mostly a millisecond; a flood is read more
/// slowly, and this is far beyond what that and a busy machine take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most tasks that may be left then: places for odds that rest, for some milliseconds.
const TASKS: usize = 32;

/// Reads a text as the configuration's file, and uses it as every command would.
///
/// # Panics
///
/// If an error in it has no text, if a setting is not read back as `config show` writes it, or if flags that are right
/// one by one make a command line that cannot be read.
pub fn config(text: &str) {
    static PROGRAM: LazyLock<Program> = LazyLock::new(|| Program::new(Cli::command()));
    configuration::config(text, &PROGRAM, |matches| {
        Cli::from_arg_matches(matches).expect("what clap matched is a command line");
    });
}

/// What a client does.
#[derive(Clone, Debug)]
pub enum Step {
    /// It sends these bytes.
    Send(Vec<u8>),
    /// It waits until the server had time to act on them.
    Wait,
}

/// A whole server with small limits, without a socket.
pub struct Server {
    runtime: Runtime,
    server: Arc<transport::Server<Served>>,
    searches: Arc<Searches>,
    drain: Drain,
}

impl Server {
    /// Starts one with a single thread that searches.
    ///
    /// # Panics
    ///
    /// If there is no thread to be had.
    #[must_use]
    pub fn start() -> Server {
        let started = Instant::now();
        let (kernel, drain, counts) = (Kernel::best(), Drain::new(), Counts::default());
        let every_search = hashfinder_search::Limits {
            searches_per_client: SEARCHES - 1,
            queue_length: QUEUE_LENGTH,
            ..hashfinder_search::Limits::default()
        };
        let clock = move || started.elapsed();
        let engine = Engine::with_limits(1, kernel, clock, every_search).expect("a thread");
        let limits = Limits {
            maximum_hashes: MAXIMUM_HASHES,
            maximum_concurrent_rpcs: NonZeroUsize::new(SEARCHES).expect("some searches"),
            weights: HashMap::new(),
            quotas: HashMap::new(),
        };
        let searches = Arc::new(Searches::new(engine, limits, counts));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime");
        let calls = Calls::new(&ALL_DESCRIPTORS).expect("the descriptors can be read");
        let (_, health) = tonic_health::server::health_reporter();
        let rules = Rules::new(&ALL_DESCRIPTORS).expect("every method has its rule");
        let around = Around {
            calls,
            traces: None,
            refusals: searches.refusals().clone(),
            request_timeout: PATIENCE,
            rate_limits: RateLimits::new(AddressLimits {
                calls_per_second: NonZeroU32::MAX,
                open_calls: NonZeroUsize::MAX,
                open_calls_of_address: NonZeroUsize::MAX,
                refused_credentials_per_second: NonZeroU32::MAX,
            }),
            auth: Arc::new(auth::fuzzing::open()),
            rules,
        };
        let all = Arc::clone(&searches);
        let service = serve::served(around, all, kernel, Code::Cancelled, &drain, health);
        let service = service.expect("the descriptors can be read");
        let stop = Arc::clone(&searches);
        let on_close = Arc::new(move |connection| stop.stop_those_of(connection));
        let counts = transport::Counts::default();
        let server = transport::Server::new(service, None, CONNECTION, counts, on_close);
        Server {
            runtime,
            server: Arc::new(server),
            searches,
            drain,
        }
    }

    /// Plays a client that connects, does these steps, closes its half of the connection and reads what there
    /// is until the server closes the other one.
    ///
    /// # Panics
    ///
    /// If the connection does not end, or a call, a search or a task outlives it.
    pub fn connection(&self, steps: impl IntoIterator<Item = Step>) {
        let (client, server) = duplex(PIPE);
        let serving = Arc::clone(&self.server);
        self.runtime.block_on(async {
            let served = tokio::spawn(async move { serving.serve_one(server).await });
            let (mut answers, mut requests) = split(client);
            let send = async {
                for step in steps {
                    match step {
                        Step::Send(bytes) => {
                            if requests.write_all(&bytes).await.is_err() {
                                // The server had enough of it.
                                break;
                            }
                        }
                        Step::Wait => turns().await,
                    }
                }
                turns().await;
                let _ = requests.shutdown().await;
            };
            let read = async {
                let mut buffer = [0; 4096];
                while let Ok(1..) = answers.read(&mut buffer).await {}
            };
            let played = timeout(PATIENCE, async { tokio::join!(send, read, served) }).await;
            let (.., served) = played.expect("a connection ends when its client has closed it");
            served.expect("a connection does not panic");
            let ended = timeout(PATIENCE, async {
                // A timer's shortest pause is longer than this takes.
                while !self.is_idle() {
                    yield_now().await;
                }
            });
            ended.await.unwrap_or_else(|_| {
                let (searches, calls) = (self.searches.metrics().active, self.drain.active_calls());
                panic!("{searches} searches and {calls} calls outlive their connection");
            });
        });
    }

    /// Odds that are being reckoned go on to their end, and are bounded elsewhere.
    fn is_idle(&self) -> bool {
        let tasks = self.runtime.metrics().num_alive_tasks();
        self.searches.metrics().active == 0 && self.drain.active_calls() == 0 && tasks <= TASKS
    }
}

async fn turns() {
    for _ in 0..TURNS {
        yield_now().await;
    }
}
