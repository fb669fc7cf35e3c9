//! All metrics of a server, in one registry.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use hashfinder_fleet_nats::{Fleet, FleetMetrics};
use hashfinder_operations::{self as operations, Operations};
use hashfinder_search::Kernel;
use hashfinder_transport::{self as transport, Tls};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::Registry,
};
use tokio::runtime::RuntimeMetrics;
use tonic_cancel::Drain;

use crate::{
    layers::rate_limit::RateLimits,
    log::LostLines,
    metrics::{calls::Calls, counts::Counts},
    searches::shared::Searches,
    trace::Traces,
};

/// The parts of a server that are read for each scrape.
pub(crate) struct Server {
    pub(crate) searches: Arc<Searches>,
    pub(crate) drain: Drain,
    pub(crate) rate_limits: RateLimits,
    pub(crate) lost_lines: Arc<OnceLock<LostLines>>,
    pub(crate) traces: Option<Traces>,
    pub(crate) tls: Option<Tls>,
    pub(crate) runtime: RuntimeMetrics,
    /// Set once the server has started its operations, if it saves any.
    pub(crate) operations: Arc<OnceLock<Option<Operations>>>,
}

/// Returns a registry of all metrics.
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
    ours.register(
        "build",
        "Version and hash kernel of this server",
        Info::new(build),
    );
    counts.register(ours);
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
            "Searches by state.",
            "state",
            gauge,
            &[
                ("active", engine.active),
                ("queued", engine.queued),
                ("parked", engine.parked),
            ],
        )?;
        let fleet = self.searches.fleet().map(Fleet::metrics);
        let in_fleet = fleet.as_ref().map(|fleet| fleet.ended.clone());
        let (ended, in_fleet) = (&engine.ended, in_fleet.unwrap_or_default());
        let mut by_end = vec![
            ("found", ended.ideal + in_fleet.ideal),
            ("keyspace_exhausted", ended.exhausted + in_fleet.exhausted),
            (
                "hash_budget_spent",
                ended.budget_spent + in_fleet.budget_spent,
            ),
            ("hash_quota_spent", ended.quota_spent + in_fleet.quota_spent),
        ];
        // The engine does not know why a search is stopped.
        let stopped = self.searches.stopped();
        by_end.extend(stopped.map(|(cause, count)| (cause.name(), count)));
        by_end.push(("panic", ended.failed + in_fleet.failed));
        page.each(
            "searches_ended",
            "Ended searches, by how they ended.",
            "how",
            ConstCounter::<u64>::new,
            &by_end,
        )?;
        page.counter("hashes", "Secrets hashed.", engine.hashes)?;
        page.counter(
            "tests",
            "Secrets tested, counted once per search.",
            engine.tests,
        )?;
        page.counter(
            "tests_in_vain",
            "Tests whose results were discarded.",
            engine.in_vain,
        )?;
        page.counter("slices", "Slices tried.", engine.slices)?;
        page.gauge("workers", "Search threads.", self.searches.workers())?;
        page.gauge(
            "active_calls",
            "Calls that a drain waits for.",
            self.drain.active_calls(),
        )?;
        page.gauge(
            "open_calls",
            "Open calls of all kinds.",
            self.rate_limits.open_calls(),
        )?;
        page.gauge(
            "active_work",
            "Searching calls whose work has not ended.",
            self.searches.active_work(),
        )?;
        page.gauge(
            "tasks",
            "Tasks of the async runtime: connections, calls and background tasks.",
            self.runtime.num_alive_tasks(),
        )?;
        page.gauge(
            "draining",
            "1 once the server has begun to drain, 0 before.",
            self.drain.is_closed().into(),
        )?;
        page.counter(
            "log_lines_lost",
            "Log lines dropped because stderr was not read.",
            self.lost_lines.get().map_or(0, LostLines::count),
        )?;
        page.counter(
            "spans_lost",
            "Spans dropped because the collector did not accept them.",
            self.traces.as_ref().map_or(0, Traces::lost),
        )?;
        if let Some(Some(operations)) = self.operations.get() {
            page.operations(&operations.metrics())?;
        }
        if let Some(fleet) = &fleet {
            page.fleet(fleet)?;
        }
        let expiries = self.tls.as_ref().map(Tls::expiries);
        page.each(
            "tls_certificate_expiration_timestamp_seconds",
            "Earliest expiry of the certificates in each TLS file, in seconds since 1970.",
            "file",
            ConstGauge::<i64>::new,
            &expiries.unwrap_or_default(),
        )
    }
}

