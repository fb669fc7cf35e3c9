//! Traces calls and the searches of operations: one span each, sent to an OTLP collector.
//!
//! The span of a call continues the caller's trace, if there is one (W3C Trace Context). It
//! contains what the server knows about the call. Of what the client sent, it contains only the
//! trace context: no searched names, and no other headers.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use hashfinder_system::threads::{NO_THREAD, aside, startable};
use hashfinder_transport::Peer;
use http::{HeaderMap, Uri};
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator},
    trace::{
        Span as _, SpanBuilder, SpanKind, Status, TraceContextExt, TraceId, Tracer, TracerProvider,
    },
};
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span,
        SpanData, SpanExporter, SpanProcessor,
    },
};
use tonic::{Code, transport::Endpoint};

/// Maximum number of spans that wait for the collector. They take a few megabytes, and are those of
/// one second at a few thousand calls per second. Further spans are dropped and counted.
const MOST_WAITING: usize = 4096;

/// Maximum number of spans in a batch. Collectors expect this size.
const BATCH: usize = 512;

/// Time for which spans are collected before they are sent. A full batch is sent earlier.
const PACE: Duration = Duration::from_secs(1);

/// Timeout for connecting to the collector, and for sending a batch.
const PATIENCE: Duration = Duration::from_secs(5);

/// Maximum time to send the last spans when the server stops.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Maximum length of a `tracestate` that is passed on, in bytes. Trace Context recommends at least
/// this much. Longer ones could fill the memory of the server and the collector.
const MAX_STATE_LEN: usize = 512;

/// Maximum number of members of a `tracestate`, from Trace Context.
const MAX_STATE_MEMBERS: usize = 32;

/// Sends the spans of calls to a collector. Clones share the queue and the counts.
#[derive(Clone)]
pub(crate) struct Traces(Arc<Shared>);

struct Shared {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    counts: Arc<Counts>,
}

impl Traces {
    /// Starts to send spans to the collector at this address, whether or not it can be reached yet.
    ///
    /// `share` is the share of the calls without a trace context that are traced. Must be called in
    /// a tokio runtime.
    ///
    /// # Errors
    ///
    /// If spans cannot be sent to an address of this kind, or no thread can be started.
    pub(crate) fn to(collector: &Uri, share: f64) -> Result<Traces> {
        // The processor panics if it cannot start its thread.
        ensure!(startable(1) == 1, NO_THREAD);
        let channel = Endpoint::from(collector.clone())
            .connect_timeout(PATIENCE)
            .timeout(PATIENCE)
            .connect_lazy();
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_channel(channel)
            .with_timeout(PATIENCE)
            .build()
            .context("cannot send spans")?;
        let counts = Arc::new(Counts::default());
        let exporter = CountingExporter {
            inner: exporter,
            counts: Arc::clone(&counts),
        };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(MOST_WAITING)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(PACE)
            .build();
        let processor = CountingProcessor {
            inner: BatchSpanProcessor::builder(exporter)
                .with_batch_config(batches)
                .build(),
            counts: Arc::clone(&counts),
        };
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder()
            .with_service_name("hashfinder")
            .with_attribute(version);
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                share,
            ))))
            .with_resource(resource.build())
            .with_span_processor(processor)
            .build();
        Ok(Traces(Arc::new(Shared {
            tracer: provider.tracer("hashfinder"),
            provider,
            counts,
        })))
    }

    /// Starts the span of a call. Returns `None` if the span would not be recorded, and the caller
    /// sent no valid trace context.
    pub(crate) fn begin(
        &self,
        service: &Arc<str>,
        method: &Arc<str>,
        headers: &HeaderMap,
        peer: Option<&Peer>,
    ) -> Option<CallSpan> {
        let parent = Caller::of(headers).map(|caller| {
            TraceContextPropagator::new().extract_with_context(&Context::new(), &caller)
        });
        let parent = parent.unwrap_or_default();
        let mut attributes = vec![
            KeyValue::new("rpc.system", "grpc"),
            KeyValue::new("rpc.service", Arc::clone(service)),
            KeyValue::new("rpc.method", Arc::clone(method)),
        ];
        if let Some(address) = peer.and_then(Peer::address) {
            let ip = address.ip().to_canonical().to_string();
            attributes.push(KeyValue::new("network.peer.address", ip));
            attributes.push(KeyValue::new(
                "network.peer.port",
                i64::from(address.port()),
            ));
        }
        let span = SpanBuilder::from_name(format!("{service}/{method}"))
            .with_kind(SpanKind::Server)
            .with_attributes(attributes);
        let span = self.0.tracer.build_with_context(span, &parent);
        // A span that is not recorded here may belong to the caller's trace, which other services
        // may record. Without a caller's trace, no service records anything.
        let is_known = span.is_recording() || parent.span().span_context().is_valid();
        is_known.then(|| {
            CallSpan(Arc::new(Open {
                trace: span.span_context().trace_id(),
                span: Mutex::new(span),
                ended_at: OnceLock::new(),
            }))
        })
    }

    /// Adds the span of a search of this operation that has ended or is paused, and began at this
    /// time. It starts a new trace: an operation outlives the trace of the call that started
    /// it.
    pub(crate) fn add_operation(&self, name: String, began: SystemTime, search: Search<'_>) {
        let span = SpanBuilder::from_name("operation")
            .with_kind(SpanKind::Internal)
            .with_start_time(began)
            .with_attributes([KeyValue::new("hashfinder.operation", name)]);
        let mut span = self.0.tracer.build_with_context(span, &Context::new());
        search.add_to(&mut span);
    }

    /// Sends the waiting spans, within [`LAST_WORDS`]. Spans that end from now on are lost. The
    /// spans are sent even if the future is dropped.
    pub(crate) async fn flush(&self) {
        self.close(LAST_WORDS).await;
    }

    /// Stops sending: the waiting spans are lost. Without this, dropping the last clone would wait
    /// for the collector.
    pub(crate) async fn abandon(&self) {
        self.close(Duration::ZERO).await;
    }

    async fn close(&self, within: Duration) {
        let provider = self.0.provider.clone();
        let closing = move || provider.shutdown_with_timeout(within);
        // Spans that could not be sent are counted. Nothing else can be done about them.
        let _ = aside("spans", closing).await;
        self.0.counts.give_up();
    }

    /// Returns how many spans were dropped because the collector did not accept them.
    pub(crate) fn lost(&self) -> u64 {
        self.0.counts.lost.load(Ordering::Relaxed)
    }
}

