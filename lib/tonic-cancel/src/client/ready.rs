//! Calls that wait until their channel is ready.
//!
//! tonic has no such calls: each call on a channel that is not connected makes one attempt to
//! connect, and fails if that fails. A call cannot simply be repeated, because its request is
//! consumed, and above the channel it is unknown whether any part was sent. So the waiting happens
//! in a wrapper of the channel, where a request is only metadata and a body. The body is lent to
//! each attempt. As long as no attempt has polled it for a frame, nothing was sent, and the request
//! can be sent again.

use std::{
    error::Error,
    fmt,
    hash::{BuildHasher, Hasher, RandomState},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, header::HeaderMap};
use http_body::{Body as HttpBody, Frame};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};
use tonic::{ConnectError, Status, body::Body};
use tower_service::Service;

use crate::timeout;

type BoxError = Box<dyn Error + Send + Sync>;

/// Intervals between attempts to connect, as in gRPC's `doc/connection-backoff.md`.
///
/// The wait after the first failure in a row is `initial`. After each further failure it is
/// `multiplier` times as long, up to `max`. Each wait is lengthened or shortened at random, by at
/// most `jitter` times its length. A wait is measured from the start of the attempt that failed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The first wait. It should be long enough not to overload a server that is being restarted,
    /// and short enough not to be noticed.
    pub initial: Duration,
    /// Factor from each wait to the next.
    pub multiplier: f64,
    /// Maximum random change of a wait, as a share from 0 to 1. It keeps clients that lost a server
    /// together from reconnecting together.
    pub jitter: f64,
    /// Maximum wait, before jitter. After a long outage, this is how long it can take until the
    /// client notices that the server is back.
    pub max: Duration,
}

impl Backoff {
    /// The values shared by gRPC's implementations.
    pub const GRPC: Backoff = Backoff {
        initial: Duration::from_secs(1),
        multiplier: 1.6,
        jitter: 0.2,
        max: Duration::from_secs(120),
    };

    /// Returns the wait after `failures` failures in a row (at least 1). `chance` is from -1 to 1.
    fn wait(&self, failures: u32, chance: f64) -> Duration {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.initial.as_secs_f64() * self.multiplier.powi(exponent);
        let wait = grown.min(self.max.as_secs_f64());
        // Invalid numbers result in the longest wait instead of a panic.
        Duration::try_from_secs_f64(wait * (1.0 + self.jitter * chance)).unwrap_or(self.max)
    }
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff::GRPC
    }
}

/// A channel on which calls may wait for a connection.
///
/// Any generated client can be built over it. While the channel cannot connect, a call started with
/// [`CallOptions::wait_for_ready`](super::CallOptions::wait_for_ready) waits until there is a
/// connection, the call's deadline passes, or the call is cancelled. Only one waiting call at a
/// time tries to connect, at the intervals of [`Backoff`]; the others wait for the outcome. A call
/// without this option passes straight through: it makes a separate attempt, and fails if that
/// fails.
///
/// A request is sent again only if no part of it was ever sent: its body, which may be a stream, is
/// not touched until a connection asks for the first message. A call that fails later is not
/// retried.
///
/// Clones share the connection and the turn to connect. Set [`Endpoint::connect_timeout`][timeout]
/// on the endpoint of the wrapped channel. Otherwise an attempt to which no server responds lasts
/// as long as the operating system allows, and the other calls wait for it.
///
/// [timeout]:
/// https://docs.rs/tonic/0.14/tonic/transport/struct.Endpoint.html#method.connect_timeout
///
/// ```
/// # async fn doc() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use tonic::{Request, transport::Endpoint};
/// use tonic_cancel::{Call, CallOptions, ReadyChannel};
/// use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
///
/// let endpoint = Endpoint::from_static("http://127.0.0.1:50051");
/// let channel = endpoint.connect_timeout(Duration::from_secs(20)).connect_lazy();
/// let mut client = HealthClient::new(ReadyChannel::new(channel));
/// let options = CallOptions::new().wait_for_ready(true).timeout(Duration::from_secs(60));
/// // The server need not be running yet.
/// let request = Request::new(HealthCheckRequest::default());
/// let call = Call::start(request, options, |request| async move { client.check(request).await });
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ReadyChannel<S> {
    channel: S,
    gate: Arc<Gate>,
}

