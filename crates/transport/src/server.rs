//! The server's connections, from their beginning to their end.
//!
//! This is on hyper's connections and not on tonic's server: a connection that is idle, old or not read can
//! be told to close in HTTP/2's own way (GOAWAY) only by whoever has it in hand, and a time limit on
//! handshakes has to begin before there is one.

use std::{
    convert::Infallible,
    error::Error as _,
    future::poll_fn,
    hash::{BuildHasher, RandomState},
    io,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::Service as HyperService};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{sleep_until, timeout},
};
use tokio_stream::StreamExt;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::body::Body;
use tower_service::Service;

use crate::{
    activity::{Activity, Closing, WatchedBody},
    admission::Place,
    counts::{Closed, Counts},
    lifetime::{Lifetime, Lifetimes, Step},
    listener::{Connection, Listener, next_number},
    meter::Metered,
    peer::{Peer, Who},
    rate::{Bucket, Rate},
    settings::Limits,
    tls::Tls,
};

/// How many streams of a connection may be reset over errors of the peer's making before it is
/// closed. This is the default of the HTTP/2 library.
const MAX_LOCAL_ERROR_RESETS: usize = 1024;

/// How many calls of a connection may be taken back before they were begun, which is in one look at the
/// connection; it is closed beyond that. This is the default of the HTTP/2 library. With a hundred times as
/// many, fifty connections that do nothing else kept a healthy client waiting for seconds.
const MAX_RESETS_BEFORE_BEGUN: usize = 20;

/// How many bytes of requests may be on their way on a connection, and on each of its streams: HTTP/2's own
/// default. A request has four kibibytes at most, and is read as soon as it comes.
const WINDOW: u32 = 65_535;

/// How many bytes of a response may wait in the HTTP/2 library for its reader: two of its largest frames. The
/// rest waits in the search, which is parked then.
const SEND_BUFFER: usize = 32 * 1024;

/// By how much the age at which connections are closed differs between them, so that clients which came
/// together do not come back together: a tenth to either side.
const AGE_SPREAD: f64 = 0.1;

/// How many lines the log has for handshakes that fail and connections that are closed as hostile: enough to see
/// who they are, and not so many that whoever connects all the time fills a disk. The metrics count all.
const LINES: Rate = Rate {
    per_second: 10.0,
    burst: 100.0,
};

/// Called with the number of a connection on which calls are open and which is about to be closed.
pub type OnClose = Arc<dyn Fn(u64) + Send + Sync>;

/// Serves a service over HTTP/2. Each request carries its [`Peer`] and its [`OpenCall`](crate::OpenCall) as
/// extensions.
pub struct Server<S> {
    service: S,
    tls: Option<Tls>,
    http2: http2::Builder<TokioExecutor>,
    limits: Limits,
    counts: Counts,
    on_close: OnClose,
    random: RandomState,
    lines: Mutex<Bucket>,
}