/// The span of a call. It ends when the call ends, but is sent when the last clone is dropped,
/// because the cost of the search is known only a little after the end of the call.
#[derive(Clone)]
pub(crate) struct CallSpan(Arc<Open>);

struct Open {
    trace: TraceId,
    span: Mutex<Span>,
    ended_at: OnceLock<SystemTime>,
}

/// A search and its cost, for the span of its call or operation.
pub(crate) struct Search<'a> {
    pub(crate) id: Option<&'a str>,
    pub(crate) cause: String,
    pub(crate) work: &'static str,
    pub(crate) hashes: u64,
    pub(crate) tests: u64,
    pub(crate) stopped_in: Option<Duration>,
}

impl Search<'_> {
    fn add_to(self, span: &mut Span) {
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        let id = self.id.map(str::to_owned);
        let latency = self.stopped_in.map(|latency| latency.as_secs_f64());
        span.set_attributes(
            [
                id.map(|id| KeyValue::new("hashfinder.search.id", id)),
                Some(KeyValue::new("hashfinder.search.cause", self.cause)),
                Some(KeyValue::new("hashfinder.search.work", self.work)),
                Some(KeyValue::new(
                    "hashfinder.search.hashes",
                    number(self.hashes),
                )),
                Some(KeyValue::new("hashfinder.search.tests", number(self.tests))),
                latency.map(|latency| KeyValue::new("hashfinder.search.stop_seconds", latency)),
            ]
            .into_iter()
            .flatten(),
        );
    }
}

impl CallSpan {
    /// Returns the id of the call's trace.
    pub(crate) fn trace(&self) -> TraceId {
        self.0.trace
    }

    /// Sets the status code and the time of the call's end. Only the first end counts.
    pub(crate) fn end(&self, code: Code) {
        if self.0.ended_at.set(SystemTime::now()).is_err() {
            return;
        }
        let mut span = self.lock();
        span.set_attribute(KeyValue::new("rpc.grpc.status_code", code as i64));
        // The codes that OpenTelemetry counts as server errors.
        if let Code::Unknown
        | Code::DeadlineExceeded
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss = code
        {
            span.set_status(Status::error(""));
        }
    }