impl<S> ReadyChannel<S> {
    /// Wraps a channel, with gRPC's default [`Backoff`].
    pub fn new(channel: S) -> ReadyChannel<S> {
        ReadyChannel::with_backoff(channel, Backoff::GRPC)
    }

    /// Wraps a channel, with other intervals.
    pub fn with_backoff(channel: S, backoff: Backoff) -> ReadyChannel<S> {
        ReadyChannel {
            channel,
            gate: Arc::new(Gate::new(backoff)),
        }
    }
}

impl<S, B> Service<Request<Body>> for ReadyChannel<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // Each call polls its own clone of the channel. If `poll_ready` reserved a place in this
        // channel's queue, a waiting call would hold it and block the calls that do not wait.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let (channel, gate) = (self.channel.clone(), Arc::clone(&self.gate));
        let mark = request.extensions_mut().remove::<Mark>();
        Box::pin(async move {
            match mark {
                Some(mark) => when_ready(channel, gate, &mark, request).await,
                None => {
                    let response = send(channel, request).await;
                    if response.is_ok() {
                        gate.connected();
                    }
                    response
                }
            }
        })
    }
}

impl<S> fmt::Debug for ReadyChannel<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadyChannel")
            .field("state", &*self.gate.state.borrow())
            .finish_non_exhaustive()
    }
}

async fn send<S, B>(mut channel: S, request: Request<Body>) -> Result<Response<B>, BoxError>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
{
    let ready = std::future::poll_fn(|cx| channel.poll_ready(cx)).await;
    ready.map_err(Into::into)?;
    channel.call(request).await.map_err(Into::into)
}

/// Sends a request. Until it reaches a connection, waits and tries again. Dropping the future
/// leaves nothing behind: its turn to connect, if it has one, passes to another call.
async fn when_ready<S, B>(
    channel: S,
    gate: Arc<Gate>,
    mark: &Mark,
    request: Request<Body>,
) -> Result<Response<B>, BoxError>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone,
    S::Error: Into<BoxError>,
{
    let (parts, body) = request.into_parts();
    let held = Arc::new(Held {
        gate: Arc::clone(&gate),
        slot: Mutex::new(Slot {
            body: Some(body),
            attempt: 0,
            turn: None,
        }),
    });
    mark.take(&held);
    let _letting_go = LettingGo(Arc::clone(&held));
    let mut turn = None;
    loop {
        turn = gate.clearance(turn).await;
        let (began, probing) = (Instant::now(), turn.is_some());
        if probing {
            gate.begins(began);
        }
        let mut parts = parts.clone();
        mark.write_timeout(&mut parts.headers);
        let body = held.lend(turn.take());
        let mut attempt = pin!(send(channel.clone(), Request::from_parts(parts, body)));
        let result = tokio::select! {
            // Prefer the attempt's own result, even if another call's failure is known.
            biased;
            result = &mut attempt => result,
            // The request is still queued behind one that could not connect. If it stayed there, it
            // would make a separate attempt to connect, as would all others in the queue.
            () = gate.wait_until(Is::Down), if !probing => match held.take_back() {
                Some(_) => continue,
                None => attempt.await,
            },
        };
        let problem = result.as_ref().err().and_then(|e| Problem::of(&**e));
        let Some(problem) = problem else {
            if result.is_ok() {
                // The server may have answered without reading the body.
                gate.connected();
            }
            return result;
        };
        let Some(taken_back) = held.take_back() else {
            return result;
        };
        turn = taken_back;
        match problem {
            Problem::Lost(_) if !probing => gate.lost(),
            Problem::Lost(error) | Problem::NotConnected(error) => {
                gate.failed(error.to_string(), began, probing);
            }
        }
    }
}

