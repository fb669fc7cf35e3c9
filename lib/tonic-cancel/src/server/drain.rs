//! Shutting down a server in bounded time.

use std::{
    fmt,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use slab::Slab;
use tokio::sync::Notify;
use tonic::Status;

use super::{
    context::{CallContext, Shared, Terms},
    deadlines::within,
    state::CancelReason,
};

/// Tracks every call of the layers that share it, and ends them in bounded time: close, wait,
/// force.
///
/// Clones refer to the same drain. [`serve`](Drain::serve) runs a whole server and shuts it down.
#[derive(Clone)]
pub struct Drain {
    shared: Arc<DrainShared>,
}

struct DrainShared {
    refusal: Refusal,
    calls: Mutex<Calls>,
    /// Number of calls that have work under way, on any thread.
    working: AtomicUsize,
    /// Notified when the drain is closed and, after that, when the last call or the last piece of
    /// work has ended.
    changed: Notify,
    aside: OnceLock<Drain>,
}

type Refusal = Arc<dyn Fn() -> Status + Send + Sync>;

#[derive(Default)]
struct Calls {
    closed: bool,
    active: Slab<Weak<Shared>>,
}

/// The result of a drain: what it had to force, and what is still running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// Number of calls that outlasted the grace period and were asked to stop.
    pub told: usize,
    /// Number of these calls that also outlasted the notice, and were ended without an answer from
    /// their handlers.
    pub forced: usize,
    /// Number of calls that still had work under way at the end; see [`Drain::active_work`].
    pub working: usize,
    /// Whether [`Drain::serve`] left connections open that did not close in time.
    pub left_behind: bool,
}

/// Time limits for the steps of [`Drain::serve`].
///
/// The defaults add up to 22 seconds, because process supervisors commonly kill a server 30 seconds
/// after asking it to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainOptions {
    grace: Duration,
    notice: Duration,
    close: Duration,
}

impl DrainOptions {
    /// Default time for which calls may continue undisturbed. Nearly every unary call takes less.
    pub const GRACE: Duration = Duration::from_secs(20);

    /// Default time in which calls may answer after they were asked to stop. A handler that reacts
    /// to the request does so within milliseconds. The rest of the second is a reserve for a busy
    /// machine.
    pub const NOTICE: Duration = Duration::from_secs(1);

    /// Default time for connections to close and work to end after every call has ended: a few
    /// round trips, so that clients can read the last statuses. Peers that do not read, or have
    /// never sent anything, get no more time than this.
    pub const CLOSE: Duration = Duration::from_secs(1);

    /// Returns the defaults.
    #[must_use]
    pub const fn new() -> DrainOptions {
        DrainOptions {
            grace: DrainOptions::GRACE,
            notice: DrainOptions::NOTICE,
            close: DrainOptions::CLOSE,
        }
    }

    /// Sets how long calls may continue undisturbed.
    #[must_use]
    pub const fn grace(mut self, grace: Duration) -> DrainOptions {
        self.grace = grace;
        self
    }

    /// Sets how long calls may take to answer after they were asked to stop.
    #[must_use]
    pub const fn notice(mut self, notice: Duration) -> DrainOptions {
        self.notice = notice;
        self
    }

    /// Sets how long connections may take to close, and work to end, after every call has ended.
    #[must_use]
    pub const fn close(mut self, close: Duration) -> DrainOptions {
        self.close = close;
        self
    }
}

impl Default for DrainOptions {
    fn default() -> DrainOptions {
        DrainOptions::new()
    }
}

impl Default for Drain {
    fn default() -> Drain {
        Drain::new()
    }
}

impl Drain {
    /// Creates a drain. Calls that it rejects or forces end with UNAVAILABLE.
    #[must_use]
    pub fn new() -> Drain {
        Drain::with_status(|| Status::unavailable("the server is shutting down"))
    }

    /// Creates a drain with another status for the calls that it rejects or forces. The default,
    /// UNAVAILABLE, makes clients try another server.
    #[must_use]
    pub fn with_status(status: impl Fn() -> Status + Send + Sync + 'static) -> Drain {
        Drain::refusing(Arc::new(status))
    }

    fn refusing(refusal: Refusal) -> Drain {
        Drain {
            shared: Arc::new(DrainShared {
                refusal,
                calls: Mutex::default(),
                working: AtomicUsize::new(0),
                changed: Notify::new(),
                aside: OnceLock::new(),
            }),
        }
    }