    /// Adds the call's search and its cost.
    pub(crate) fn searched(&self, search: Search<'_>) {
        search.add_to(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Span> {
        // No code under this lock panics in the middle of a change.
        let span = self.0.span.lock();
        span.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let span = self.span.get_mut().unwrap_or_else(PoisonError::into_inner);
        let ended_at = self.ended_at.get().copied();
        span.end_with_timestamp(ended_at.unwrap_or_else(SystemTime::now));
    }
}

/// The trace context that a caller sent.
struct Caller<'a> {
    parent: &'a str,
    state: String,
}

impl<'a> Caller<'a> {
    /// Returns the trace context in these headers. With several `traceparent` headers, there is
    /// none. Several `tracestate` headers form one list; a broken list is dropped, as Trace Context
    /// requires.
    fn of(headers: &'a HeaderMap) -> Option<Caller<'a>> {
        let mut parents = headers.get_all("traceparent").iter();
        let (Some(parent), None) = (parents.next(), parents.next()) else {
            return None;
        };
        Some(Caller {
            parent: parent.to_str().ok()?,
            state: state(headers).unwrap_or_default(),
        })
    }
}

/// Returns the `tracestate` of these headers, unless it is too long or broken.
fn state(headers: &HeaderMap) -> Option<String> {
    let mut state = String::new();
    for more in headers.get_all("tracestate") {
        if !state.is_empty() {
            state.push(',');
        }
        state += more.to_str().ok()?;
        if state.len() > MAX_STATE_LEN {
            return None;
        }
    }
    is_state(&state).then_some(state)
}

/// Whether this is a valid `tracestate` (W3C Trace Context, section 3.3,
/// <https://www.w3.org/TR/trace-context/#tracestate-header>). The library checks only a part of
/// that: it accepts empty keys, empty values and duplicate keys, and it cuts long lists.
fn is_state(list: &str) -> bool {
    let blanks = [' ', '\t'];
    let members = list.split(',').map(|member| member.trim_matches(blanks));
    let members = members.filter(|member| !member.is_empty());
    let mut keys = HashSet::new();
    members.into_iter().all(|member| {
        member.split_once('=').is_some_and(|(key, value)| {
            is_state_key(key)
                && (1..=256).contains(&value.len())
                && value
                    .bytes()
                    .all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=')
                && keys.insert(key)
        })
    }) && keys.len() <= MAX_STATE_MEMBERS
}

/// Whether this is a valid key of a `tracestate`: `SYSTEM` or `TENANT@SYSTEM`.
fn is_state_key(key: &str) -> bool {
    let is_name = |name: &str, longest: usize| {
        let begins = |first: u8| first.is_ascii_lowercase() || first.is_ascii_digit();
        let goes_on = |byte: u8| begins(byte) || b"_-*/".contains(&byte);
        (1..=longest).contains(&name.len())
            && name.bytes().next().is_some_and(begins)
            && name.bytes().all(goes_on)
    };
    match key.split_once('@') {
        None => is_name(key, 256),
        Some((tenant, system)) => is_name(tenant, 241) && is_name(system, 14),
    }
}

impl Extractor for Caller<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => Some(self.parent),
            "tracestate" => Some(&self.state),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

/// Counts of spans, by what happens to them.
#[derive(Debug, Default)]
struct Counts {
    /// Spans in the queue from which batches are taken.
    waiting: AtomicUsize,
    /// Spans in the batch that is being sent.
    under_way: AtomicUsize,
    lost: AtomicU64,
    /// Whether the collector did not accept the last batch.
    is_away: AtomicBool,
}

impl Counts {
    /// Takes a place in the queue, if there is one. Returns whether there was one.
    fn take_place(&self) -> bool {
        let more = |waiting| (waiting < MOST_WAITING).then_some(waiting + 1);
        let taken = (self.waiting).fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok()
    }

    fn lose(&self, spans: usize) {
        self.lost.fetch_add(spans as u64, Ordering::Relaxed);
    }

    /// Counts the spans of a batch as being sent, and no longer as waiting.
    fn send(&self, spans: usize) {
        self.under_way.store(spans, Ordering::Relaxed);
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
    }

    /// Counts the batch as sent. If the collector did not accept it, counts its spans as lost.
    fn sent(&self, is_taken: bool) {
        let spans = self.under_way.swap(0, Ordering::Relaxed);
        if !is_taken {
            self.lose(spans);
        }
    }