/// Why a request did not reach a connection.
enum Problem<'a> {
    /// A connection could not be made.
    NotConnected(&'a dyn Error),
    /// The connection was already closed when the request reached it.
    Lost(&'a dyn Error),
}

impl Problem<'_> {
    fn of<'a>(error: &'a (dyn Error + 'static)) -> Option<Problem<'a>> {
        let mut next = Some(error);
        while let Some(error) = next {
            if error.is::<ConnectError>() {
                return Some(Problem::NotConnected(error));
            }
            if let Some(hyper_error) = error.downcast_ref::<hyper::Error>() {
                // hyper returns an unsent request with this error.
                return hyper_error.is_canceled().then_some(Problem::Lost(error));
            }
            next = error.source();
        }
        None
    }
}

/// Whether a call failed because it could not connect.
pub(super) fn is_connect_failure(status: &Status) -> bool {
    matches!(Problem::of(status), Some(Problem::NotConnected(_)))
}

/// Request extension that marks a call that may wait for its channel.
#[derive(Clone)]
pub(super) struct Mark {
    deadline: Option<Instant>,
    /// The request's body, once a [`ReadyChannel`] has taken the request.
    held: Arc<OnceLock<Arc<Held>>>,
}

impl Mark {
    pub(super) fn new(deadline: Option<Instant>) -> Mark {
        Mark {
            deadline,
            held: Arc::default(),
        }
    }

    pub(super) fn is_taken(&self) -> bool {
        self.held.get().is_some()
    }

    /// Returns the connection error because of which the call waits, if it is waiting.
    pub(super) fn waits_for(&self) -> Option<String> {
        self.held.get()?.waits_for()
    }

    fn take(&self, held: &Arc<Held>) {
        // If a call sends several requests, the first one counts.
        let _ = self.held.set(Arc::clone(held));
    }

    /// Writes the remaining time into the headers, as a timeout for the server.
    fn write_timeout(&self, headers: &mut HeaderMap) {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            timeout::write(headers, left);
        }
    }
}

/// A request's body, which is lent to one attempt after another until one of them uses it.
struct Held {
    gate: Arc<Gate>,
    slot: Mutex<Slot>,
}

struct Slot {
    /// Present until an attempt has used it.
    body: Option<Body>,
    /// Number of the attempt that may use the body. Earlier attempts may still be queued.
    attempt: u64,
    turn: Option<Turn>,
}

impl Held {
    /// Returns a body for a new attempt, and stores the attempt's turn, if it has one.
    fn lend(self: &Arc<Self>, turn: Option<Turn>) -> Body {
        let mut slot = self.lock();
        slot.turn = turn;
        Body::new(Lent {
            held: Arc::clone(self),
            attempt: slot.attempt,
            body: None,
        })
    }

    /// Ends the attempt and returns its turn, if it has one. Returns `None` if an attempt has used
    /// the body.
    fn take_back(&self) -> Option<Option<Turn>> {
        let mut slot = self.lock();
        slot.body.as_ref()?;
        slot.attempt += 1;
        Some(slot.turn.take())
    }

    /// Hands out the body itself, for good: the attempt has polled for it, so it is on a
    /// connection. Returns `None` if the attempt was given up.
    fn hand_over(&self, attempt: u64) -> Option<Body> {
        let mut slot = self.lock();
        if slot.attempt != attempt {
            return None;
        }
        let (body, turn) = (slot.body.take(), slot.turn.take());
        drop(slot);
        self.gate.connected();
        drop(turn);
        body
    }

    fn waits_for(&self) -> Option<String> {
        self.lock().body.as_ref()?;
        let state = self.gate.state.borrow();
        state.problem.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        // No foreign code runs under the lock, so nothing can poison it.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When dropped, drops the body and the turn, because the call no longer waits. A queued attempt or
/// the call's handle may still hold the [`Held`].
struct LettingGo(Arc<Held>);

impl Drop for LettingGo {
    fn drop(&mut self) {
        let mut slot = self.0.lock();
        slot.attempt += 1;
        let let_go = (slot.body.take(), slot.turn.take());
        drop(slot);
        drop(let_go);
    }
}

/// The body of one attempt.
struct Lent {
    held: Arc<Held>,
    attempt: u64,
    /// The request's own body, once this attempt has polled for it.
    body: Option<Body>,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.body.is_none() {
            self.body = self.held.hand_over(self.attempt);
        }
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            // Ending the body here would turn the request into an empty one.
            None => Poll::Ready(Some(Err(Status::cancelled("the request was taken back")))),
        }
    }

