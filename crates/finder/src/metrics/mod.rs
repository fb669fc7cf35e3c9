//! What a server counts, as Prometheus reads it.
//!
//! Every label's value is a word of this program's: nothing that a client sends becomes one, so that
//! nobody can make time series at will, or read another's names here.

mod calls;
mod exporter;
mod format;

use std::{fmt, sync::Arc, time::Duration};

use hashfinder_search::Kernel;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::Registry,
};
use tokio::runtime::RuntimeMetrics;
use tonic_cancel::Drain;

pub(crate) use self::{
    calls::{Calls, CallsLayer, CallsService},
    exporter::Exporter,
};
use crate::{
    log::LostLines,
    rpc::{CallError, RateLimits, Searches, Unfit},
    trace::Traces,
    transport::{self, Tls},
};

/// The first bound of how long searches took to stop, in seconds; each of the others is twice the last.
/// A slice takes half a millisecond, and what takes a second is a machine that is very busy.
const SHORTEST_STOP: f64 = 16e-6;

/// How many bounds there are, up to half a second.
const STOP_BUCKETS: u16 = 16;

/// What is counted where it happens; clones count together.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    refused: Family<[(&'static str, &'static str); 1], Counter>,
    stop_seconds: Histogram,
}

impl Default for Counts {
    fn default() -> Counts {
        let buckets = exponential_buckets(SHORTEST_STOP, 2.0, STOP_BUCKETS);
        let refused = Family::<_, Counter>::default();
        // There from the beginning, so that the first one is seen as an increase.
        let unfit = Unfit::ALL.map(Unfit::reason);
        for reason in CallError::refusals().chain(unfit) {
            let _ = refused.get_or_create(&[("reason", reason)]);
        }
        Counts {
            refused,
            stop_seconds: Histogram::new(buckets),
        }
    }
}

impl Counts {
    /// A call was refused for this reason, which is a word of ours.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }

    /// The last worker has let go of a search so long after it was told to stop.
    pub(crate) fn stopped(&self, after: Duration) {
        self.stop_seconds.observe(after.as_secs_f64());
    }
}

/// What a server is asked about itself whenever somebody looks.
pub(crate) struct Server {
    pub(crate) searches: Arc<Searches>,
    pub(crate) drain: Drain,
    pub(crate) rate_limits: RateLimits,
    pub(crate) lost_lines: LostLines,
    pub(crate) traces: Option<Traces>,
    pub(crate) tls: Option<Tls>,
    pub(crate) runtime: RuntimeMetrics,
}

/// Everything that there is to see.
pub(crate) fn registry(
    kernel: Kernel,
    server: Server,
    counts: &Counts,
    calls: &Calls,
    connections: &transport::Counts,
) -> Registry {
    let mut registry = Registry::default();
    calls.register(&mut registry);
    let ours = registry.sub_registry_with_prefix("hashfinder");
    let build = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("kernel", kernel.name()),
    ];
    ours.register("build", "What runs here", Info::new(build));
    ours.register(
        "refused",
        "Calls that were refused, by the reason that the client was told; with DRAINING also those \
         that a drain ended, and not their handlers",
        counts.refused.clone(),
    );
    ours.register(
        "stop_seconds",
        "How long after it was told to stop the last worker let go of a search",
        counts.stop_seconds.clone(),
    );
    connections.register(ours);
    ours.register_collector(Box::new(server));
    registry
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Collector for Server {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        let engine = self.searches.metrics();
        page.each(
            "searches",
            "Searches by what they are doing.",
            "state",
            gauge,
            &[
                ("active", engine.active),
                ("queued", engine.queued),
                ("parked", engine.parked),
            ],
        )?;
        let ended = &engine.ended;
        page.each(
            "searches_ended",
            "Searches that have ended, by how.",
            "how",
            ConstCounter::<u64>::new,
            &[
                ("found", ended.ideal),
                ("keyspace_exhausted", ended.exhausted),
                ("hash_budget_spent", ended.budget_spent),
                ("hash_quota_spent", ended.quota_spent),
                ("client", ended.by_client),
                ("deadline", ended.by_deadline),
                ("operator", ended.by_operator),
                ("drain", ended.by_drain),
                ("unread", ended.by_unread),
                ("panic", ended.failed),
            ],
        )?;
        page.counter("hashes", "Hashes computed.", engine.hashes)?;
        page.counter(
            "tests",
            "Secrets tested, counted for each search that they were tested for.",
            engine.tests,
        )?;
        page.counter(
            "tests_in_vain",
            "Those of the tests that turned out to be of no use.",
            engine.in_vain,
        )?;
        page.counter("slices", "Slices tried.", engine.slices)?;
        page.gauge("workers", "Threads that search.", self.searches.workers())?;
        page.gauge(
            "active_calls",
            "Calls that a drain waits for.",
            self.drain.active_calls(),
        )?;
        page.gauge(
            "open_calls",
            "Calls of all kinds that have begun and whose answer is not all sent.",
            self.rate_limits.open_calls(),
        )?;
        page.gauge(
            "active_work",
            "Places of RPCs that search that are taken; one comes back when its work has ended.",
            self.searches.active_work(),
        )?;
        page.gauge(
            "tasks",
            "Tasks of the runtime that have not ended: connections, calls, and what is always there.",
            self.runtime.num_alive_tasks(),
        )?;
        page.gauge(
            "draining",
            "1 from the first signal to stop on.",
            self.drain.is_closed().into(),
        )?;
        page.counter(
            "log_lines_lost",
            "Lines of the log that were dropped because nobody read them.",
            self.lost_lines.count(),
        )?;
        page.counter(
            "spans_lost",
            "Spans that were dropped because the collector did not take them.",
            self.traces.as_ref().map_or(0, Traces::lost),
        )?;
        let expiries = self.tls.as_ref().map(Tls::expiries);
        page.each(
            "tls_certificate_expiration_timestamp_seconds",
            "When the first certificate in a file of TLS expires, in seconds since 1970.",
            "file",
            ConstGauge::<i64>::new,
            &expiries.unwrap_or_default(),
        )
    }
}

struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.one(name, help, &ConstCounter::new(value))
    }

    fn gauge(&mut self, name: &str, help: &str, value: usize) -> fmt::Result {
        self.one(name, help, &gauge(value))
    }

    fn one(&mut self, name: &str, help: &str, value: &impl EncodeMetric) -> fmt::Result {
        let kind = value.metric_type();
        value.encode(self.0.encode_descriptor(name, help, None, kind)?)
    }

    /// One value for each word that a label can be.
    fn each<T: Copy, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        of: impl Fn(T) -> M,
        values: &[(&'static str, T)],
    ) -> fmt::Result {
        let Some((_, first)) = values.first() else {
            return Ok(());
        };
        let kind = of(*first).metric_type();
        let mut metric = self.0.encode_descriptor(name, help, None, kind)?;
        for (word, value) in values {
            of(*value).encode(metric.encode_family(&[(label, *word)])?)?;
        }
        Ok(())
    }
}

fn gauge(value: usize) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}
