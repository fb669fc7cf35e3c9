//! A search as the scheduler knows it: what it has yet to cover, what it has found, and how it
//! ends.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    task::Waker,
    time::Duration,
};

use super::scan::Scans;
use crate::{
    checkpoint::{Checkpoint, MAX_RANGES},
    client::Client,
    cursor::Cursor,
    fair_queue::Ticket,
    ids::{JobId, ScanId},
    keyspace::Index,
    matcher::Matcher,
    outcome::{Outcome, Release},
    progress::SearchState,
    query::{Candidate, Query},
};

/// Maximum number of segments of a search.
pub(super) const MAX_SEGMENTS: usize = MAX_RANGES;

/// Maximum number of hits per hash, on average, of all searches of a scan together: half of the
/// rate that ends a slice of 2^16 secrets early. A search that has more hits shares with no other.
pub(super) const MAX_SHARED_RATE: f64 = 1.0 / 512.0;

/// A search to submit, with what the caller's thread has computed before it takes the scheduler's
/// lock.
pub(crate) struct Request {
    pub(crate) query: Query,
    /// The matcher for this query alone. The search's first scan takes it, so that the filter is
    /// planned only once.
    pub(crate) matcher: Arc<Matcher>,
    /// Expected hits per secret.
    pub(crate) rate: f64,
    /// Cost of a secret for this search alone, in a fast kernel's hashes.
    pub(crate) cost: f64,
    /// Where the search resumes; `None` if it begins at the query's start.
    pub(crate) resume: Option<Resume>,
}

/// How a search resumes.
pub(crate) struct Resume {
    pub(crate) checkpoint: Checkpoint,
    /// Whether the search must share nothing, because its last run panicked.
    pub(crate) alone: bool,
}

pub(super) struct Entry {
    pub(super) query: Arc<Query>,
    pub(super) client: Client,
    /// One past the last index that matters.
    pub(super) end: Index,
    /// The ideal hit at `end - 1`, once there is one.
    pub(super) ideal: Option<Candidate>,
    /// Ranges that the search has yet to cover, in order. Everything between two of them is
    /// covered.
    pub(super) segments: Vec<Segment>,
    /// Out-of-order hits: beyond the frontier, by index.
    pub(super) out_of_order: BTreeMap<Index, Candidate>,
    /// Hits that the reader has not taken yet.
    pub(super) queue: VecDeque<Candidate>,
    rate: f64,
    pub(super) cost: f64,
    /// The request's matcher, until the search's first scan takes it, every segment has a scan, or
    /// the search ends. Keeping it longer would take a kilobyte for each name of a search that
    /// shares. If the search needs its own scan again later, a worker makes the matcher again.
    pub(super) matcher: Option<Arc<Matcher>>,
    /// The search shares nothing until its frontier reaches this index; 0 if it may share. A slice
    /// that it shared has panicked, and each of the searches tries these secrets alone to find the
    /// cause.
    pub(super) alone_until: Index,
    /// The scans that last refused the search because it did not fit.
    pub(super) refused_by: Vec<ScanId>,
    /// When the search was stopped, and why.
    pub(super) stopped: Option<(Duration, Stop)>,
    /// The search's place in the fair queue, while it waits for a turn.
    pub(super) ticket: Option<Ticket>,
    /// Slices in flight that have to come back before the search can be released.
    pub(super) awaited: BTreeSet<JobId>,
    pub(super) hashes: u64,
    /// Number of secrets that were covered before the search resumed.
    covered_before: u64,
    /// The [gain](Self::gain), set when the search ends.
    pub(super) gained: i128,
    /// How the search ended, set once nothing can change it any more.
    pub(super) outcome: Option<Outcome>,
    pub(super) on_release: Option<Release>,
    /// The waiting reader, and how many candidates it waits for.
    pub(super) reader: Option<(Waker, usize)>,
    /// Whether the handle was dropped, so that the outcome will not be read.
    pub(super) abandoned: bool,
}

/// A range that a search has yet to cover.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) from: Index,
    pub(super) end: Index,
    /// The scan that covers the segment. What the scan has done from `from` on is covered.
    pub(super) scan: Option<ScanId>,
}

#[derive(Clone, Copy)]
pub(super) enum Stop {
    Asked,
    Panicked,
    /// The client's quota is spent. The duration is the time until a second's worth of it is
    /// available again.
    Quota(Duration),
}

impl Segment {
    /// Returns the segment's frontier: everything from its start up to here is covered.
    pub(super) fn progress(&self, scans: &Scans) -> Index {
        let scan = self.scan.and_then(|scan| scans.get(&scan));
        scan.map_or(self.from, |scan| {
            scan.ledger.done().clamp(self.from, self.end)
        })
    }
}