    fn is_end_stream(&self) -> bool {
        // Return `false` until the body is polled, even if it is empty: only the poll shows that
        // the request is on a connection.
        self.body.as_ref().is_some_and(HttpBody::is_end_stream)
    }
}

/// The last known state of a channel, and the turn to try to connect.
struct Gate {
    backoff: Backoff,
    state: watch::Sender<State>,
    turns: Arc<Semaphore>,
}

#[derive(Debug)]
struct State {
    /// Whether the last request reached a connection.
    is: Is,
    /// Number of failed attempts in a row.
    failures: u32,
    /// Error of the last failed attempt.
    problem: Option<String>,
    /// When the next attempt may begin.
    not_before: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Up,
    Down,
}

/// The right to try to connect. Only one call at a time has it.
type Turn = OwnedSemaphorePermit;

impl Gate {
    fn new(backoff: Backoff) -> Gate {
        let (state, _) = watch::channel(State {
            // No call has tried yet. The first one does, and the others wait for its outcome.
            is: Is::Down,
            failures: 0,
            problem: None,
            not_before: Instant::now(),
        });
        Gate {
            backoff,
            state,
            turns: Arc::new(Semaphore::new(1)),
        }
    }

    /// Waits until a request may be sent. Returns the turn to try to connect, or `None` if the
    /// channel is ready. A call that already has the turn keeps it while it waits.
    async fn clearance(&self, turn: Option<Turn>) -> Option<Turn> {
        let turn = match turn {
            Some(turn) => turn,
            None => tokio::select! {
                biased;
                () = self.wait_until(Is::Up) => return None,
                turn = Arc::clone(&self.turns).acquire_owned() => {
                    turn.expect("the semaphore is never closed")
                }
            },
        };
        let not_before = self.state.borrow().not_before;
        tokio::select! {
            biased;
            // A call that does not wait may have connected meanwhile.
            () = self.wait_until(Is::Up) => None,
            () = tokio::time::sleep_until(not_before) => Some(turn),
        }
    }

    async fn wait_until(&self, is: Is) {
        let mut state = self.state.subscribe();
        let reached = state.wait_for(|state| state.is == is).await;
        debug_assert!(reached.is_ok(), "the sender is this gate's");
    }

    /// Records that an attempt to connect begins. If the call is cancelled, the outcome of its
    /// attempt is never recorded, but the next attempt must still wait the first interval.
    fn begins(&self, began: Instant) {
        let wait = self.backoff.wait(1, chance());
        self.state.send_if_modified(|state| {
            state.not_before = began + wait;
            // No task waits for this change.
            false
        });
    }

    /// Records that a request is on a connection.
    fn connected(&self) {
        self.state.send_if_modified(|state| {
            let changed = state.is == Is::Down;
            state.is = Is::Up;
            state.failures = 0;
            state.problem = None;
            changed
        });
    }

    /// Records that the connection was already closed when a request reached it. The next attempt
    /// may begin at once.
    fn lost(&self) {
        self.state.send_if_modified(|state| {
            let changed = state.is == Is::Up;
            if changed {
                state.is = Is::Down;
                state.not_before = Instant::now();
            }
            changed
        });
    }

    /// Records that an attempt to connect has failed. A failure without a turn counts only if the
    /// channel was not known to be down.
    fn failed(&self, problem: String, began: Instant, probing: bool) {
        tracing::debug!(problem, probing, "cannot connect");
        let chance = chance();
        self.state.send_if_modified(|state| {
            if !probing && state.is == Is::Down {
                return false;
            }
            state.is = Is::Down;
            state.failures = state.failures.saturating_add(1);
            state.not_before = began + self.backoff.wait(state.failures, chance);
            state.problem = Some(problem);
            true
        });
    }
}

