//! Decides which search is next, and which searches a slice serves: a state machine without
//! threads, clocks or locks.
//!
//! Searches of the same secrets differ only in their names. So slices do not belong to searches but
//! to *scans*. A scan goes through the keyspace, and its slices serve every search that *follows*
//! it, for the price of matching more names. A search has a list of *segments*: the ranges that it
//! has yet to cover, each with the scan that covers it. The first segment holds the search's
//! frontier. A new search starts its own scan, and also follows scans that are further ahead. Once
//! its own scan reaches the place where the search joined another scan, the search follows only
//! that other scan.
//!
//! A search that has a turn advances the first of its scans that has a slice to hand out, and the
//! search's client pays for the slice. So a scan gets the turns of all its followers, and a search
//! that shares with no other search gets only its own turns.
//!
//! Every change to a search goes through the [`Scheduler`]. Its methods return [`Effects`]: what
//! has to happen outside of the lock as a consequence.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use crate::{
    checkpoint::{Advance, Checkpoint},
    client::Client,
    fair_queue::FairQueue,
    group::Group,
    ids::{JobId, ScanId, SearchId},
    keyspace::Index,
    limits::{Accounts, Limits, OverLimit, Usage},
    matcher::Found,
    outcome::{Event, Release, Report},
    pacing::{LEAST_PART, Pacing, SLICE_TIME, Worker},
    progress::{Metrics, Progress, SearchState},
    query::Candidate,
    slice::{Slice, SliceResult},
};

mod build;
mod effects;
mod entry;
mod scan;
mod sharing;

pub(crate) use self::{
    build::Build,
    effects::Effects,
    entry::{Request, Resume},
};
use self::{
    build::Upkeep,
    entry::{Entry, MAX_SEGMENTS, Segment, Stop},
    scan::{Scan, Scans},
};

/// Minimum time between two recalls of a scan's slices because of ideal hits. Searches that share a
/// scan may find many.
const RECALL_EVERY: Duration = Duration::from_secs(1);

/// Maximum number of turns without a slice before other workers get the lock. A turn has no slice
/// if the client's quota is spent, or if the search has nothing to hand out.
const POPS_AT_ONCE: usize = 256;

/// Something for a worker to do.
pub(crate) enum Job {
    Slice(Slice),
    /// Checks whether searches should share slices, which includes planning their filter.
    Build(Build),
}

#[derive(Default)]
pub(crate) struct Scheduler {
    searches: BTreeMap<SearchId, Box<Entry>>,
    scans: Scans,
    jobs: HashMap<JobId, InFlight>,
    fair_queue: FairQueue,
    accounts: Accounts,
    pacing: Pacing,
    next_id: u64,
    /// Counts events that may let a search follow a scan that it could not follow before.
    changes: u64,
    upkeep: Upkeep,
    /// Totals; `tests` stays 0 here.
    totals: Metrics,
    /// The [gain](Entry::gain) of all searches that were released.
    gained: i128,
    /// Slices to bring back, for the next [`Effects`].
    recalls: Vec<JobId>,
}