/// A histogram that is read at once.
struct ConstHistogram {
    sum: f64,
    /// Upper bounds, and the number of values in each bucket.
    buckets: Vec<(f64, u64)>,
}

impl EncodeMetric for ConstHistogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let count = self.buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(self.sum, count, &self.buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn operations(&mut self, operations: &operations::Metrics) -> fmt::Result {
        let counts = operations.counts;
        self.each(
            "operations",
            "Operations that have not ended, by state.",
            "state",
            gauge,
            &[
                ("running", counts.running),
                ("queued", counts.queued),
                ("paused", counts.paused),
            ],
        )?;
        let ended = operations
            .ended
            .map(|(reason, count)| (reason.name(), count));
        self.each(
            "operations_ended",
            "Ended operations, by how they ended.",
            "how",
            ConstCounter::<u64>::new,
            &ended,
        )?;
        self.gauge(
            "operations_store_working",
            "1 if operations can be saved, 0 if they cannot.",
            (operations.health == operations::Health::Working).into(),
        )?;
        let bytes = i64::try_from(operations.bytes).unwrap_or(i64::MAX);
        self.one(
            "operations_store_bytes",
            "Size of the saved operations on disk.",
            &ConstGauge::new(bytes),
        )?;
        self.one(
            "operations_commit_lag_seconds",
            "How long the commit under way has taken; 0 if there is none.",
            &ConstGauge::new(operations.commit_lag.as_secs_f64()),
        )?;
        self.counter(
            "operations_commits_failed",
            "Commits that failed, and failed attempts to open the store.",
            operations.failed_commits,
        )?;
        let bounds = operations::COMMIT_SECONDS
            .into_iter()
            .chain([f64::INFINITY]);
        let histogram = ConstHistogram {
            sum: operations.commit_time.as_secs_f64(),
            buckets: bounds.zip(operations.commits).collect(),
        };
        self.one(
            "operations_commit_seconds",
            "Duration of commits.",
            &histogram,
        )
    }

    fn fleet(&mut self, fleet: &FleetMetrics) -> fmt::Result {
        self.gauge(
            "fleet_connected",
            "1 if the server is connected to the broker of its fleet, otherwise 0.",
            fleet.is_connected.into(),
        )?;
        self.gauge(
            "fleet_leads",
            "1 if the server leads its fleet, otherwise 0.",
            fleet.leads.into(),
        )?;
        let term = i64::try_from(fleet.term).unwrap_or(i64::MAX);
        self.one(
            "fleet_term",
            "Number of the leader's term; 0 without a leader.",
            &ConstGauge::new(term),
        )?;
        self.counter(
            "fleet_leaders",
            "Leaders that the server has heard of.",
            fleet.leaders,
        )?;
        let agents = fleet.agents as usize;
        self.gauge("fleet_agents", "Agents that take leases.", agents)?;
        self.one(
            "fleet_hashes_per_second",
            "Hashes per second of all agents that take leases.",
            &ConstGauge::new(fleet.rate),
        )?;
        self.gauge(
            "fleet_leases",
            "Leases that agents have, if the server leads its fleet; otherwise 0.",
            fleet.leases,
        )?;
        self.gauge(
            "fleet_bans",
            "Bans of agents, if the server leads its fleet; otherwise 0.",
            fleet.bans,
        )?;
        self.counter(
            "fleet_banned",
            "Agents that the server has banned as the leader, because of what they did.",
            fleet.banned,
        )?;
        self.gauge(
            "fleet_searches",
            "Searches of the server that its fleet works on.",
            fleet.calls,
        )?;
        self.counter(
            "fleet_secrets",
            "Secrets that the fleet has tried for searches of the server.",
            fleet.secrets,
        )?;
        self.counter(
            "fleet_searches_returned",
            "Searches that the server continued itself, because its fleet could not.",
            fleet.stranded,
        )
    }

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

    /// Writes one sample for each value of a label.
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