    /// Counts all spans that the collector has not accepted so far as lost.
    fn give_up(&self) {
        self.sent(false);
        self.lose(self.waiting.swap(0, Ordering::Relaxed));
    }
}

/// Adds spans to the queue only while it has room, and counts the others as lost. The queue itself
/// would only log their number.
#[derive(Debug)]
struct CountingProcessor {
    inner: BatchSpanProcessor,
    counts: Arc<Counts>,
}

impl SpanProcessor for CountingProcessor {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.counts.take_place() {
            self.inner.on_end(span);
        } else {
            self.counts.lose(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Counts the spans that the collector does not accept. Logs once when the collector stops
/// accepting them, and once when it accepts them again.
#[derive(Debug)]
struct CountingExporter {
    inner: opentelemetry_otlp::SpanExporter,
    counts: Arc<Counts>,
}

impl SpanExporter for CountingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.counts.send(batch.len());
        let exported = self.inner.export(batch).await;
        self.counts.sent(exported.is_ok());
        let was_away = (self.counts.is_away).swap(exported.is_err(), Ordering::Relaxed);
        match &exported {
            Ok(()) if was_away => tracing::info!("the collector accepts spans again"),
            Err(error) if !was_away => {
                tracing::warn!(%error, "cannot send spans to the collector; they are dropped");
            }
            _ => {}
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn the_callers_trace_is_accepted_within_limits() {
        let long = "x=".repeat(MAX_STATE_LEN);
        for (pairs, expected) in [
            (&[][..], None),
            (&[("tracestate", "a=1")], None),
            (&[("traceparent", "p")], Some(("p", ""))),
            (
                &[("traceparent", "p"), ("tracestate", "a=1")],
                Some(("p", "a=1")),
            ),
            (
                &[
                    ("traceparent", "p"),
                    ("tracestate", "a=1"),
                    ("tracestate", "b=2"),
                ],
                Some(("p", "a=1,b=2")),
            ),
            (
                &[("traceparent", "p"), ("tracestate", &long)],
                Some(("p", "")),
            ),
            (
                &[
                    ("traceparent", "p"),
                    ("tracestate", "a=1"),
                    ("tracestate", "broken"),
                ],
                Some(("p", "")),
            ),
            (
                &[
                    ("traceparent", "p"),
                    ("tracestate", "a=1"),
                    ("tracestate", "b=\u{e9}"),
                ],
                Some(("p", "")),
            ),
            (&[("traceparent", "p"), ("traceparent", "q")], None),
        ] {
            let headers = headers(pairs);
            let caller = Caller::of(&headers);
            let seen = caller
                .as_ref()
                .map(|caller| (caller.parent, &*caller.state));
            assert_eq!(seen, expected, "{pairs:?}");
        }
    }

    #[test]
    fn trace_states_are_validated() {
        let longest_key = format!("{}=1", "k".repeat(256));
        let longest_value = format!("k={}", "v".repeat(256));
        let tenant = format!("{}@{}=1", "t".repeat(241), "s".repeat(14));
        let list = |count| {
            let members = (0..count).map(|number| format!("k{number}=v"));
            members.collect::<Vec<_>>().join(",")
        };
        for fine in [
            "",
            "a=1",
            "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7",
            "a=1 , b=2\t,c=3",
            "a=1,,b=2,",
            "1a-_*/b@2c-_*/d= !\"#$~",
            &longest_key,
            &longest_value,
            &tenant,
            &list(32),
        ] {
            assert!(is_state(fine), "{fine:?}");
        }
        for broken in [
            "a",
            "=1",
            "a=",
            "a==1",
            "a=b=c",
            "A=1",
            "_a=1",
            "a b=1",
            "a@=1",
            "@a=1",
            "a@b@c=1",
            "a@_b=1",
            "a=\u{e9}",
            "a=\tb",
            "a=1,a=2",
            "a=1,b",
            &longest_key.replace('=', "k="),
            &format!("{longest_value}v"),
            &format!("t{tenant}"),
            &tenant.replace('=', "s="),
            &list(33),
        ] {
            assert!(!is_state(broken), "{broken:?}");
        }
    }

    #[test]
    fn the_queue_is_bounded_and_counts_lost_spans() {
        let counts = Counts::default();
        for _ in 0..MOST_WAITING {
            assert!(counts.take_place());
        }
        assert!(!counts.take_place());
        counts.send(BATCH);
        assert!(counts.take_place());
        counts.sent(true);
        counts.send(BATCH);
        counts.give_up();
        // The late result of the batch changes nothing.
        counts.sent(false);
        let lost = counts.lost.load(Ordering::Relaxed);
        assert_eq!(lost, (MOST_WAITING - BATCH + 1) as u64);
        assert!(counts.take_place());
    }
}