/// Returns a random number from -1 to 1. Its quality does not matter, so no crate is needed.
fn chance() -> f64 {
    let bits = RandomState::new().build_hasher().finish();
    bits as f64 / u64::MAX as f64 * 2.0 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_their_limit_and_vary() {
        let backoff = Backoff::GRPC;
        let seconds = |failures, chance| backoff.wait(failures, chance).as_secs_f64();
        for (failures, chance, expected) in [
            (1, 0.0, 1.0),
            (1, 1.0, 1.2),
            (1, -1.0, 0.8),
            (2, 0.0, 1.6),
            (3, 0.0, 2.56),
            (3, -1.0, 2.048),
            (12, 0.0, 120.0),
            (12, 1.0, 144.0),
            (u32::MAX, 0.0, 120.0),
        ] {
            let wait = seconds(failures, chance);
            assert!((wait - expected).abs() < 1e-6, "{failures} {chance} {wait}");
        }
    }

    #[test]
    fn invalid_numbers_give_the_longest_wait() {
        let max = Duration::from_secs(5);
        for (multiplier, jitter) in [(1.0, -7.0), (-1.0, 0.0), (f64::NAN, f64::NAN)] {
            let backoff = Backoff {
                multiplier,
                jitter,
                max,
                ..Backoff::GRPC
            };
            assert_eq!(backoff.wait(2, 1.0), max, "{backoff:?}");
        }
    }

    #[test]
    fn chance_stays_within_its_bounds() {
        let numbers: Vec<f64> = (0..1000).map(|_| chance()).collect();
        assert!(numbers.iter().all(|number| (-1.0..=1.0).contains(number)));
        assert!(numbers.iter().any(|number| *number > 0.5));
        assert!(numbers.iter().any(|number| *number < -0.5));
    }

    /// An attempt that was given up may still be queued, so its body may still be polled.
    #[tokio::test]
    async fn an_attempt_that_was_given_up_cannot_use_the_body() {
        let gate = Arc::new(Gate::new(Backoff::GRPC));
        let held = Arc::new(Held {
            gate: Arc::clone(&gate),
            slot: Mutex::new(Slot {
                body: Some(Body::empty()),
                attempt: 0,
                turn: None,
            }),
        });
        let frame = async |body: &mut Body| {
            std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
        };
        let turn = gate.clearance(None).await;
        let mut first = held.lend(turn);
        assert!(!first.is_end_stream());
        let turn = held.take_back().unwrap();
        assert!(turn.is_some());
        let mut second = held.lend(turn);
        assert!(frame(&mut first).await.unwrap().is_err());
        assert_eq!(gate.state.borrow().is, Is::Down);
        assert!(frame(&mut second).await.is_none());
        assert_eq!(gate.state.borrow().is, Is::Up);
        assert!(held.take_back().is_none());
        assert_eq!(gate.turns.available_permits(), 1);
    }

    /// If the call with the turn is dropped, another call gets the turn and waits for the rest of
    /// the interval.
    #[tokio::test(start_paused = true)]
    async fn a_dropped_turn_passes_on_with_the_rest_of_the_wait() {
        let gate = Gate::new(Backoff::GRPC);
        let began = Instant::now();
        let turn = gate.clearance(None).await;
        gate.failed("no".to_owned(), began, true);
        let not_before = gate.state.borrow().not_before;
        assert!(not_before >= began + Duration::from_millis(800));
        let waiting = gate.clearance(turn);
        let next = gate.clearance(None);
        let gone = tokio::time::timeout(Duration::from_millis(100), waiting).await;
        assert!(gone.is_err());
        assert!(next.await.is_some());
        assert!(Instant::now() >= not_before);

        // A connection made by another call ends all waiting.
        gate.failed("no".to_owned(), Instant::now(), true);
        let began = Instant::now();
        let (cleared, ()) = tokio::join!(gate.clearance(None), async { gate.connected() });
        assert!(cleared.is_none());
        assert_eq!(Instant::now(), began);
    }
}
