//! Where Prometheus reads them: `GET /metrics` over plain HTTP/1, on a port of its own.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::{Method, Request, Response, StatusCode, header};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{encoding::text, registry::Registry};
use tokio::{sync::Semaphore, time::timeout};
use tokio_stream::StreamExt;

use crate::{clock, transport::Listener};

/// How many may be asking at a time: a few Prometheus servers and a curious person. Others wait until
/// one has been answered.
const CONNECTIONS: usize = 16;

/// How long a request may take to be there.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one connection may last in all, with an answer that is read slowly. It is for one request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a request may be, in bytes; a longer one is answered with 431. The HTTP library takes no less.
const REQUEST_LEN: usize = 8192;

/// How long what was read once is shown again. Looking at the engine keeps its workers waiting while it
/// goes through all searches, so nobody may make it do so as often as they like.
const FRESH: Duration = Duration::from_secs(1);

/// The text format of OpenMetrics, which Prometheus reads since its version 2.5.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Shows a registry to whoever asks.
pub(crate) struct Exporter {
    registry: Registry,
    last: Mutex<Option<(Instant, String)>>,
}

impl Exporter {
    pub(crate) fn new(registry: Registry) -> Exporter {
        Exporter {
            registry,
            last: Mutex::new(None),
        }
    }

    /// Answers who comes, for ever. Dropping the future closes the socket; whoever was let in before gets
    /// an answer still.
    pub(crate) async fn serve(self, listener: Listener) {
        let exporter = Arc::new(self);
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut listener = pin!(listener);
        while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
            // It never gives an error, and never ends.
            let Some(Ok(connection)) = listener.next().await else {
                return;
            };
            // hyper panics when it writes such a date into a response's header.
            if let Err(error) = clock::now() {
                tracing::error!(%error, "metrics cannot be shown");
                continue;
            }
            let exporter = Arc::clone(&exporter);
            let answer = service_fn(move |request| {
                let answer = exporter.answer(&request);
                async { Ok::<_, Infallible>(answer) }
            });
            tokio::spawn(async move {
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(REQUEST_TIMEOUT)
                    .max_buf_size(REQUEST_LEN)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(connection), answer);
                // However it ends, whoever was at the other end knows.
                let _ = timeout(CONNECTION_TIMEOUT, connection).await;
                drop(permit);
            });
        }
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<String> {
        let (status, name, value, text) = if request.uri().path() != "/metrics" {
            let text = "there is /metrics, and nothing else\n".to_owned();
            (StatusCode::NOT_FOUND, header::CONTENT_TYPE, PLAIN, text)
        } else if request.method() != Method::GET {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            (status, header::ALLOW, "GET", String::new())
        } else {
            match self.text(Instant::now()) {
                Ok(text) => (StatusCode::OK, header::CONTENT_TYPE, CONTENT_TYPE, text),
                Err(error) => {
                    tracing::error!(%error, "metrics cannot be written");
                    let status = StatusCode::INTERNAL_SERVER_ERROR;
                    (status, header::CONTENT_TYPE, PLAIN, String::new())
                }
            }
        };
        let mut response = Response::new(text);
        *response.status_mut() = status;
        let value = header::HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
        response
    }

    /// How things stand, or stood not longer ago than they are fresh.
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

const PLAIN: &str = "text/plain; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn what_was_read_is_shown_again_for_a_second() {
        let counter = Counter::<u64>::default();
        let mut registry = Registry::default();
        registry.register("looks", "Looks", counter.clone());
        let exporter = Exporter::new(registry);
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