impl Entry {
    /// Makes the entry of a search whose first `tried` secrets have been tried without a hit.
    pub(super) fn new(request: Request, client: Client, tried: u64, on_release: Release) -> Entry {
        let (checkpoint, alone) = match request.resume {
            Some(Resume { checkpoint, alone }) => (checkpoint, alone),
            None => {
                let mut new = Checkpoint::new(&request.query);
                for range in &mut new.to_cover {
                    range.start += tried;
                }
                (new, false)
            }
        };
        let covered = checkpoint.covered(&request.query);
        let segments = checkpoint.to_cover.into_iter().map(|range| Segment {
            from: range.start,
            end: range.end,
            scan: None,
        });
        let held = checkpoint.held.into_iter();
        Entry {
            query: Arc::new(request.query),
            client,
            end: checkpoint.end,
            ideal: checkpoint.ideal,
            segments: segments.collect(),
            out_of_order: held.map(|candidate| (candidate.index, candidate)).collect(),
            queue: VecDeque::new(),
            rate: request.rate,
            cost: request.cost,
            matcher: Some(request.matcher),
            alone_until: if alone { checkpoint.end } else { 0 },
            refused_by: Vec::new(),
            stopped: None,
            ticket: None,
            awaited: BTreeSet::new(),
            hashes: tried,
            covered_before: covered - tried,
            gained: 0,
            outcome: None,
            on_release: Some(on_release),
            reader: None,
            abandoned: false,
        }
    }

    /// Returns the expected hits per secret.
    pub(super) fn hit_rate(&self) -> f64 {
        self.rate
    }

    /// Returns the expected hits per secret; infinity while the search must share nothing.
    pub(super) fn rate(&self) -> f64 {
        if self.alone_until == 0 {
            self.rate
        } else {
            f64::INFINITY
        }
    }

    /// Whether the search needs slices: it has neither ended nor been stopped, and its queue has
    /// room.
    pub(super) fn is_runnable(&self, limit: usize) -> bool {
        self.outcome.is_none() && self.stopped.is_none() && self.queue.len() < limit
    }

    pub(super) fn state(&self, limit: usize, scans: &Scans) -> SearchState {
        let mut followed = self.scans().filter_map(|scan| scans.get(&scan));
        if self.outcome.is_some() {
            SearchState::Ended
        } else if self.queue.len() >= limit {
            SearchState::Parked
        } else if !self.awaited.is_empty() || followed.any(|scan| !scan.jobs.is_empty()) {
            SearchState::Running
        } else {
            SearchState::Queued
        }
    }

    /// Returns the index below which every secret has been tried for the search.
    pub(super) fn frontier(&self, scans: &Scans) -> Index {
        let first = self.segments.first();
        first.map_or(self.end, |segment| segment.progress(scans))
    }

    /// Returns how many secrets were tested for the search, without those that were discarded.
    pub(super) fn tests(&self, scans: &Scans) -> u64 {
        u64::try_from(self.gain(scans)).unwrap_or_default()
    }

    /// Returns how many more secrets are covered than when the search began or resumed. This is
    /// negative if more was discarded of what was covered before.
    pub(super) fn gain(&self, scans: &Scans) -> i128 {
        if self.outcome.is_some() {
            return self.gained;
        }
        let left = self.segments.iter();
        let left = left.map(|segment| segment.end - segment.progress(scans));
        let covered = self.end - self.query.range().start - left.sum::<u64>();
        i128::from(covered) - i128::from(self.covered_before)
    }

    /// Returns the search's state at this moment, for a reader that has taken the whole queue.
    pub(super) fn checkpoint(&self, scans: &Scans) -> Checkpoint {
        let to_cover = self.segments.iter();
        let to_cover = to_cover.map(|segment| segment.progress(scans)..segment.end);
        let to_cover: Vec<_> = to_cover.filter(|range| !range.is_empty()).collect();
        Checkpoint {
            held: self.out_of_order.values().copied().collect(),
            // Once everything below it is covered, it is reported as the outcome.
            ideal: self.ideal.filter(|_| !to_cover.is_empty()),
            to_cover,
            end: self.end,
        }
    }

    /// Whether a reader that waits for `at_least` candidates gets those in the queue.
    pub(super) fn is_readable(&self, at_least: usize, limit: usize) -> bool {
        let queued = self.queue.len();
        queued > 0 && (queued >= at_least.min(limit) || self.outcome.is_some())
    }

    /// Returns how the search has ended, if it has.
    pub(super) fn conclude(&self, frontier: Index) -> Option<Outcome> {
        let cursor = || Cursor::new(&self.query, frontier);
        if frontier >= self.end {
            let nothing = || Outcome::nothing_found(&self.query, self.end);
            return Some(self.ideal.map_or_else(nothing, Outcome::Ideal));
        }
        let (_, why) = self.stopped?;
        // The cursor includes what the awaited slices bring back, so the search ends only after
        // them.
        self.awaited.is_empty().then(|| match why {
            Stop::Asked => Outcome::Stopped(cursor()),
            Stop::Quota(retry_after) => Outcome::QuotaSpent {
                cursor: cursor(),
                retry_after,
            },
            Stop::Panicked => Outcome::Failed(cursor()),
        })
    }

    /// Returns the scans that the search follows.
    pub(super) fn scans(&self) -> impl Iterator<Item = ScanId> {
        self.segments.iter().filter_map(|segment| segment.scan)
    }

    pub(super) fn follows(&self, scan: ScanId) -> bool {
        self.scans().any(|followed| followed == scan)
    }

    /// Whether a scan whose next slice begins at `at` could cover a part of a segment.
    pub(super) fn could_follow(
        &self,
        scan: ScanId,
        at: Index,
        limit: usize,
        scans: &Scans,
    ) -> bool {
        self.is_runnable(limit)
            && self.rate() <= MAX_SHARED_RATE
            && !self.refused_by.contains(&scan)
            && self.segments.len() < MAX_SEGMENTS
            && !self.follows(scan)
            && (self.segments.iter())
                .any(|segment| segment.progress(scans) <= at && at < segment.end)
    }
}