/// A slice in flight.
struct InFlight {
    scan: ScanId,
    /// The search whose turn it was.
    search: SearchId,
    client: Client,
    range: Range<Index>,
    group: Arc<Group>,
    worker: Worker,
    began: Duration,
    /// Searches that await the slice.
    waiters: Vec<SearchId>,
    is_recalled: bool,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits, pacing: Pacing) -> Scheduler {
        Scheduler {
            pacing,
            accounts: Accounts::new(Limits {
                // A search without room for one candidate could never run.
                queue_length: limits.queue_length.max(1),
                ..limits
            }),
            ..Scheduler::default()
        }
    }

    /// Counts a search that a client is about to submit, if the limits allow it.
    pub(crate) fn admit(&mut self, client: &Client, now: Duration) -> Result<(), OverLimit> {
        self.accounts.open(client, now)
    }

    /// Counts a search that was admitted before, whatever the limits.
    pub(crate) fn readmit(&mut self, client: &Client, now: Duration) {
        self.accounts.reopen(client, now);
    }

    /// No longer counts an admitted search, which is not submitted after all.
    pub(crate) fn dismiss(&mut self, client: &Client) {
        self.accounts.close(client, 0);
    }

    /// Takes an admitted search whose first `tried` secrets have been tried without a hit. It
    /// begins after these secrets.
    pub(crate) fn submit(
        &mut self,
        client: Client,
        request: Request,
        tried: u64,
        took: Duration,
        on_release: Release,
        now: Duration,
    ) -> (SearchId, Effects) {
        let id = self.new_id();
        self.charge_tried(&client, tried, took, now);
        let entry = Entry::new(request, client, tried, on_release);
        self.searches.insert(id, Box::new(entry));
        self.note_change();
        // A search with an empty range, from a cursor at the very end, ends at once.
        let mut effects = Effects::default();
        self.settle(id, now, &mut effects);
        self.queue_turn(id, true);
        self.complete(&mut effects);
        (id, effects)
    }

    /// Records an admitted search that ended with the secrets that the caller's thread tried.
    pub(crate) fn record_ended(
        &mut self,
        client: &Client,
        on_release: Release,
        report: Report,
        took: Duration,
        now: Duration,
    ) -> Effects {
        self.charge_tried(client, report.hashes, took, now);
        self.totals.ended.count(&report.outcome);
        self.gained += i128::from(report.tests);
        self.accounts.close(client, report.tests);
        Effects {
            released: Vec::from([(on_release, report)]),
            ..Effects::default()
        }
    }

    /// Charges a client for hashes outside of its turns.
    fn charge_tried(&mut self, client: &Client, hashes: u64, took: Duration, now: Duration) {
        if hashes > 0 {
            // The thread may have been interrupted, which is not the client's fault.
            let took = took.min(self.pacing.slice_time);
            self.charge(client, took, Duration::ZERO);
            self.accounts.spend(&client.name, hashes, took, now);
            self.totals.hashes += hashes;
            self.totals.slices += 1;
        }
    }

    /// Adds to the effects what the caller has to do besides.
    fn complete(&mut self, effects: &mut Effects) {
        effects.work = self.has_work();
        effects.recalls.append(&mut self.recalls);
    }

    /// Charges a client for time that a worker has spent on it. `paid` was charged in advance. The
    /// fair queue knows only slices of a thread.
    fn charge(&mut self, client: &Client, took: Duration, paid: Duration) {
        let slice_time = self.pacing.slice_time;
        let in_slices = |time: Duration| {
            if slice_time == SLICE_TIME {
                time
            } else {
                SLICE_TIME.mul_f64(time.div_duration_f64(slice_time))
            }
        };
        self.fair_queue
            .charge(client, in_slices(took), in_slices(paid));
    }

    /// Returns how many clients wait for a turn.
    pub(crate) fn waiting_clients(&self) -> usize {
        self.fair_queue.waiting_clients()
    }

    /// Whether there may be work for another worker.
    pub(crate) fn has_work(&self) -> bool {
        !self.fair_queue.is_empty()
    }

    /// Returns the next job of this worker. `None` does not mean that there is none: the worker
    /// retries if the scheduler [has work](Self::has_work).
    pub(crate) fn next_job(
        &mut self,
        worker: Worker,
        now: Duration,
        effects: &mut Effects,
    ) -> Option<Job> {
        for _ in 0..POPS_AT_ONCE {
            let id = self.fair_queue.pop()?;
            if let Some(entry) = self.searches.get_mut(&id) {
                entry.ticket = None;
                if let Some(retry_after) = self.accounts.retry_after(&entry.client.name, now) {
                    self.request_stop(id, now, Stop::Quota(retry_after), effects);
                    continue;
                }
            }
            let Some((scan_id, range, is_urgent)) = self.next_range(id, &worker) else {
                continue;
            };
            let mut job = self.start_slice(id, scan_id, range, worker, now);
            job.is_urgent = is_urgent;
            // Many searches end within their first slice, and a second slice for another worker
            // would then be wasted.
            if self.scans.get(&scan_id).is_some_and(|scan| scan.is_tried) {
                self.queue_turn(id, false);
            }
            return Some(Job::Slice(job));
        }
        None
    }

    /// Returns the range and the group of a slice in flight.
    pub(crate) fn leased(&self, id: JobId) -> Option<(Range<Index>, Arc<Group>)> {
        let job = self.jobs.get(&id)?;
        Some((job.range.clone(), Arc::clone(&job.group)))
    }

    /// Returns how long a slice in flight should take.
    pub(crate) fn planned(&self, id: JobId) -> Duration {
        let planned = self.jobs.get(&id).and_then(|job| {
            let length = job.worker.scale(self.scans.get(&job.scan)?.length);
            let count = job.range.end - job.range.start;
            Some(self.pacing.slice_time.mul_f64(count as f64 / length as f64))
        });
        planned.unwrap_or(self.pacing.slice_time)
    }

    /// Sets when a slice in flight began: by its worker, not when the worker was told to.
    pub(crate) fn set_began(&mut self, id: JobId, began: Duration) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.began = began;
        }
    }

    /// Takes a slice back, with its result.
    pub(crate) fn finish(&mut self, id: JobId, result: SliceResult, now: Duration) -> Effects {
        let mut effects = Effects::default();
        let Some(job) = self.jobs.remove(&id) else {
            return effects;
        };
        let took = now.saturating_sub(job.began);
        let paid = self.pacing.slice_time / job.worker.parts.max(1);
        self.charge(&job.client, took, paid);
        let mut touched = job.waiters.clone();
        for waiter in &touched {
            if let Some(entry) = self.searches.get_mut(waiter) {
                entry.awaited.remove(&id);
            }
        }
        let mut is_new = false;
        if let Some(scan) = self.scans.get_mut(&job.scan) {
            scan.jobs.remove(&id);
            // A new search's first slice is so short that its second one also goes before other
            // searches' slices.
            is_new = !std::mem::replace(&mut scan.is_tried, true);
            touched.extend(std::mem::take(&mut scan.idle));
            touched.push(job.search);
        }
        touched.extend(match result {
            SliceResult::Tried { tried, hits } => {
                self.count_hashes(&job, tried - job.range.start, now);
                self.record_tried(&job, tried, took, hits, now)
            }
            SliceResult::Panicked => self.panicked(&job, now),
        });
        touched.sort_unstable();
        touched.dedup();
        for id in touched {
            self.settle(id, now, &mut effects);
            self.queue_turn(id, is_new && id == job.search);
            self.forget_if_released(id);
        }
        self.complete(&mut effects);
        effects
    }

    /// Stops a search. It is released once the slices in flight that serve it have come back, or at
    /// once if there are none. A search that has ended keeps its outcome.
    pub(crate) fn stop(&mut self, id: SearchId, now: Duration) -> Effects {
        let mut effects = Effects::default();
        self.request_stop(id, now, Stop::Asked, &mut effects);
        effects.recalls.append(&mut self.recalls);
        effects
    }

    /// Stops a search whose handle was dropped, and forgets it once it is released.
    pub(crate) fn abandon(&mut self, id: SearchId, now: Duration) -> Effects {
        let mut effects = self.stop(id, now);
        if let Some(entry) = self.searches.get_mut(&id) {
            entry.abandoned = true;
            effects
                .stale
                .extend(entry.reader.take().map(|(waker, _)| waker));
        }
        self.forget_if_released(id);
        effects
    }

    /// Stops every search.
    pub(crate) fn stop_all(&mut self, now: Duration) -> Effects {
        let mut effects = Effects::default();
        let ids: Vec<SearchId> = self.searches.keys().copied().collect();
        for id in ids {
            self.request_stop(id, now, Stop::Asked, &mut effects);
        }
        effects.recalls.append(&mut self.recalls);
        effects
    }

    /// Returns candidates to the reader once there are `at_least` of them, the queue is full, or no
    /// more will come. After the last candidates it returns the end. Until there is something to
    /// return, it keeps `waker`, to wake it once.
    pub(crate) fn poll(
        &mut self,
        id: SearchId,
        at_least: usize,
        waker: Waker,
    ) -> (Poll<Event>, Effects) {
        let mut effects = Effects::default();
        let limit = self.accounts.limits().queue_length;
        let Some(entry) = self.searches.get_mut(&id) else {
            // Only the handle polls, and while it exists the entry is kept.
            unreachable!("search {id} was forgotten before its handle was dropped");
        };
        if entry.is_readable(at_least, limit) {
            let was_parked = entry.queue.len() >= limit;
            let candidates = std::mem::take(&mut entry.queue).into();
            if was_parked {
                // Other scans have advanced since the search was parked, so it may now follow them.
                self.note_change();
            }
            self.queue_turn(id, false);
            effects.work = !self.fair_queue.is_empty();
            effects.stale.push(waker);
            return (Poll::Ready(Event::Candidates(candidates)), effects);
        }
        if let Some(outcome) = &entry.outcome {
            effects.stale.push(waker);
            return (Poll::Ready(Event::Ended(outcome.clone())), effects);
        }
        let stale = entry.reader.replace((waker, at_least));
        effects.stale.extend(stale.map(|(waker, _)| waker));
        (Poll::Pending, effects)
    }

    /// Takes the candidates that are ready, and returns them with the search's state at this
    /// moment. Keeps `waker`, to wake it once when the queue is half full or the search has ended.
    pub(crate) fn advance(&mut self, id: SearchId, waker: Waker) -> (Advance, Effects) {
        let mut effects = Effects::default();
        let limit = self.accounts.limits().queue_length;
        let Some(entry) = self.searches.get_mut(&id) else {
            // Only the handle calls this, and while it exists the entry is kept.
            unreachable!("search {id} was forgotten before its handle was dropped");
        };
        let was_parked = entry.queue.len() >= limit;
        let candidates = std::mem::take(&mut entry.queue).into();
        let advance = Advance {
            candidates,
            checkpoint: entry.checkpoint(&self.scans),
            outcome: entry.outcome.clone(),
            progress: Progress {
                state: entry.state(limit, &self.scans),
                frontier: entry.frontier(&self.scans),
                hashes: entry.hashes,
                tests: entry.tests(&self.scans),
            },
        };
        let stale = match entry.outcome {
            Some(_) => Some(waker),
            None => {
                let half = limit.div_ceil(2);
                let stale = entry.reader.replace((waker, half));
                stale.map(|(waker, _)| waker)
            }
        };
        effects.stale.extend(stale);
        if was_parked {
            self.note_change();
            self.queue_turn(id, false);
        }
        self.complete(&mut effects);
        (advance, effects)
    }

    /// Returns the index below which every secret has been tried for a search.
    pub(crate) fn frontier(&self, id: SearchId) -> Option<Index> {
        Some(self.searches.get(&id)?.frontier(&self.scans))
    }

    /// Returns the state of a search that has ended, once its reader has taken all candidates.
    pub(crate) fn checkpoint(&self, id: SearchId) -> Option<Checkpoint> {
        let entry = self.searches.get(&id)?;
        let is_over = entry.outcome.is_some() && entry.queue.is_empty();
        is_over.then(|| entry.checkpoint(&self.scans))
    }

    /// Returns a search's progress, while its handle exists.
    pub(crate) fn progress(&self, id: SearchId) -> Option<Progress> {
        let entry = self.searches.get(&id)?;
        Some(Progress {
            state: entry.state(self.accounts.limits().queue_length, &self.scans),
            frontier: entry.frontier(&self.scans),
            hashes: entry.hashes,
            tests: entry.tests(&self.scans),
        })
    }

    pub(crate) fn usage(&self, client: &str) -> Usage {
        self.accounts.usage(client)
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let mut metrics = self.totals.clone();
        let mut gained = self.gained;
        let limit = self.accounts.limits().queue_length;
        for entry in self
            .searches
            .values()
            .filter(|entry| entry.on_release.is_some())
        {
            gained += entry.gain(&self.scans);
            match entry.state(limit, &self.scans) {
                SearchState::Parked => metrics.parked += 1,
                SearchState::Queued => metrics.queued += 1,
                // A search that has ended is counted while it still has slices in flight.
                SearchState::Running | SearchState::Ended => metrics.active += 1,
            }
        }
        let tests = gained + i128::from(metrics.in_vain);
        metrics.tests = u64::try_from(tests).unwrap_or_default();
        metrics
    }

    fn note_change(&mut self) {
        self.changes += 1;
        self.upkeep.mark_due();
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Queues a search for a turn, if it needs slices.
    fn queue_turn(&mut self, id: SearchId, new: bool) {
        let limit = self.accounts.limits().queue_length;
        if let Some(entry) = self.searches.get_mut(&id)
            && entry.is_runnable(limit)
            && entry.ticket.is_none()
        {
            entry.ticket = Some(self.fair_queue.push(&entry.client, id, new));
        }
    }

    /// Finds the next range to try for a search whose turn it is, in the first of its scans that
    /// has one.
    ///
    /// Also returns whether an ideal hit waits for it.
    fn next_range(
        &mut self,
        id: SearchId,
        worker: &Worker,
    ) -> Option<(ScanId, Range<Index>, bool)> {
        let limit = self.accounts.limits().queue_length;
        let entry = self
            .searches
            .get_mut(&id)
            .filter(|entry| entry.is_runnable(limit))?;
        let frontier = entry.frontier(&self.scans);
        let ideal_end = entry.ideal.map(|_| entry.end);
        // A search that holds this many hits or more gets only the slice at its frontier. If that
        // slice also had to wait, the out-of-order hits beyond it would never leave.
        let most_held = self.pacing.most_held.max(limit);
        let at_frontier_only = entry.queue.len() + entry.out_of_order.len() >= most_held;
        let mut index = 0;
        while let Some(segment) = self.searches[&id].segments.get(index).copied() {
            index += 1;
            let scan_id = match segment.scan {
                Some(scan) => scan,
                None => self.begin_scan(id, index - 1),
            };
            let scan = self.scans.get_mut(&scan_id)?;
            let start = scan.ledger.next_start();
            // What workers elsewhere have not brought back counts, too.
            let most_expected = match self.pacing.most_held {
                0 => f64::INFINITY,
                most => most as f64 / 2.0,
            };
            if start.is_some_and(|start| {
                let is_first = start == scan.ledger.done();
                let fits = is_first || scan.expected_hits(start) <= most_expected;
                start < segment.end && (start <= frontier || !at_frontier_only && fits)
            }) {
                let (end, _) = scan.followers.last()?;
                let mut length = worker.scale(scan.length);
                length = (length / u64::from(worker.parts.max(1))).max(1);
                let is_urgent = worker.share < 1.0 && ideal_end.is_some();
                if let Some(end) = ideal_end.filter(|_| is_urgent) {
                    let part = scan.ledger.available(end) as f64 * worker.share;
                    length = length.min((part as u64).max(length / LEAST_PART)).max(1);
                }
                if let Some(range) = scan.ledger.take(length, *end) {
                    return Some((scan_id, range, is_urgent));
                }
            }
            // The search waits here until a slice of this scan comes back.
            scan.idle.insert(id);
        }
        None
    }

    /// Starts a scan for a segment that has none. A search's first scan takes the matcher that the
    /// search was submitted with. For a later scan, a worker plans the filter again, outside of the
    /// lock.
    fn begin_scan(&mut self, id: SearchId, segment: usize) -> ScanId {
        let scan_id = self.new_id();
        let Some(entry) = self.searches.get_mut(&id) else {
            return scan_id;
        };
        let group = Group::alone(Arc::clone(&entry.query), id, entry.matcher.take());
        let segment = &mut entry.segments[segment];
        segment.scan = Some(scan_id);
        let scan = Scan::new(
            id,
            segment.from..segment.end,
            group,
            (entry.cost, entry.hit_rate()),
            &self.pacing,
        );
        self.scans.insert(scan_id, Box::new(scan));
        self.upkeep.mark_due();
        scan_id
    }

    fn start_slice(
        &mut self,
        search: SearchId,
        scan_id: ScanId,
        range: Range<Index>,
        worker: Worker,
        now: Duration,
    ) -> Slice {
        let id = self.new_id();
        // Charged in advance, and refunded when the slice comes back.
        let client = self.searches[&search].client.clone();
        let paid = self.pacing.slice_time / worker.parts.max(1);
        self.charge(&client, paid, Duration::ZERO);
        let (entry, scan) = (&self.searches[&search], &self.scans[&scan_id]);
        let alone = scan.group.len() == 1 && !entry.query.reports_candidates();
        let slice = Slice {
            id,
            range: range.clone(),
            group: Arc::clone(&scan.group),
            // If one search is alone and reports no candidates, its first hit is the answer.
            hit_limit: if alone { 1 } else { self.pacing.hits_per_slice },
            is_urgent: false,
            stop: Arc::clone(&scan.stop),
        };
        let job = InFlight {
            scan: scan_id,
            search,
            client,
            range,
            group: Arc::clone(&scan.group),
            worker,
            began: now,
            waiters: Vec::new(),
            is_recalled: false,
        };
        self.jobs.insert(id, job);
        if let Some(scan) = self.scans.get_mut(&scan_id) {
            scan.jobs.insert(id);
        }
        slice
    }

    /// Counts hashes, for the search whose turn it was and for its client.
    fn count_hashes(&mut self, job: &InFlight, hashes: u64, now: Duration) {
        self.accounts
            .spend(&job.client.name, hashes, now.saturating_sub(job.began), now);
        self.totals.hashes += hashes;
        self.totals.slices += 1;
        if let Some(entry) = self.searches.get_mut(&job.search) {
            entry.hashes += hashes;
        }
    }

    /// Records a slice that was tried, in its scan and for the searches that have hits in it.
    /// Returns the searches to settle.
    fn record_tried(
        &mut self,
        job: &InFlight,
        tried: Index,
        took: Duration,
        hits: Vec<Found>,
        now: Duration,
    ) -> Vec<SearchId> {
        let limit = self.accounts.limits().queue_length;
        // A slice that comes back early for another reason than its hits says nothing.
        let ends_with_hit = hits.last().is_some_and(|hit| {
            let owner = job.group.owner(hit.number);
            let entry = owner.and_then(|(id, _)| self.searches.get(&id));
            // Workers elsewhere report such a hit at once.
            let is_ideal = entry.is_some_and(|entry| entry.query.is_ideal(hit.distance));
            hit.index + 1 == tried && !is_ideal
        });
        let says_length = tried == job.range.end || ends_with_hit;
        let mut touched = Vec::new();
        for Found {
            index,
            number,
            distance,
            window,
        } in hits
        {
            let Some((id, name)) = job.group.owner(number) else {
                continue;
            };
            let candidate = Candidate {
                index,
                name,
                distance,
                window,
            };
            let Some(entry) = self.searches.get_mut(&id) else {
                continue;
            };
            // The search may have left the scan, or joined it beyond this index.
            let wants = |segment: &Segment| {
                segment.scan == Some(job.scan) && (segment.from..segment.end).contains(&index)
            };
            if !entry.segments.iter().any(wants) {
                continue;
            }
            // A secret may be near several of a search's names, but is reported once.
            let at_ideal = entry.ideal.filter(|ideal| ideal.index == index);
            let known = at_ideal.or_else(|| entry.out_of_order.get(&index).copied());
            let is_nearest = known.is_none_or(|known| candidate.nearness() < known.nearness());
            if entry.query.is_ideal(candidate.distance) {
                if is_nearest {
                    entry.out_of_order.remove(&index);
                    entry.ideal = Some(candidate);
                    self.truncate(id, index + 1);
                    self.recall_below(job.scan, index, now);
                }
                touched.push(id);
            } else if at_ideal.is_none() && entry.query.is_interesting(candidate.distance) {
                if is_nearest {
                    entry.out_of_order.insert(index, candidate);
                }
                let most_held = self.pacing.most_held.max(limit);
                let too_many = entry.out_of_order.len() > most_held + self.pacing.hits_per_slice;
                // Even if the hit was known: the scan that found it first may be gone.
                if let Some(scan) = self.scans.get_mut(&job.scan) {
                    scan.out_of_order.insert((index, id));
                }
                if too_many {
                    self.discard_ahead(id);
                }
            }
        }
        let Some(scan) = self.scans.get_mut(&job.scan) else {
            return touched;
        };
        if says_length && Arc::ptr_eq(&scan.group, &job.group) {
            scan.adapt(&job.range, tried, &job.worker, took, &self.pacing);
        }
        let before = scan.ledger.done();
        scan.ledger.finish(job.range.clone(), tried);
        let done = scan.ledger.done();
        // These followers leave the scan at an index that it has just reached. A search whose
        // frontier is in an earlier segment settles later.
        let arrived = scan
            .followers
            .range((before, SearchId::MAX)..=(done, SearchId::MAX));
        touched.extend(arrived.map(|(_, id)| *id));
        while let Some((index, id)) = scan.out_of_order.first().copied()
            && index < done
        {
            scan.out_of_order.pop_first();
            touched.push(id);
        }
        touched
    }

    /// Handles a panic: a search that was alone in the slice fails. Searches that shared it try it
    /// again, each alone, so that only the one that caused the panic fails.
    fn panicked(&mut self, job: &InFlight, now: Duration) -> Vec<SearchId> {
        let Some(scan) = self.scans.get_mut(&job.scan) else {
            return Vec::new();
        };
        scan.ledger.finish(job.range.clone(), job.range.start);
        if let [alone] = job.group.members() {
            self.await_slices(*alone);
            let entry = self.searches.get_mut(alone);
            if let Some(entry) = entry.filter(|entry| entry.outcome.is_none()) {
                entry.stopped.get_or_insert((now, Stop::Panicked));
            }
            return vec![*alone];
        }
        let followers: Vec<SearchId> = scan.followers.iter().map(|(_, id)| *id).collect();
        for &id in &followers {
            if let Some(entry) = self.searches.get_mut(&id) {
                entry.alone_until = job.range.end;
            }
            self.detach(id);
        }
        followers
    }

    /// Stops a search for a reason, unless it has ended or was stopped before.
    fn request_stop(&mut self, id: SearchId, now: Duration, why: Stop, effects: &mut Effects) {
        self.await_slices(id);
        if let Some(entry) = self.searches.get_mut(&id)
            && entry.outcome.is_none()
            && entry.stopped.is_none()
        {
            entry.stopped = Some((now, why));
            if let Some(ticket) = entry.ticket.take() {
                self.fair_queue.remove(&entry.client, ticket);
            }
            for scan in entry.scans().filter_map(|scan| self.scans.get(&scan)) {
                // Skips slices that serve only this search and have not begun.
                if scan.followers.len() == 1 {
                    scan.stop();
                    recall(&mut self.jobs, &scan.jobs, &mut self.recalls);
                }
            }
        }
        self.settle(id, now, effects);
    }

    /// Makes a search await the slices in flight that serve it. A stopped search awaits only those
    /// that were in flight when it was stopped.
    fn await_slices(&mut self, id: SearchId) {
        let entry = self.searches.get_mut(&id);
        let Some(entry) = entry.filter(|entry| entry.stopped.is_none()) else {
            return;
        };
        for scan in entry.segments.iter().filter_map(|segment| segment.scan) {
            let Some(scan) = self.scans.get(&scan) else {
                continue;
            };
            for job in &scan.jobs {
                if let Some(in_flight) = self.jobs.get_mut(job)
                    && entry.awaited.insert(*job)
                {
                    in_flight.waiters.push(id);
                }
            }
        }
    }

    /// Makes a search leave the scan of a segment, and removes the scan with its last follower.
    fn leave(&mut self, id: SearchId, segment: Segment) {
        let Some(scan_id) = segment.scan else { return };
        let Some(scan) = self.scans.get_mut(&scan_id) else {
            return;
        };
        scan.followers.remove(&(segment.end, id));
        if scan.is_mostly_gone() {
            // Most names in the scan's matcher are not needed any more.
            scan.checked_at = 0;
            self.upkeep.mark_due();
        }
        match scan.followers.last() {
            None => {
                scan.stop();
                recall(&mut self.jobs, &scan.jobs, &mut self.recalls);
                self.scans.remove(&scan_id);
            }
            Some((end, _)) if segment.end > *end => {
                // No follower that is left wants what lies beyond.
                let end = *end;
                let jobs = &self.jobs;
                let beyond = scan.jobs.iter().filter(|job| jobs[job].range.start >= end);
                let beyond: Vec<JobId> = beyond.copied().collect();
                recall(&mut self.jobs, &beyond, &mut self.recalls);
            }
            Some(_) => {}
        }
    }

    /// Recalls slices again that ideal hits still wait for: some workers are slow or gone, and
    /// others have nothing left to do.
    pub(crate) fn recall_again(&mut self, now: Duration) -> Vec<JobId> {
        let waiting = self.searches.values().filter_map(|entry| {
            let ideal = entry.ideal.filter(|_| entry.outcome.is_none())?;
            let scan = entry.segments.first()?.scan?;
            // Nothing is left to hand out.
            let is_dealt = self.scans.get(&scan)?.ledger.available(entry.end) == 0;
            is_dealt.then_some((scan, ideal.index))
        });
        let waiting: Vec<_> = waiting.collect();
        for (scan, hit) in waiting {
            self.recall_below(scan, hit, now);
        }
        std::mem::take(&mut self.recalls)
    }

    /// Brings back the slices of a scan for which an ideal hit at `hit` has to wait.
    fn recall_below(&mut self, scan: ScanId, hit: Index, now: Duration) {
        let Some(scan) = self.scans.get_mut(&scan) else {
            return;
        };
        if scan.recalled.is_some_and(|at| now < at + RECALL_EVERY) {
            return;
        }
        scan.recalled = Some(now);
        let jobs = &self.jobs;
        let below = scan.jobs.iter().filter(|job| jobs[job].range.start <= hit);
        let below: Vec<JobId> = below.copied().collect();
        recall(&mut self.jobs, &below, &mut self.recalls);
    }

    /// Makes a search leave all its scans. The search keeps what they have covered.
    fn detach(&mut self, id: SearchId) {
        self.await_slices(id);
        let Some(entry) = self.searches.get_mut(&id) else {
            return;
        };
        let segments = entry.segments.clone();
        for segment in &mut entry.segments {
            segment.from = segment.progress(&self.scans);
            segment.scan = None;
        }
        entry.segments.retain(|segment| segment.from < segment.end);
        for segment in segments {
            self.leave(id, segment);
        }
    }

    /// Discards what a search has covered beyond its first segment, and the hits there; if too many
    /// hits are left, also what it has covered beyond its frontier.
    fn discard_ahead(&mut self, id: SearchId) {
        self.await_slices(id);
        let limit = self
            .accounts
            .limits()
            .queue_length
            .max(self.pacing.most_held);
        let before = self.gain(id);
        let Some(entry) = self.searches.get_mut(&id) else {
            return;
        };
        let beyond = entry.segments.split_off(1);
        if let Some(first) = entry.segments.first().copied()
            && first.end < entry.end
        {
            entry.out_of_order.split_off(&first.end);
            entry.segments.push(Segment {
                from: first.end,
                end: entry.end,
                scan: None,
            });
        }
        let is_enough = entry.out_of_order.len() <= limit;
        for segment in beyond {
            self.leave(id, segment);
        }
        if !is_enough {
            self.detach(id);
            if let Some(entry) = self.searches.get_mut(&id)
                && let Some(first) = entry.segments.first()
            {
                entry.out_of_order.split_off(&first.from);
            }
        }
        self.count_in_vain(before - self.gain(id));
    }

    fn gain(&self, id: SearchId) -> i128 {
        let entry = self.searches.get(&id);
        entry.map_or(0, |entry| entry.gain(&self.scans))
    }

    fn count_in_vain(&mut self, discarded: i128) {
        self.totals.in_vain += u64::try_from(discarded).unwrap_or_default();
    }

    /// Ends a search's range at `end`, and discards everything from there on.
    fn truncate(&mut self, id: SearchId, end: Index) {
        self.await_slices(id);
        let before = self.gain(id);
        let Some(entry) = self.searches.get_mut(&id) else {
            return;
        };
        entry.end = end;
        entry.out_of_order.split_off(&end);
        let kept = entry.segments.partition_point(|segment| segment.from < end);
        let mut left = entry.segments.split_off(kept);
        if let Some(last) = entry.segments.last_mut()
            && end < last.end
        {
            left.push(*last);
            last.end = end;
            let scan = last.scan.and_then(|scan| self.scans.get_mut(&scan));
            if let Some(scan) = scan {
                scan.followers.insert((end, id));
            }
        }
        for segment in left {
            self.leave(id, segment);
        }
        self.count_in_vain(before - self.gain(id));
    }

    /// Brings a search up to date after any change: its frontier, its queue, its outcome, its
    /// release, and its reader.
    fn settle(&mut self, id: SearchId, now: Duration, effects: &mut Effects) {
        let limit = self.accounts.limits().queue_length;
        while let Some(entry) = self.searches.get_mut(&id)
            && let Some(segment) = entry.segments.first().copied()
            && segment.end <= segment.progress(&self.scans)
        {
            let had_most = entry.segments.len() == MAX_SEGMENTS;
            entry.segments.remove(0);
            self.leave(id, segment);
            if had_most {
                self.note_change();
            }
        }
        let Some(entry) = self.searches.get_mut(&id) else {
            return;
        };
        let frontier = entry.frontier(&self.scans);
        let is_cleared = (1..=frontier).contains(&entry.alone_until);
        if is_cleared {
            entry.alone_until = 0;
        }
        while let Some(first) = entry.out_of_order.first_entry()
            && *first.key() < frontier
        {
            entry.queue.push_back(first.remove());
        }
        if entry.outcome.is_none() {
            if let Some(outcome) = entry.conclude(frontier) {
                self.totals.ended.count(&outcome);
                entry.gained = entry.gain(&self.scans);
                entry.outcome = Some(outcome);
                effects.stale_matchers.extend(entry.matcher.take());
                if let Some(ticket) = entry.ticket.take() {
                    self.fair_queue.remove(&entry.client, ticket);
                }
                // What is covered beyond the frontier is kept for a checkpoint.
                self.detach(id);
            } else if entry.queue.len() >= limit {
                self.detach(id);
            }
        }
        if is_cleared {
            self.note_change();
        }
        let Some(entry) = self.searches.get_mut(&id) else {
            return;
        };
        if let Some(outcome) = &entry.outcome
            && entry.awaited.is_empty()
            && let Some(release) = entry.on_release.take()
        {
            let stopped = entry.stopped.map(|(when, _)| now.saturating_sub(when));
            if let Some(latency) = stopped {
                let bucket = latency.as_micros().max(1).next_power_of_two().ilog2() as usize;
                let last = self.totals.stop_latency.len() - 1;
                self.totals.stop_latency[bucket.min(last)] += 1;
            }
            self.gained += entry.gained;
            let tests = entry.tests(&self.scans);
            self.accounts.close(&entry.client, tests);
            let report = Report {
                outcome: outcome.clone(),
                hashes: entry.hashes,
                tests,
                stop_latency: stopped,
            };
            effects.released.push((release, report));
        }
        let at_least = entry.reader.as_ref().map(|(_, at_least)| *at_least);
        let is_ready = |at_least| entry.outcome.is_some() || entry.is_readable(at_least, limit);
        if at_least.is_some_and(is_ready) {
            effects
                .wake
                .extend(entry.reader.take().map(|(waker, _)| waker));
        }
    }

    /// Removes a search that was released and whose handle was dropped.
    fn forget_if_released(&mut self, id: SearchId) {
        if let Some(entry) = self.searches.get(&id)
            && entry.abandoned
            && entry.on_release.is_none()
        {
            self.searches.remove(&id);
        }
    }
}

/// Recalls slices in flight, each once.
fn recall<'a>(
    jobs: &mut HashMap<JobId, InFlight>,
    recalled: impl IntoIterator<Item = &'a JobId>,
    recalls: &mut Vec<JobId>,
) {
    for id in recalled {
        if let Some(job) = jobs.get_mut(id)
            && !std::mem::replace(&mut job.is_recalled, true)
        {
            recalls.push(*id);
        }
    }
}

#[cfg(test)]
mod tests;
