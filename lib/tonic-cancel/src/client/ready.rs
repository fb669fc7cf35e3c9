//! Calls that wait until their channel is ready.
//!
//! tonic knows no such calls: each call on a channel that is not connected makes one attempt to
//! connect, and fails with it. A call cannot simply be made again, for its request is used up, and
//! above the channel nobody can tell whether any of it has left. So the waiting is done around the
//! channel, where a request is only metadata and a body: the body is lent to each attempt, and as
//! long as none has asked it for a frame, the request is whole.

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

/// How long to wait between attempts to connect: gRPC's `doc/connection-backoff.md`.
///
/// After the first failure in a row the wait is `initial`, after each further one it is
/// `multiplier` times as long, up to `max`; each is lengthened or shortened at random by up to
/// `jitter` of itself. It is counted from the beginning of the attempt that failed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The first wait. Long enough that a server that is just being restarted is not hammered,
    /// short enough that nobody minds.
    pub initial: Duration,
    /// How many times longer each wait is than the one before.
    pub multiplier: f64,
    /// The share of a wait that is left to chance, so that clients that lost a server together do not
    /// come back together. From 0 to 1.
    pub jitter: f64,
    /// The longest wait, before jitter: how late a server that was away for long is noticed.
    pub max: Duration,
}

impl Backoff {
    /// The values that gRPC's implementations share.
    pub const GRPC: Backoff = Backoff {
        initial: Duration::from_secs(1),
        multiplier: 1.6,
        jitter: 0.2,
        max: Duration::from_secs(120),
    };

    /// The wait after so many failures in a row, of which there is at least one; `chance` is from -1
    /// to 1.
    fn wait(&self, failures: u32, chance: f64) -> Duration {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.initial.as_secs_f64() * self.multiplier.powi(exponent);
        let wait = grown.min(self.max.as_secs_f64());
        // Numbers that make no sense make the longest wait, and no panic.
        Duration::try_from_secs_f64(wait * (1.0 + self.jitter * chance)).unwrap_or(self.max)
    }
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff::GRPC
    }
}

/// A channel on which calls may wait until it is ready.
///
/// Any generated client can be built over it. Calls that were started with
/// [`CallOptions::wait_for_ready`](super::CallOptions::wait_for_ready) are held back while the
/// channel cannot connect, until it can, or their deadline passes, or they are cancelled. However
/// many wait, one of them at a time tries to connect, at the intervals of [`Backoff`], and the others
/// learn of the outcome. All other calls pass straight through: each makes an attempt of its own, and
/// fails as soon as that does.
///
/// A request is only sent again if nothing of it was ever sent: its body, which may be a stream, is
/// kept whole until the connection takes the first message. What fails later is not tried again.
///
/// Clones share their connection and their waiting. Set
/// [`Endpoint::connect_timeout`](https://docs.rs/tonic/0.14/tonic/transport/struct.Endpoint.html#method.connect_timeout)
/// on the channel below: an attempt that nobody answers otherwise lasts as long as the operating
/// system lets it, and the others wait for it.
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
/// // There need be no server yet.
/// let call = Call::start(Request::new(HealthCheckRequest::default()), options, |request| async move {
///     client.check(request).await
/// });
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ReadyChannel<S> {
    channel: S,
    gate: Arc<Gate>,
}