impl<S, B> Server<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
    B: http_body::Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + 'static,
{
    /// Speaks TLS where there is a `tls`. `on_close` is called when a connection is about to be closed although it has
    /// calls, so that these can be ended in an orderly way within the second that is left.
    pub fn new(
        service: S,
        tls: Option<Tls>,
        limits: Limits,
        counts: Counts,
        on_close: OnClose,
    ) -> Server<S> {
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            // gRPC has no use for it, and hyper panics if the clock is beyond the year 9999.
            .auto_date_header(false)
            .max_concurrent_streams(limits.concurrent_streams)
            .max_local_error_reset_streams(MAX_LOCAL_ERROR_RESETS)
            .max_pending_accept_reset_streams(MAX_RESETS_BEFORE_BEGUN)
            .max_header_list_size(limits.header_list)
            .initial_connection_window_size(WINDOW)
            .initial_stream_window_size(WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(limits.keepalive_interval)
            .keep_alive_timeout(limits.keepalive_timeout);
        Server {
            service,
            tls,
            http2,
            limits,
            counts,
            on_close,
            random: RandomState::new(),
            lines: Mutex::new(Bucket::new(LINES, Instant::now())),
        }
    }

    /// Serves until `shutdown` is ready, and then until every connection has closed: each is told that no
    /// more calls are taken, and its calls go on.
    ///
    /// Dropping the future closes the socket and leaves connections to the runtime.
    ///
    /// # Errors
    ///
    /// None at present: what cannot be accepted is tried again.
    pub async fn serve(
        self,
        listener: Listener,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let limits = self.limits;
        let admission = limits.admission();
        let server = Arc::new(self);
        let tasks = TaskTracker::new();
        let leaving = CancellationToken::new();
        {
            let mut listener = pin!(listener);
            let mut shutdown = pin!(shutdown);
            loop {
                let connection = tokio::select! {
                    // It never gives an error, and never ends.
                    Some(Ok(connection)) = listener.next() => connection,
                    () = &mut shutdown => break,
                };
                let peer = connection.peer();
                match admission.admit(peer.origin(), Instant::now()) {
                    Ok(place) => {
                        let (server, leaving) = (Arc::clone(&server), leaving.clone());
                        tasks.spawn(async move {
                            server.counts.opened();
                            server.accept(connection, place, leaving).await;
                            server.counts.gone();
                        });
                    }
                    Err(why) => server.closed(peer, why),
                }
            }
        }
        leaving.cancel();
        tasks.close();
        tasks.wait().await;
        Ok(())
    }

    /// Waits until a connection says something, and then serves it: one that says nothing costs a socket and little
    /// else.
    async fn accept(&self, connection: Connection, place: Place, leaving: CancellationToken) {
        let began = Instant::now();
        let lifetimes = self.lifetimes(connection.peer().connection);
        let (patience, too_late) = lifetimes.opening();
        let spoke = tokio::select! {
            spoke = timeout(patience, connection.readable()) => spoke.map_err(|_| too_late),
            () = place.lost() => Err(Closed::MadeRoom),
            () = leaving.cancelled() => return,
        };
        if let Err(why) = spoke {
            self.closed(connection.peer(), why);
            return;
        }
        place.spoke();
        let peer = connection.peer().clone();
        let patience = patience.saturating_sub(began.elapsed());
        let secured = tokio::select! {
            secured = timeout(patience, connection.secured(self.tls.as_ref())) => secured,
            // It has made no call that could be waited for.
            () = leaving.cancelled() => return,
        };
        let connection = match secured {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                if self.may_tell() {
                    tracing::info!(%peer, %error, "no TLS handshake");
                }
                self.counts.closed(Closed::Tls);
                return;
            }
            Err(_) => {
                self.closed(&peer, too_late);
                return;
            }
        };
        let peer = connection.peer().clone();
        self.serve_http2(connection, peer, &place, leaving, began)
            .await;
    }

    /// Serves a connection that comes from no [`Listener`], such as a pipe within the process. It has no address, and
    /// the limits for connections and addresses do not apply to it.
    ///
    /// Dropping the future closes the connection.
    pub async fn serve_connection<I>(&self, io: I)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (began, peer) = (Instant::now(), Peer::new(Who::Nobody, next_number()));
        let admission = self.limits.admission();
        let Ok(place) = admission.admit(peer.origin(), began) else {
            // Limits that let no connection in.
            return;
        };
        place.spoke();
        let leaving = CancellationToken::new();
        self.counts.opened();
        self.serve_http2(io, peer, &place, leaving, began).await;
        self.counts.gone();
    }

    /// Answers what comes, for as long as the connection may last.
    async fn serve_http2<I>(
        &self,
        io: I,
        peer: Peer,
        place: &Place,
        leaving: CancellationToken,
        began: Instant,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let activity = Activity::new(began);
        let io = Metered::new(
            io,
            self.limits.flood,
            place.shared(self.limits.flood, began),
            Arc::clone(&activity),
            self.counts.clone(),
        );
        let calls = Calls {
            service: self.service.clone(),
            peer: peer.clone(),
            activity: Arc::clone(&activity),
        };
        let mut lifetime = Lifetime::new(self.lifetimes(peer.connection), self.limits.blocked);
        let mut connection = pin!(self.http2.serve_connection(TokioIo::new(io), calls));
        let (mut is_leaving, mut has_told) = (false, false);
        let why = loop {
            let until = match lifetime.step(began.elapsed(), activity.snapshot()) {
                Step::Wait(until) => began.checked_add(until),
                Step::Leave(why) => {
                    tracing::debug!(%peer, %why, "closing a connection");
                    connection.as_mut().graceful_shutdown();
                    continue;
                }
                Step::Stop => {
                    (self.on_close)(peer.connection);
                    continue;
                }
                Step::Cut(why) => break Some(why),
            };
            let until = async {
                match until {
                    Some(until) => sleep_until(until.into()).await,
                    None => std::future::pending().await,
                }
            };
            let served = poll_fn(|cx| {
                let ended = connection.as_mut().poll(cx);
                // One client may send thousands.
                if activity.take_rejected() && !std::mem::replace(&mut has_told, true) {
                    self.rejected(&peer);
                }
                ended
            });
            tokio::select! {
                ended = served => {
                    let Err(error) = ended else {
                        break activity.closed().or(lifetime.why());
                    };
                    tracing::debug!(%peer, %error, "a connection ended");
                    let why = activity.closed().or_else(|| of_library(&error));
                    if matches!(why, Some(Closed::Calm | Closed::Broken)) {
                        place.broke(Instant::now());
                    }
                    break why.or(lifetime.why());
                }
                () = until => {}
                () = leaving.cancelled(), if !is_leaving => {
                    is_leaving = true;
                    lifetime.leave();
                    connection.as_mut().graceful_shutdown();
                }
            }
        };
        if let Some(why) = why {
            self.closed(&peer, why);
        }
    }

    fn lifetimes(&self, connection: u64) -> Lifetimes {
        let spread = self.random.hash_one(connection) as f64 / u64::MAX as f64;
        let factor = 1.0 + AGE_SPREAD * (2.0 * spread - 1.0);
        let age = self.limits.lifetimes.age.map(|age| {
            Duration::try_from_secs_f64(age.as_secs_f64() * factor).unwrap_or(Duration::MAX)
        });
        Lifetimes {
            age,
            ..self.limits.lifetimes
        }
    }

    /// Whether the log has room for what a peer has brought about.
    fn may_tell(&self) -> bool {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.try_take(LINES, Instant::now()).is_ok()
    }

    /// A request was reset as malformed before any of ours saw it. The HTTP/2 library says no more than that.
    fn rejected(&self, peer: &Peer) {
        if !self.may_tell() {
            return;
        }
        if peer.is_user() {
            tracing::warn!(
                %peer,
                "a request was rejected (PROTOCOL_ERROR): its :authority is probably the socket's path; set the \
                 client's authority to localhost"
            );
        } else {
            tracing::warn!(%peer, "a request was rejected as malformed HTTP/2 (PROTOCOL_ERROR)");
        }
    }

    fn closed(&self, peer: &Peer, why: Closed) {
        self.counts.closed(why);
        match why {
            Closed::TooManyResets | Closed::TooManyControlFrames | Closed::Calm => {
                if self.may_tell() {
                    tracing::warn!(%peer, reason = %why, "connection closed");
                }
            }
            // Of these a few hundred connections can make thousands each second.
            _ => tracing::debug!(%peer, reason = %why, "connection closed"),
        }
    }
}

