//! The state of a scan: a pass through the keyspace that any number of searches share.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use crate::{
    group::Group,
    ids::{JobId, ScanId, SearchId},
    keyspace::Index,
    ledger::Ledger,
    pacing::{Pacing, Worker},
    slice::FIRST_SLICE,
    sync::AtomicBool,
};

/// Minimum length of a slice, if a secret costs one hash of a fast kernel, so that one outlier
/// among the measurements does not make the overhead dominate. More expensive secrets lower the
/// minimum, at most to a single secret.
const MIN_SLICE: u64 = 1 << 6;

pub(super) type Scans = BTreeMap<ScanId, Box<Scan>>;

/// A scan, and the searches that follow it.
pub(super) struct Scan {
    pub(super) ledger: Ledger,
    /// Followers, by the index at which each leaves the scan.
    pub(super) followers: BTreeSet<(Index, SearchId)>,
    /// Followers' out-of-order hits, by index.
    pub(super) out_of_order: BTreeSet<(Index, SearchId)>,
    /// The searches that its slices serve: every follower, and possibly some that have left.
    pub(super) group: Arc<Group>,
    /// Cost of a secret for the whole group, in a fast kernel's hashes.
    pub(super) cost: f64,
    /// Expected hits per secret, of the whole group.
    rate: f64,
    /// Maximum number of searches that may join at once. It is halved when a group does not fit,
    /// and doubled when a group with this many newcomers does.
    pub(super) max_newcomers: usize,
    /// Length of its next slice, for a worker of speed 1.
    pub(super) length: u64,
    /// Whether at least one of its slices has come back.
    pub(super) is_tried: bool,
    /// Its slices in flight.
    pub(super) jobs: BTreeSet<JobId>,
    /// Searches that had a turn but found nothing to do here. They get another turn once a slice
    /// comes back.
    pub(super) idle: BTreeSet<SearchId>,
    /// The scheduler's count of changes when newcomers were last sought; 0 requests another check.
    pub(super) checked_at: u64,
    pub(super) stop: Arc<AtomicBool>,
    /// When its slices were last recalled because of an ideal hit.
    pub(super) recalled: Option<Duration>,
}

impl Scan {
    /// Makes a scan for a single search, which follows it from `start` to `end`.
    pub(super) fn new(
        search: SearchId,
        range: Range<Index>,
        group: Group,
        (cost, rate): (f64, f64),
        pacing: &Pacing,
    ) -> Scan {
        let Range { start, end } = range;
        Scan {
            ledger: Ledger::new(start, pacing.most_ahead),
            followers: BTreeSet::from([(end, search)]),
            out_of_order: BTreeSet::new(),
            group: Arc::new(group),
            cost,
            rate,
            max_newcomers: usize::MAX,
            length: at_cost(FIRST_SLICE, cost),
            is_tried: false,
            jobs: BTreeSet::new(),
            idle: BTreeSet::new(),
            checked_at: 0,
            stop: Arc::new(AtomicBool::new(false)),
            recalled: None,
        }
    }

    /// Returns how many hits are expected between its frontier and `start`.
    pub(super) fn expected_hits(&self, start: Index) -> f64 {
        self.rate * start.saturating_sub(self.ledger.done()) as f64
    }

    /// Whether more than half of the searches that its matcher is for have left.
    pub(super) fn is_mostly_gone(&self) -> bool {
        self.group.len() > 2 * self.followers.len()
    }

    /// Whether workers no longer try its slices.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Makes workers skip its slices that they have not begun.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Replaces the group, and returns the old one, to be dropped outside of the lock. If the cost
    /// grows, slices get shorter by the same factor until the new speed is known.
    pub(super) fn replace_group(&mut self, group: Arc<Group>, cost: f64, rate: f64) -> Arc<Group> {
        let growth = (cost / self.cost).max(1.0);
        self.length = at_cost(self.length, growth);
        self.cost = cost;
        self.rate = rate;
        std::mem::replace(&mut self.group, group)
    }

    /// Sets the length of the next slice by the time that this one took this worker.
    pub(super) fn adapt(
        &mut self,
        slice: &Range<Index>,
        tried: Index,
        worker: &Worker,
        took: Duration,
        pacing: &Pacing,
    ) {
        let count = worker.unscale(tried - slice.start);
        let length = self.length;
        self.length = if tried < slice.end {
            // The hits are so dense that a longer slice would end just as early.
            count
        } else {
            let took = took.as_nanos().max(1);
            let fitting = u128::from(count) * pacing.slice_time.as_nanos() / took;
            let most = length.saturating_mul(pacing.most_growth);
            // Shrinks by at most a factor of two: one slow slice, during which the system was busy,
            // says little.
            let fitting = u64::try_from(fitting).unwrap_or(u64::MAX);
            fitting.min(most).max(length / 2)
        }
        .clamp(
            at_cost(MIN_SLICE, self.cost),
            worker.unscale(worker.longest_slice).max(MIN_SLICE),
        );
    }
}

/// Returns the number of secrets of this cost that take as long as `hashes` hashes of a fast
/// kernel: at least one, and at most `hashes`.
fn at_cost(hashes: u64, cost: f64) -> u64 {
    ((hashes as f64 / cost) as u64).clamp(1, hashes)
}