impl<S> ReadyChannel<S> {
    /// Wraps a channel, with gRPC's own [`Backoff`].
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
        // A call asks its own clone of the channel. One that had a place in the channel's queue and
        // waited would keep it from those that do not.
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

/// Sends a request as often as it takes until the channel is ready. Dropping the future leaves
/// nothing behind: if it was its turn to try, it is another call's.
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
            // What has failed has failed, also if another call's failure is known.
            biased;
            result = &mut attempt => result,
            // Still queued behind a call that could not connect. Were it left there, it would make
            // an attempt of its own, and so would all that are queued with it.
            () = gate.wait_until(Is::Down), if !probing => match held.take_back() {
                Some(_) => continue,
                None => attempt.await,
            },
        };
        let problem = result.as_ref().err().and_then(|e| Problem::of(&**e));
        let Some(problem) = problem else {
            if result.is_ok() {
                // Also where the server has answered without a look at what was sent.
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

/// Why a request did not get as far as a connection.
enum Problem<'a> {
    /// There was none to be had.
    NotConnected(&'a dyn Error),
    /// It was gone when the request came to it.
    Lost(&'a dyn Error),
}

impl Problem<'_> {
    fn of<'a>(error: &'a (dyn Error + 'static)) -> Option<Problem<'a>> {
        let mut next = Some(error);
        while let Some(error) = next {
            if error.is::<ConnectError>() {
                return Some(Problem::NotConnected(error));
            }
            if let Some(told) = error.downcast_ref::<hyper::Error>() {
                // Which is what hyper calls a request that it gives back unsent.
                return told.is_canceled().then_some(Problem::Lost(error));
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

/// Marks a request of a call that may wait.
#[derive(Clone)]
pub(super) struct Mark {
    deadline: Option<Instant>,
    /// The request, once a [`ReadyChannel`] has it.
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

    /// Why the call is still waiting, if it is.
    pub(super) fn waits_for(&self) -> Option<String> {
        self.held.get()?.waits_for()
    }

    fn take(&self, held: &Arc<Held>) {
        // A call with several requests is as far as its first one.
        let _ = self.held.set(Arc::clone(held));
    }

    /// Tells the server how much time is left by now.
    fn write_timeout(&self, headers: &mut HeaderMap) {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            timeout::write(headers, left);
        }
    }
}

/// A request's body, which is lent to one attempt after the other until one has used it.
struct Held {
    gate: Arc<Gate>,
    slot: Mutex<Slot>,
}

struct Slot {
    /// There until an attempt has used it.
    body: Option<Body>,
    /// The attempt that may use it; earlier ones may still be in some queue.
    attempt: u64,
    turn: Option<Turn>,
}

impl Held {
    /// A body for a new attempt, with its turn, if it has one.
    fn lend(self: &Arc<Self>, turn: Option<Turn>) -> Body {
        let mut slot = self.lock();
        slot.turn = turn;
        Body::new(Lent {
            held: Arc::clone(self),
            attempt: slot.attempt,
            body: None,
        })
    }

    /// Ends the attempt, and gives its turn back; `None` if the attempt has used the body.
    fn take_back(&self) -> Option<Option<Turn>> {
        let mut slot = self.lock();
        slot.body.as_ref()?;
        slot.attempt += 1;
        Some(slot.turn.take())
    }

    /// The body itself, for good. Whoever gets it is on a connection.
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
        // No foreign code runs under the lock, so there is nothing to poison it.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets go of the body and of the turn when nobody waits any longer, whoever else still knows of them:
/// an attempt in some queue, the handle of the call.
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

/// The body of an attempt.
struct Lent {
    held: Arc<Held>,
    attempt: u64,
    /// There once it was asked for.
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
            // To end here would make an empty request of it.
            None => Poll::Ready(Some(Err(Status::cancelled("the request was taken back")))),
        }
    }

    fn is_end_stream(&self) -> bool {
        // One that has not been asked has to be: that is how it is known to be on its way.
        self.body.as_ref().is_some_and(HttpBody::is_end_stream)
    }
}

/// What is known of a channel, and whose turn it is to find out.
struct Gate {
    backoff: Backoff,
    state: watch::Sender<State>,
    turns: Arc<Semaphore>,
}

#[derive(Debug)]
struct State {
    /// Whether the last request that got through, or did not, got through.
    is: Is,
    /// Attempts in a row that failed.
    failures: u32,
    /// Why the last one failed.
    problem: Option<String>,
    /// When the next one may begin.
    not_before: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Up,
    Down,
}

/// The right to try to connect, which one call has at a time.
type Turn = OwnedSemaphorePermit;

impl Gate {
    fn new(backoff: Backoff) -> Gate {
        let (state, _) = watch::channel(State {
            // Nobody has tried; the first call does, and the others wait for what it learns.
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

    /// Waits until a request may be sent: because the channel is ready, or with a turn to find out
    /// whether it is. Whoever has the turn keeps it while it waits.
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

    /// An attempt to connect begins. If the call that makes it is cancelled, nobody learns of its
    /// outcome, but the next one must keep its distance all the same.
    fn begins(&self, began: Instant) {
        let wait = self.backoff.wait(1, chance());
        self.state.send_if_modified(|state| {
            state.not_before = began + wait;
            // Nobody waits for that.
            false
        });
    }

    /// A request is on a connection.
    fn connected(&self) {
        self.state.send_if_modified(|state| {
            let changed = state.is == Is::Down;
            state.is = Is::Up;
            state.failures = 0;
            state.problem = None;
            changed
        });
    }

    /// The connection was gone when a request came to it. To connect again needs no waiting.
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

    /// An attempt to connect has failed. One that was made without a turn counts only if it is the
    /// first to tell of it.
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

/// A number from -1 to 1, by chance. It need not be a good one, so it needs no crate.
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
    fn numbers_that_make_no_sense_make_the_longest_wait() {
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
    fn chance_stays_in_its_bounds() {
        let numbers: Vec<f64> = (0..1000).map(|_| chance()).collect();
        assert!(numbers.iter().all(|number| (-1.0..=1.0).contains(number)));
        assert!(numbers.iter().any(|number| *number > 0.5));
        assert!(numbers.iter().any(|number| *number < -0.5));
    }

    /// An attempt that was given up may still be in a queue, and be asked for its body there.
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

    /// Whoever had the turn and is gone leaves it, and the rest of the wait, to another.
    #[tokio::test(start_paused = true)]
    async fn a_turn_goes_to_the_next_with_what_is_left_of_the_wait() {
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

        // A connection that another call has made ends all waiting.
        gate.failed("no".to_owned(), Instant::now(), true);
        let began = Instant::now();
        let (cleared, ()) = tokio::join!(gate.clearance(None), async { gate.connected() });
        assert!(cleared.is_none());
        assert_eq!(Instant::now(), began);
    }
}