/// Why the HTTP/2 library closed a connection by itself, where that is one of the limits.
fn of_library(error: &hyper::Error) -> Option<Closed> {
    if error.is_timeout() {
        return Some(Closed::Keepalive);
    }
    let cause = error.source()?.downcast_ref::<h2::Error>()?;
    if !(cause.is_go_away() && cause.is_library()) {
        return None;
    }
    Some(match cause.reason() {
        Some(h2::Reason::ENHANCE_YOUR_CALM) => Closed::Calm,
        _ => Closed::Broken,
    })
}

/// The calls of one connection.
struct Calls<S> {
    service: S,
    peer: Peer,
    activity: Arc<Activity>,
}

impl<S, B> HyperService<Request<Incoming>> for Calls<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone,
    B: http_body::Body,
{
    type Response = Response<WatchedBody<B>>;
    type Error = Infallible;
    type Future = Calling<S, S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let call = self.activity.open();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.peer.clone());
        request.extensions_mut().insert(call.clone());
        Calling {
            service: self.service.clone(),
            request: Some(request),
            called: None,
            call: Some(Closing(call)),
        }
    }
}

pin_project! {
    /// A call on its way to its response.
    struct Calling<S, F> {
        service: S,
        // There until the service takes it.
        request: Option<Request<Body>>,
        #[pin]
        called: Option<F>,
        // There until the body has it.
        call: Option<Closing>,
    }
}

impl<S, B> Future for Calling<S, S::Future>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body,
{
    type Output = Result<Response<WatchedBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if this.request.is_some() {
            ready!(this.service.poll_ready(cx))?;
            let called = this
                .request
                .take()
                .map(|request| this.service.call(request));
            this.called.set(called);
        }
        let called = this.called.as_mut().as_pin_mut();
        let response = ready!(called.expect("polled after it was made").poll(cx))?;
        this.called.set(None);
        let call = this.call.take().expect("polled after it was ready");
        Poll::Ready(Ok(response.map(|body| WatchedBody::new(body, call))))
    }
}
