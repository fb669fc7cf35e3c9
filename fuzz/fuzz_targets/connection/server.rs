//! A whole server with small limits, without a socket.

use std::{
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use hashfinder_server::{Activity, Calls, Searches, Settings};
use hashfinder_transport::{self as transport, FloodLimits, Lifetimes};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex, split},
    runtime::Runtime,
    task::yield_now,
    time::timeout,
};

/// Maximum number of hashes of a search: more than the first 1,024, which the engine can try before
/// it wakes a worker.
const MAXIMUM_HASHES: NonZeroU64 = NonZeroU64::new(2048).unwrap();

/// Maximum number of searches at a time, few enough that one input can reach it.
const SEARCHES: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// Maximum number of queued candidates of a stream, few enough that one input can park a search.
const QUEUE_LENGTH: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// Maximum number of open calls per connection.
const STREAMS: NonZeroU32 = NonZeroU32::new(16).unwrap();

/// A duration that is longer than any input takes.
const LONG: Duration = Duration::from_secs(600);

/// Maximum number of bytes in transit in each direction.
const PIPE: usize = 1 << 16;

/// Number of times to yield to the server: enough for it to answer.
const TURNS: usize = 24;

/// Time limit for a connection, and then for everything that it has started. Usually both together
/// take a millisecond. Reading a flood takes longer, but far less than this, even on a busy
/// machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Maximum number of tasks that may remain after a connection. Each holds a place for computing
/// odds while the place cools down, for some milliseconds.
const TASKS: usize = 32;

/// An action of a client.
#[derive(Clone, Debug)]
pub enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Waits until the server has had time to process the bytes sent so far.
    Wait,
}

/// A whole server with small limits, without a socket.
pub struct Server {
    runtime: Runtime,
    server: Arc<hashfinder_server::Server>,
}

/// Returns settings with which the server ends a connection only for a flood, and with which a
/// flood fits into one input.
fn settings() -> Settings {
    Settings {
        listen: None,
        searches: Searches {
            workers: Some(NonZeroUsize::MIN),
            maximum_hashes: MAXIMUM_HASHES,
            concurrent_rpcs: SEARCHES,
            queue_length: QUEUE_LENGTH,
            ..Searches::default()
        },
        calls: Calls {
            per_second_of_address: NonZeroU32::MAX,
            open: Some(NonZeroUsize::MAX),
            open_of_address: Some(NonZeroUsize::MAX),
            refused_credentials_per_second: NonZeroU32::MAX,
            request_timeout: PATIENCE,
        },
        connections: transport::Settings {
            concurrent_streams: STREAMS,
            header_list: 2048,
            keepalive_interval: LONG,
            keepalive_timeout: LONG,
            flood: FloodLimits {
                streams: NonZeroU32::new(100).unwrap(),
                resets: NonZeroU32::new(100).unwrap(),
                control_frames: NonZeroU32::new(200).unwrap(),
            },
            lifetimes: Lifetimes {
                handshake: LONG,
                first_request: LONG,
                idle: LONG,
                unread: LONG,
                age: None,
                grace: LONG,
            },
            ..transport::Settings::default()
        },
        ..Settings::default()
    }
}

impl Server {
    /// Starts a server with one worker.
    pub fn start() -> Server {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime");
        let server = runtime.block_on(hashfinder_server::Server::new(settings()));
        Server {
            runtime,
            server: Arc::new(server.expect("the settings are right")),
        }
    }

    /// Plays a client that connects, performs `steps`, and closes its half of the connection.
    /// Meanwhile, it reads until the server closes the other half.
    ///
    /// # Panics
    ///
    /// Panics if the connection does not end, or a call, a search or a task outlives it.
    pub fn connection(&self, steps: impl IntoIterator<Item = Step>) {
        let (client, server) = duplex(PIPE);
        let serving = Arc::clone(&self.server);
        self.runtime.block_on(async {
            let served = tokio::spawn(async move { serving.serve_connection(server).await });
            let (mut answers, mut requests) = split(client);
            let send = async {
                for step in steps {
                    match step {
                        Step::Send(bytes) => {
                            if requests.write_all(&bytes).await.is_err() {
                                // The server has closed the connection.
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
                // Yield instead of using a timer, whose shortest pause is longer than this takes.
                while !self.is_idle() {
                    yield_now().await;
                }
            });
            ended.await.unwrap_or_else(|_| {
                panic!("{:?} outlives its connection", self.server.activity());
            });
        });
    }

    /// Whether no activity is left, apart from at most [`TASKS`] tasks. Odds that are being
    /// computed are computed to the end, and the server limits their number.
    fn is_idle(&self) -> bool {
        let tasks = self.runtime.metrics().num_alive_tasks();
        self.server.activity() == Activity::default() && tasks <= TASKS
    }
}

async fn turns() {
    for _ in 0..TURNS {
        yield_now().await;
    }
}