    /// Returns the drain for calls that a shutdown should not wait for. These are mainly health
    /// watches, which never end by themselves, and are useful until the other calls have ended.
    ///
    /// Calls of this drain continue while the main drain waits for its own calls. New ones are
    /// accepted as long as the server accepts calls at all, which it does not while
    /// [`serve`](Self::serve) is draining. Once the main drain's calls have ended, this drain
    /// rejects new calls and asks its own to stop. Each of them ends as soon as its handler has
    /// nothing more to send immediately, or by force after the notice. Until then, the handler can
    /// still report, for example, that the server is no longer serving.
    ///
    /// Every invocation returns the same drain. Pass it to the layers of services with such calls.
    #[must_use]
    pub fn aside(&self) -> Drain {
        let new = || Drain::refusing(Arc::clone(&self.shared.refusal));
        self.shared.aside.get_or_init(new).clone()
    }

    /// Rejects every new call from now on.
    pub fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_waiters();
    }

    /// Whether new calls are rejected.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.lock().closed
    }

    /// Waits until the drain is closed. Use it as the signal for a server's graceful shutdown.
    ///
    /// Dropping the future has no effect.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        async move { shared.until(|shared| shared.lock().closed).await }
    }

    /// Returns the number of calls that have not ended.
    #[must_use]
    pub fn active_calls(&self) -> usize {
        self.shared.lock().active.len()
    }

    /// Returns the number of calls that have work under way, including calls that have ended. Work
    /// counts from the moment when [`CallContext::run_on`] or [`CallContext::run_blocking`] takes
    /// it until it is done, and as long as a [`WorkGuard`](crate::WorkGuard) for it is held.
    #[must_use]
    pub fn active_work(&self) -> usize {
        self.shared.working.load(Ordering::SeqCst)
    }

    /// Ends all calls. First, this rejects new calls and lets the others continue for `grace`. Then
    /// it asks them to stop ([`CancelReason::Drain`]) and gives their handlers `notice` to answer.
    /// Finally, it ends the remaining calls, and the calls that are [aside](Self::aside).
    ///
    /// The future is ready as soon as no call is left and all callbacks have run: at the latest
    /// after `grace` and `notice`, plus another `notice` for the calls aside. That holds even if a
    /// client does not read its stream: a forced call no longer counts, although its connection may
    /// still be open.
    ///
    /// Dropping the future leaves the drain closed and every call as it is.
    ///
    /// The thread that enforces deadlines measures both times, so they hold even if handlers block
    /// threads of the runtime. If that thread cannot be started, both times count as zero.
    pub async fn drain(&self, grace: Duration, notice: Duration) -> Drained {
        self.close();
        let mut drained = Drained::default();
        if within(grace, self.idle()).await.is_none() {
            let calls = self.calls().into_iter();
            let asked = calls.filter(|call| call.announce(CancelReason::Drain));
            drained.told = asked.count();
            if within(notice, self.idle()).await.is_none() {
                drained.forced = self.force();
            }
        }
        if let Some(aside) = self.shared.aside.get() {
            aside.close();
            for call in aside.calls() {
                call.part(CancelReason::Drain, (self.shared.refusal)());
            }
            // Calls are still active only if their clients do not read, or their handlers always
            // have more to send.
            if within(notice, aside.idle()).await.is_none() {
                aside.force();
            }
        }
        drained.working = self.active_work();
        drained
    }

    /// Runs a server until `signal` is ready, then shuts it down in bounded time.
    ///
    /// `server` receives the future that starts its graceful shutdown. When `signal` is ready, the
    /// server stops accepting connections and its calls are [drained](Self::drain). After that, its
    /// connections have some time to close, and the work of ended calls has the same time to end.
    /// Whatever has not finished by then is left behind, for example a connection whose peer does
    /// not read or has not finished its handshake. A graceful shutdown without a drain waits for
    /// such connections forever. The shutdown takes no longer than the sum of the options, plus
    /// another notice if calls [aside](Self::aside) do not end by themselves: because their clients
    /// do not read, or because their handlers always have more to send.
    ///
    /// Dropping the future, for example on a second signal, drops the server. Its connections and
    /// their calls stay with the runtime.
    ///
    /// # Errors
    ///
    /// Returns the server's own error. If the server fails before the signal, the error is returned
    /// at once, and the server's calls stay as they are. A server that ends without an error before
    /// the signal is not an error, and does not close the drain.
    ///
    /// ```no_run
    /// # use tonic_health::pb::health_server::{Health, HealthServer};
    /// # async fn doc(service: impl Health) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use tonic::transport::Server;
    /// use tonic_cancel::{CallContextLayer, Drain, DrainOptions};
    ///
    /// let drain = Drain::new();
    /// let server = Server::builder()
    ///     .layer(CallContextLayer::with_drain(drain.clone()))
    ///     .add_service(HealthServer::new(service));
    /// let address = "127.0.0.1:50051".parse()?;
    /// let signal = async { drop(tokio::signal::ctrl_c().await) };
    /// let options = DrainOptions::new().grace(Duration::from_secs(5));
    /// let drained = drain
    ///     .serve(signal, options, |shutdown| server.serve_with_shutdown(address, shutdown))
    ///     .await?;
    /// println!("{} calls had to be ended", drained.forced);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn serve<F, E>(
        &self,
        signal: impl Future<Output = ()>,
        options: DrainOptions,
        server: impl FnOnce(Shutdown) -> F,
    ) -> Result<Drained, E>
    where
        F: Future<Output = Result<(), E>>,
    {
        let mut server = pin!(server(Box::pin(self.closed())));
        tokio::select! {
            ended = &mut server => return ended.map(|()| Drained::default()),
            () = signal => {}
        }
        let mut ended = None;
        let mut drained = {
            let mut draining = pin!(self.drain(options.grace, options.notice));
            loop {
                tokio::select! {
                    drained = &mut draining => break drained,
                    // The server must be polled to notice that the drain is closed, and to close
                    // connections.
                    result = &mut server, if ended.is_none() => ended = Some(result),
                }
            }
        };
        let close = async {
            if ended.is_none() {
                ended = Some(server.await);
            }
            // A call that another thread was just dropping could not be forced. It counts until
            // that thread has dropped it.
            self.idle().await;
            let shared = &self.shared;
            shared.until(|_| self.active_work() == 0).await;
        };
        // `drained` reports what has not closed or ended in time.
        let _ = within(options.close, close).await;
        drained.working = self.active_work();
        drained.left_behind = ended.is_none();
        ended.unwrap_or(Ok(())).map(|()| drained)
    }

    /// Waits until no call is left. Dropping the future has no effect.
    async fn idle(&self) {
        self.shared
            .until(|shared| shared.lock().active.is_empty())
            .await;
    }

    /// Ends every remaining call, and returns their number.
    fn force(&self) -> usize {
        let calls = self.calls().into_iter();
        calls
            .filter(|call| call.end_with(CancelReason::Drain, Some((self.shared.refusal)())))
            .count()
    }

    /// Returns the context of a new call, which counts until it ends. If the drain is closed, the
    /// call has already ended.
    pub(crate) fn admit(&self, terms: Terms) -> CallContext {
        let mut calls = self.shared.lock();
        if calls.closed {
            drop(calls);
            let call = CallContext::alone();
            call.end_with(CancelReason::Drain, Some((self.shared.refusal)()));
            return call;
        }
        let entry = calls.active.vacant_entry();
        let membership = Membership {
            drain: Arc::clone(&self.shared),
            key: entry.key(),
            working: AtomicUsize::new(0),
        };
        CallContext::from_shared(Arc::new_cyclic(|call| {
            entry.insert(Weak::clone(call));
            Shared::new(terms, Some(membership))
        }))
    }

    fn calls(&self) -> Vec<CallContext> {
        let calls = self.shared.lock();
        let active = calls.active.iter().filter_map(|(_, call)| call.upgrade());
        active.map(CallContext::from_shared).collect()
    }
}

