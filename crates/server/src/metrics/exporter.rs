//! The HTTP/1 port for operators' tools: `/metrics` for Prometheus, `/healthz` for orchestrators.

use std::{
    convert::Infallible,
    num::NonZeroUsize,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hashfinder_system::clock;
use hashfinder_transport::{Admission, Listener, rate::Rate};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{encoding::text, registry::Registry};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_server::Health,
};

use crate::metrics::format::Format;

/// Maximum number of connections: several Prometheus servers, probes, and a few people. At this
/// number, a new connection replaces the one that has been silent for longest, if any has not sent
/// its request yet.
const CONNECTIONS: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// Maximum number of connections of one address, so that slow readers at one address leave room for
/// others.
const CONNECTIONS_PER_ADDRESS: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// Maximum number of connections that an address may begin per second. A scrape is one connection,
/// and costs a tenth of a millisecond while the text of the metrics is fresh.
const NEW_CONNECTIONS: Rate = Rate {
    per_second: 200.0,
    burst: 200.0,
};

/// Maximum time for a request's headers to arrive. Programs send them at once.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum duration of a connection, which is for one request, even if its client reads slowly.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum length of a request, in bytes; a longer one is answered with 431. The HTTP library does
/// not allow a lower limit.
const REQUEST_LEN: usize = 8192;

/// Time for which the text of the metrics is reused. To read the engine's counters, the server
/// visits all searches while the workers wait. So clients must not be able to cause that as often
/// as they like.
const FRESH: Duration = Duration::from_secs(1);

const METRICS: &str = "/metrics";
const HEALTH: &str = "/healthz";

const PLAIN: &str = "text/plain; charset=utf-8";

/// Serves the metrics of a registry, and the state of a health service.
pub(crate) struct Exporter<H> {
    registry: Registry,
    health: H,
    last: Mutex<Option<(Instant, String)>>,
}

impl<H: Health> Exporter<H> {
    /// Creates an exporter of `registry` at `/metrics`, and of what `health` reports for the server
    /// as a whole at `/healthz`.
    pub(crate) fn new(registry: Registry, health: H) -> Exporter<H> {
        Exporter {
            registry,
            health,
            last: Mutex::new(None),
        }
    }

    /// Answers requests, forever. Dropping the future closes the socket; connections that were
    /// accepted before still get an answer.
    pub(crate) async fn serve(self, listener: Listener) {
        let exporter = Arc::new(self);
        let admission = Admission::new(CONNECTIONS, CONNECTIONS_PER_ADDRESS, NEW_CONNECTIONS);
        let mut listener = pin!(listener);
        // The listener never returns an error, and never ends.
        while let Some(Ok(connection)) = listener.next().await {
            // hyper panics when it writes a date beyond the calendar into a response's header.
            if let Err(error) = clock::now() {
                tracing::error!(%error, "cannot serve metrics");
                continue;
            }
            let Ok(place) = admission.admit(connection.peer().origin(), Instant::now()) else {
                continue;
            };
            let exporter = Arc::clone(&exporter);
            tokio::spawn(async move {
                let answer = service_fn(|request| {
                    place.spoke();
                    let exporter = Arc::clone(&exporter);
                    async move { Ok::<_, Infallible>(exporter.answer(&request).await) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(REQUEST_TIMEOUT)
                    .max_buf_size(REQUEST_LEN)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(connection), answer);
                // The result is ignored: the client sees how its connection ends.
                tokio::select! {
                    _ = timeout(CONNECTION_TIMEOUT, connection) => {}
                    () = place.lost() => {}
                }
            });
        }
    }

    /// Answers a request. hyper leaves out the body of the response to a HEAD request.
    async fn answer<B>(&self, request: &Request<B>) -> Response<String> {
        let path = request.uri().path();
        if ![METRICS, HEALTH].contains(&path) {
            let text = format!("not found; use {METRICS} or {HEALTH}\n");
            return response(StatusCode::NOT_FOUND, PLAIN, text);
        }
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            let text = "method not allowed; use GET or HEAD\n".to_owned();
            let mut response = response(StatusCode::METHOD_NOT_ALLOWED, PLAIN, text);
            let allowed = HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(header::ALLOW, allowed);
            return response;
        }
        if path == HEALTH {
            return self.health().await;
        }
        match self.text(Instant::now()) {
            Ok(text) => {
                let format = Format::accepted(request.headers());
                let text = format.of_openmetrics(&text).into_owned();
                response(StatusCode::OK, format.content_type(), text)
            }
            Err(error) => {
                tracing::error!(%error, "cannot write metrics");
                response(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, String::new())
            }
        }
    }

    /// Returns the health of the server as a whole, for which the health service uses the empty
    /// name.
    async fn health(&self) -> Response<String> {
        let request = tonic::Request::new(HealthCheckRequest::default());
        let status = match self.health.check(request).await {
            Ok(response) => response.into_inner().status(),
            Err(_) => ServingStatus::Unknown,
        };
        let code = if status == ServingStatus::Serving {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        response(code, PLAIN, format!("{}\n", status.as_str_name()))
    }

    /// Returns the metrics in the OpenMetrics format. The text is less than [`FRESH`] old.
    fn text(&self, now: Instant) -> Result<String, std::fmt::Error> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, text)) = &*last
            && now.saturating_duration_since(*at) < FRESH
        {
            return Ok(text.clone());
        }
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        *last = Some((now, text.clone()));
        Ok(text)
    }
}

fn response(status: StatusCode, content_type: &'static str, text: String) -> Response<String> {
    let mut response = Response::new(text);
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use tonic_health::server::{HealthReporter, HealthService};

    #[test]
    fn metrics_are_reused_for_a_second() {
        let counter = Counter::<u64>::default();
        let mut registry = Registry::default();
        registry.register("looks", "Looks", counter.clone());
        let health = HealthService::from_health_reporter(HealthReporter::new());
        let exporter = Exporter::new(registry, health);
        let began = Instant::now();
        let shows = |after: Duration, count: u64| {
            let text = exporter.text(began + after).unwrap();
            assert!(text.contains(&format!("looks_total {count}\n")), "{text}");
        };
        shows(Duration::ZERO, 0);
        counter.inc();
        shows(FRESH - Duration::from_millis(1), 0);
        shows(FRESH, 1);
    }
}
