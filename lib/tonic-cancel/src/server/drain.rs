//! Ending a server in bounded time.

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

/// Close, wait, force: knows every call of the layers that share it, and ends them in bounded time.
///
/// Clones are the same drain. [`serve`](Drain::serve) runs a whole server to its end by it.
#[derive(Clone)]
pub struct Drain {
    shared: Arc<DrainShared>,
}

struct DrainShared {
    refusal: Refusal,
    calls: Mutex<Calls>,
    /// How many calls have work under way, on whatever threads.
    working: AtomicUsize,
    /// Notified when the drain is closed and, once it is, when the last call or work has ended.
    changed: Notify,
    aside: OnceLock<Drain>,
}

type Refusal = Arc<dyn Fn() -> Status + Send + Sync>;

#[derive(Default)]
struct Calls {
    closed: bool,
    active: Slab<Weak<Shared>>,
}

/// What a drain had to do, and what it could not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// How many calls outlasted the grace period and were told to stop.
    pub told: usize,
    /// How many of these outlasted the notice as well and were ended without their handlers.
    pub forced: usize,
    /// How many calls had work that was still under way at the end; see [`Drain::active_work`].
    pub working: usize,
    /// Whether [`Drain::serve`] left connections behind that did not close in time.
    pub left_behind: bool,
}

/// How long the steps of [`Drain::serve`] may take.
///
/// The defaults add up to 22 seconds, for what watches over servers commonly kills them 30 seconds
/// after it has told them to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainOptions {
    grace: Duration,
    notice: Duration,
    close: Duration,
}

impl DrainOptions {
    /// How long calls may go on undisturbed, unless set otherwise: longer than nearly every unary
    /// call takes.
    pub const GRACE: Duration = Duration::from_secs(20);

    /// How long calls may take to answer that were told to stop, unless set otherwise. A handler
    /// that listens does so within milliseconds; nearly all of this is for a machine that is busy.
    pub const NOTICE: Duration = Duration::from_secs(1);

    /// How long connections may take to close, and work to end, once every call has ended, unless
    /// set otherwise: some round trips, for last statuses to be read. A peer that does not read, or
    /// never began to speak, is not worth more.
    pub const CLOSE: Duration = Duration::from_secs(1);

    /// The defaults.
    #[must_use]
    pub const fn new() -> DrainOptions {
        DrainOptions {
            grace: DrainOptions::GRACE,
            notice: DrainOptions::NOTICE,
            close: DrainOptions::CLOSE,
        }
    }

    /// How long calls may go on undisturbed.
    #[must_use]
    pub const fn grace(mut self, grace: Duration) -> DrainOptions {
        self.grace = grace;
        self
    }

    /// How long calls that were told to stop may take to answer.
    #[must_use]
    pub const fn notice(mut self, notice: Duration) -> DrainOptions {
        self.notice = notice;
        self
    }

    /// How long connections may take to close, and work to end, once every call has ended.
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
    /// A drain that refuses late calls, and ends the ones that it must force, with UNAVAILABLE.
    #[must_use]
    pub fn new() -> Drain {
        Drain::with_status(|| Status::unavailable("the server is shutting down"))
    }

    /// A drain with a status of its own for calls that it refuses or forces. UNAVAILABLE is what
    /// tells clients to go elsewhere.
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

    /// The drain for calls that nobody need wait for, of those who watch the server's health above
    /// all: they never end by themselves, and are of use until the others have. They go on while
    /// this drain waits for its own calls, and new ones are let in as long as the server takes any, which
    /// under [`serve`](Self::serve) it does not. Then each is ended as soon as its handler has nothing more
    /// to say that it could say at once: that the server does not serve any more, for one.
    ///
    /// It is the same one every time. Give it to the layers of such services.
    #[must_use]
    pub fn aside(&self) -> Drain {
        let new = || Drain::refusing(Arc::clone(&self.shared.refusal));
        self.shared.aside.get_or_init(new).clone()
    }