/// The future that starts the graceful shutdown of a server that [`Drain::serve`] runs.
pub type Shutdown = Pin<Box<dyn Future<Output = ()> + Send>>;

impl DrainShared {
    /// Waits until `is_so` returns `true`. Every change of this condition must notify `changed`.
    /// Dropping the future has no effect.
    async fn until(&self, is_so: impl Fn(&DrainShared) -> bool) {
        loop {
            let changed = self.changed.notified();
            if is_so(self) {
                return;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The entry of a call in the drain that counts it.
pub(crate) struct Membership {
    drain: Arc<DrainShared>,
    key: usize,
    /// Number of pieces of work under way for the call.
    working: AtomicUsize,
}

impl Membership {
    /// Records that the call has ended. Must be called exactly once.
    pub(crate) fn leave(&self) {
        let mut calls = self.drain.lock();
        calls.active.remove(self.key);
        // While the drain is open, no task waits for the last call.
        let last = calls.closed && calls.active.is_empty();
        drop(calls);
        if last {
            self.drain.changed.notify_waiters();
        }
    }

    /// Records that a piece of work of the call begins.
    pub(crate) fn begin_work(&self) {
        if self.working.fetch_add(1, Ordering::SeqCst) == 0 {
            self.drain.working.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Records that a piece of work has ended.
    pub(crate) fn end_work(&self) {
        if self.working.fetch_sub(1, Ordering::SeqCst) > 1 {
            return;
        }
        let before = self.drain.working.fetch_sub(1, Ordering::SeqCst);
        if before == 1 && self.drain.lock().closed {
            self.drain.changed.notify_waiters();
        }
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = self.shared.lock();
        f.debug_struct("Drain")
            .field("closed", &calls.closed)
            .field("active_calls", &calls.active.len())
            .field("active_work", &self.active_work())
            .finish()
    }
}
