//! Serves connections from accept to close.
//!
//! This uses hyper's connections instead of tonic's server, for two reasons. Closing an idle, old
//! or unread connection with GOAWAY needs access to the connection, and the time limit on
//! handshakes must start before an HTTP/2 connection exists.

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

/// Maximum number of streams of a connection that the server resets because of the client's errors.
/// More close the connection. This is the default of the HTTP/2 library.
const MAX_LOCAL_ERROR_RESETS: usize = 1024;

/// Maximum number of calls that the client cancels before the server has accepted them, counted in
/// one poll of the connection. More close the connection. This is the default of the HTTP/2
/// library. With a limit a hundred times as high, fifty connections that did nothing else delayed a
/// healthy client by seconds.
const MAX_RESETS_BEFORE_BEGUN: usize = 20;

/// Flow-control window for requests on a connection and on each of its streams, in bytes: the
/// default of HTTP/2. A request has at most 4 KiB, and is read as soon as it arrives.
const WINDOW: u32 = 65_535;

/// Maximum number of response bytes per stream that the HTTP/2 library buffers for a slow reader:
/// two frames of the default maximum size. When the buffer is full, the search is parked until the
/// client reads.
const SEND_BUFFER: usize = 32 * 1024;

/// Maximum relative deviation from the age limit, up or down, chosen at random for each connection.
/// Without it, clients that connected together would reconnect together.
const AGE_SPREAD: f64 = 0.1;

/// Rate limit for log lines about failed handshakes, malformed requests and hostile connections. It
/// allows enough lines to identify the clients, but constant reconnecting cannot fill a disk. The
/// metrics count all failed handshakes and closed connections.
const LINES: Rate = Rate {
    per_second: 10.0,
    burst: 100.0,
};

/// Callback that is called a second before a connection is closed while it may have open calls. Its
/// argument is [`Peer::connection`].
pub type OnClose = Arc<dyn Fn(u64) + Send + Sync>;

/// Serves a service over HTTP/2. Each request carries its [`Peer`] and its
/// [`OpenCall`](crate::OpenCall) as extensions.
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
    /// Creates a server for `service`, with TLS if `tls` is given.
    ///
    /// `on_close` is called a second before a connection that has reached a time limit is cut off,
    /// so that its open calls can be ended in an orderly way.
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
            // gRPC does not use the Date header, and hyper panics if the clock is beyond the year
            // 9999.
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

    /// Accepts connections until `shutdown` is ready, then waits until every connection has closed.
    /// During shutdown each HTTP/2 connection gets a GOAWAY: it accepts no more calls, and its open
    /// calls continue. Connections without HTTP/2 are closed.
    ///
    /// Dropping the future closes the listening socket; the runtime continues to serve the accepted
    /// connections.
    ///
    /// # Errors
    ///
    /// None at present: a failed accept is retried.
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
                    // The listener neither fails nor ends.
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

    /// Waits until a connection sends something, and then serves it. A silent connection costs a
    /// socket and little else.
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
            // No call has begun, so the shutdown need not wait for this connection.
            () = leaving.cancelled() => return,
        };
        let connection = match secured {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                if self.take_line() {
                    tracing::info!(%peer, %error, "TLS handshake failed");
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

    /// Serves a connection that does not come from a [`Listener`], such as a pipe within the
    /// process. The connection has no address, and the limits on connections and addresses do not
    /// apply to it.
    ///
    /// Dropping the future closes the connection.
    pub async fn serve_connection<I>(&self, io: I)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (began, peer) = (Instant::now(), Peer::new(Who::Unknown, next_number()));
        let admission = self.limits.admission();
        let Ok(place) = admission.admit(peer.origin(), began) else {
            // These limits admit no connection at all.
            return;
        };
        place.spoke();
        let leaving = CancellationToken::new();
        self.counts.opened();
        self.serve_http2(io, peer, &place, leaving, began).await;
        self.counts.gone();
    }

    /// Serves HTTP/2 requests until the connection ends or must be closed.
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
        let (mut is_leaving, mut has_logged) = (false, false);
        let why = loop {
            let until = match lifetime.step(began.elapsed(), activity.snapshot()) {
                Step::Wait(until) => began.checked_add(until),
                Step::Leave(why) => {
                    tracing::debug!(%peer, %why, "closing connection");
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
                // One log line per connection is enough: a client may send thousands of malformed
                // requests.
                if activity.take_rejected() && !std::mem::replace(&mut has_logged, true) {
                    self.rejected(&peer);
                }
                ended
            });
            tokio::select! {
                ended = served => {
                    let Err(error) = ended else {
                        break activity.closed().or(lifetime.why());
                    };
                    tracing::debug!(%peer, %error, "connection failed");
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

    /// Returns whether the rate limit allows a log line about a peer now, and counts the line.
    fn take_line(&self) -> bool {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.try_take(LINES, Instant::now()).is_ok()
    }

    /// Logs that a request was rejected as malformed before the service saw it. The HTTP/2 library
    /// gives no details.
    fn rejected(&self, peer: &Peer) {
        if !self.take_line() {
            return;
        }
        if peer.is_user() {
            tracing::warn!(
                %peer,
                "request rejected (PROTOCOL_ERROR): its :authority is probably the socket's path; \
                 set the client's authority to localhost"
            );
        } else {
            tracing::warn!(%peer, "request rejected as malformed HTTP/2 (PROTOCOL_ERROR)");
        }
    }

    fn closed(&self, peer: &Peer, why: Closed) {
        self.counts.closed(why);
        match why {
            Closed::TooManyResets | Closed::TooManyControlFrames | Closed::Calm => {
                if self.take_line() {
                    tracing::warn!(%peer, reason = %why, "connection closed");
                }
            }
            // A few hundred clients can cause thousands of other closings per second, so those are
            // logged at debug level only.
            _ => tracing::debug!(%peer, reason = %why, "connection closed"),
        }
    }
}

/// Returns why the HTTP/2 library closed a connection, if it enforced a limit or a rule.
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

/// Passes the requests of one connection to the service, and records each call in `activity`.
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
    /// A call that waits for its response.
    struct Calling<S, F> {
        service: S,
        // `None` once the service has taken it.
        request: Option<Request<Body>>,
        #[pin]
        called: Option<F>,
        // `None` once the response body has it.
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
        let response = ready!(called.expect("the service was called above").poll(cx))?;
        this.called.set(None);
        let call = this.call.take().expect("polled after completion");
        Poll::Ready(Ok(response.map(|body| WatchedBody::new(body, call))))
    }
}