    /// Refuses every call from now on.
    pub fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_waiters();
    }

    /// Whether every call is refused.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.lock().closed
    }

    /// Waits until the drain is closed: what a server's graceful shutdown waits for.
    ///
    /// Dropping the future has no effect.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        async move { shared.until(|shared| shared.lock().closed).await }
    }

    /// How many calls have not ended.
    #[must_use]
    pub fn active_calls(&self) -> usize {
        self.shared.lock().active.len()
    }

    /// How many calls have work under way, calls included that have ended: work that
    /// [`CallContext::run_on`] and its like have begun, or for which a
    /// [`WorkGuard`](crate::WorkGuard) is held.
    #[must_use]
    pub fn active_work(&self) -> usize {
        self.shared.working.load(Ordering::SeqCst)
    }

    /// Ends all calls: refuses new ones, lets the others go on for `grace`, then tells them to stop
    /// ([`CancelReason::Drain`]) and gives their handlers `notice` to answer, then ends what is
    /// left, and what is [aside](Self::aside). It returns as soon as no call is left and the
    /// callbacks of all have run, and after `grace` and `notice` at the latest, and `notice` again for those
    /// aside, also where a stream is not being read: a call that is forced no longer counts, though its connection may still
    /// be there.
    ///
    /// Dropping the future leaves the drain closed and every call as it is.
    ///
    /// The times are kept by the thread that keeps deadlines, so they hold also while handlers block the
    /// runtime's. Where that thread cannot be started, no time is given.
    pub async fn drain(&self, grace: Duration, notice: Duration) -> Drained {
        self.close();
        let mut drained = Drained::default();
        if within(grace, self.idle()).await.is_none() {
            let calls = self.calls().into_iter();
            let told = calls.filter(|call| call.announce(CancelReason::Drain));
            drained.told = told.count();
            if within(notice, self.idle()).await.is_none() {
                drained.forced = self.force();
            }
        }
        if let Some(aside) = self.shared.aside.get() {
            aside.close();
            for call in aside.calls() {
                call.part(CancelReason::Drain, (self.shared.refusal)());
            }
            // Those of clients that do not read.
            if within(notice, aside.idle()).await.is_none() {
                aside.force();
            }
        }
        drained.working = self.active_work();
        drained
    }

    /// Runs a server until `signal` is ready, and then to its end, in bounded time.
    ///
    /// `server` is given what is to make it shut down gracefully. Once `signal` is ready the server
    /// stops to accept, and its calls are [drained](Self::drain). Then its connections have some
    /// time to close, and the work of calls that are over to end; what has not is left behind, also
    /// where a peer does not read, or has never finished its handshake, for which a graceful
    /// shutdown alone waits for ever. It takes no longer than the options add up to.
    ///
    /// Dropping the future, which is how a second signal may cut it short, drops the server; its
    /// connections, and their calls, stay with the runtime.
    ///
    /// # Errors
    ///
    /// The server's own; at once, and with its calls as they are, if it fails before the signal.
    /// A server that ends well before the signal is no error, and the drain is not closed by it.
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
                    // Which accepts, and greets, as long as it is polled.
                    result = &mut server, if ended.is_none() => ended = Some(result),
                }
            }
        };
        let close = async {
            if ended.is_none() {
                ended = Some(server.await);
            }
            // A call that was being dropped on another thread could not be ended by force, and is counted until that
            // thread has dropped it.
            self.idle().await;
            let shared = &self.shared;
            shared.until(|_| self.active_work() == 0).await;
        };
        // What has not closed by then is told in the result.
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

    /// Ends every call that is left; says how many that were.
    fn force(&self) -> usize {
        let calls = self.calls().into_iter();
        calls
            .filter(|call| call.end_with(CancelReason::Drain, Some((self.shared.refusal)())))
            .count()
    }

    /// The context of a call that has just arrived. It is counted until it ends, or has ended
    /// already if the drain is closed.
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

/// What makes a server that [`Drain::serve`] runs shut down gracefully.
pub type Shutdown = Pin<Box<dyn Future<Output = ()> + Send>>;

impl DrainShared {
    /// Waits for something of which `changed` is notified. Dropping the future has no effect.
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

/// A call's place among those that a drain counts.
pub(crate) struct Membership {
    drain: Arc<DrainShared>,
    key: usize,
    /// How many pieces of work are under way for the call.
    working: AtomicUsize,
}

impl Membership {
    /// The call has ended; to be called once.
    pub(crate) fn leave(&self) {
        let mut calls = self.drain.lock();
        calls.active.remove(self.key);
        // Nobody waits for the last call of a drain that is open.
        let last = calls.closed && calls.active.is_empty();
        drop(calls);
        if last {
            self.drain.changed.notify_waiters();
        }
    }

    /// A piece of work of the call begins.
    pub(crate) fn begin_work(&self) {
        if self.working.fetch_add(1, Ordering::SeqCst) == 0 {
            self.drain.working.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A piece of work that was begun has ended.
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
