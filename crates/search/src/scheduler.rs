//! Which search is next, and whom a slice serves, as a state machine without threads, clocks or locks.
//!
//! Searches that hash the same secrets differ in the name alone. So slices are not given out by
//! searches but by *fronts*: a front goes through the keyspace, and every search that *follows* it is
//! served by its slices for the price of the filter. A search's way is a list of *spans*, the ranges
//! that it has yet to cover; each is left to a front, and the first is where the search stands. A
//! search that arrives begins a front of its own, and follows those that are already further on from
//! where they are; once its own has come so far, they have all gone on together.
//!
//! The search whose turn it is moves the front of its first span, and its client pays. That makes the
//! searches of one front's turns add up, and leaves a search that nobody can help its own.
//!
//! Everything that happens to a search goes through here, and what has to happen outside of the lock as
//! a consequence comes back as [`Effects`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ops::Range,
    sync::{Arc, atomic::Ordering},
    task::{Poll, Waker},
    time::Duration,
};

use crate::{
    client::Client,
    cursor::Cursor,
    front::Front,
    ids::{JobId, SearchId},
    keyspace::Index,
    limits::{Accounts, Limits, OverLimit, Usage},
    outcome::{Event, Outcome, Release, Report},
    progress::{Metrics, Progress, SearchState},
    query::{Candidate, Query},
    set::Set,
    slice::{Done, FIRST_SLICE, SLICE_TIME, Slice},
    sought::Found,
    sync::AtomicBool,
    turns::{Place, Turns},
};

/// The shortest slice, in the same measure, so that one odd measurement does not drown a search in overhead.
/// A secret that costs more is a slice by itself.
const MIN_SLICE: u64 = 1 << 6;

/// The longest slice, whatever the clock says: at a thousand million secrets a second it still
/// takes no more than a quarter of a millisecond.
const MAX_SLICE: u64 = 1 << 18;

/// How many hits end a slice early. It bounds what a search can hold beyond its queue. Few in tests, so
/// that slices often come back half tried.
const HITS_PER_SLICE: usize = if cfg!(test) { 16 } else { 256 };

/// How many turns may pass without a slice before others have the lock: of those whose quota is spent, or
/// for whom everything is under way.
const POPS_AT_ONCE: usize = 256;

/// How many ranges a search may have yet to cover: its own, and three that others' fronts go through.
/// More would be covered a little sooner and cost every one of its steps.
const MAX_SPANS: usize = 4;

mod sharing;
pub(crate) use sharing::Build;
use sharing::Upkeep;

type FrontId = u64;

/// What somebody searches for, with what was worked out of it before anybody had to wait for that.
pub(crate) struct Wish {
    pub(crate) query: Query,
    /// How often it hits.
    pub(crate) rate: f64,
    /// What a secret costs when it is tried for this search alone, in a fast kernel's hashes.
    pub(crate) cost: f64,
}

/// Something for a worker to do.
pub(crate) enum Job {
    Slice(Slice),
    /// To find out whether searches should go together, and to make their filter.
    Build(Build),
}

/// What the caller does once it has let go of the lock.
#[derive(Default)]
#[must_use]
pub(crate) struct Effects {
    pub(crate) wake: Vec<Waker>,
    /// Wakers that are not needed any more; dropping one may run anything.
    pub(crate) stale: Vec<Waker>,
    pub(crate) released: Vec<(Release, Report)>,
    /// There may be work for another worker, who found none before.
    pub(crate) work: bool,
}

impl Effects {
    pub(crate) fn is_empty(&self) -> bool {
        self.wake.is_empty() && self.released.is_empty() && self.stale.is_empty()
    }
}

#[derive(Default)]
pub(crate) struct Scheduler {
    searches: BTreeMap<SearchId, Box<Entry>>,
    fronts: Fronts,
    jobs: HashMap<JobId, InFlight>,
    turns: Turns,
    accounts: Accounts,
    next_id: u64,
    /// Counts whatever may let a search follow a front that it could not follow before.
    changes: u64,
    upkeep: Upkeep,
    totals: Metrics,
}

type Fronts = BTreeMap<FrontId, Box<Line>>;

struct Entry {
    query: Arc<Query>,
    client: Client,
    /// One past the last index that matters.
    end: Index,
    /// The ideal hit at `end - 1`, once there is one.
    ideal: Option<Candidate>,
    /// What is yet to be covered, in order. Whatever lies between two spans is covered.
    spans: Vec<Span>,
    /// Hits that the search has not come to yet.
    held: BTreeMap<Index, Candidate>,
    /// Hits that the reader has not taken yet.
    queue: VecDeque<Candidate>,
    /// How often it hits.
    rate: f64,
    /// What a secret costs when it is tried for this search alone.
    cost: f64,
    /// Until it has come so far it shares nothing: a slice of it and others has panicked, and whose
    /// fault that was is found out by each of them alone.
    alone_until: Index,
    /// The fronts that it was last found not to go well with.
    refused_by: Vec<FrontId>,
    /// When the search was told to stop, and why it ends.
    stopped: Option<(Duration, Stop)>,
    /// Where it waits for a turn.
    place: Option<Place>,
    /// The slices under way that serve it, as far as anybody has asked.
    jobs: Vec<JobId>,
    hashes: u64,
    /// How many secrets were tested for it, once it has ended.
    tested: u64,
    /// Set once nothing can change it any more.
    outcome: Option<Outcome>,
    on_release: Option<Release>,
    reader: Option<(Waker, usize)>,
    /// Whether the handle is gone, so that nobody will ask for the outcome.
    abandoned: bool,
}

/// A range that a search has yet to cover.
#[derive(Clone, Copy, Debug)]
struct Span {
    from: Index,
    end: Index,
    /// The front that it is left to. What that has done from `from` on is covered.
    front: Option<FrontId>,
}

/// A front, and who follows it.
struct Line {
    front: Front,
    /// Its followers, by where they leave it.
    followers: BTreeSet<(Index, SearchId)>,
    /// Hits that followers hold, by where they are.
    held: BTreeSet<(Index, SearchId)>,
    /// What its slices look for: for every follower, and perhaps for some that have left.
    set: Arc<Set>,
    /// What a secret costs with all of them.
    cost: f64,
    /// How many searches may come to follow it at once, after more were found to be too many.
    at_most: usize,
    /// How long its next slice is.
    length: u64,
    /// Whether a slice of it has come back.
    is_tried: bool,
    jobs: Vec<JobId>,
    /// Searches that found nothing to do here, until something happens.
    idle: BTreeSet<SearchId>,
    /// How many changes there had been when it was last looked who could follow.
    seen: u64,
    stop: Arc<AtomicBool>,
}

/// A slice under way.
struct InFlight {
    front: FrontId,
    /// Whose turn it was.
    search: SearchId,
    client: Client,
    range: Range<Index>,
    set: Arc<Set>,
    began: Duration,
    /// Searches that wait for it to end.
    holders: Vec<SearchId>,
}

#[derive(Clone, Copy)]
enum Stop {
    Asked,
    Panicked,
    /// When there will be some of the quota again.
    Quota(Duration),
}

impl Scheduler {
    pub(crate) fn new(limits: Limits) -> Scheduler {
        Scheduler {
            accounts: Accounts::new(Limits {
                // A search that may not keep one candidate could never go on.
                queue_length: limits.queue_length.max(1),
                ..limits
            }),
            ..Scheduler::default()
        }
    }

    /// Counts a search that a client is about to submit, if it may.
    pub(crate) fn admit(&mut self, client: &Client, now: Duration) -> Result<(), OverLimit> {
        self.accounts.open(client, now)
    }

    /// Takes a search that was admitted, of which so many secrets have been tried already. It begins behind
    /// them.
    pub(crate) fn submit(
        &mut self,
        client: Client,
        wish: Wish,
        tried: u64,
        took: Duration,
        on_release: Release,
        now: Duration,
    ) -> (SearchId, Effects) {
        let id = self.new_id();
        let range = wish.query.range();
        self.spent(&client, tried, took, now);
        let entry = Entry {
            rate: wish.rate,
            cost: wish.cost,
            alone_until: 0,
            refused_by: Vec::new(),
            query: Arc::new(wish.query),
            client,
            end: range.end,
            ideal: None,
            spans: vec![Span {
                from: range.start + tried,
                end: range.end,
                front: None,
            }],
            held: BTreeMap::new(),
            queue: VecDeque::new(),
            stopped: None,
            place: None,
            jobs: Vec::new(),
            hashes: tried,
            tested: 0,
            outcome: None,
            on_release: Some(on_release),
            reader: None,
            abandoned: false,
        };
        self.searches.insert(id, Box::new(entry));
        self.changed();
        // An empty range, from a cursor at the very end, ends before it begins.
        let mut effects = Effects::default();
        self.settle(id, now, &mut effects);
        self.queue_turn(id, true);
        effects.work = self.has_work();
        (id, effects)
    }

    /// Counts a search that was admitted and ended with the secrets that were tried before it was submitted.
    pub(crate) fn ended_at_once(
        &mut self,
        client: &Client,
        on_release: Release,
        report: Report,
        took: Duration,
        now: Duration,
    ) -> Effects {
        self.spent(client, report.hashes, took, now);
        self.totals.ended.count(&report.outcome);
        self.totals.tests += report.tests;
        self.accounts.close(client, report.tests);
        Effects {
            released: Vec::from([(on_release, report)]),
            ..Effects::default()
        }
    }

    /// Counts what was hashed for a client outside of its turns.
    fn spent(&mut self, client: &Client, hashes: u64, took: Duration, now: Duration) {
        if hashes > 0 {
            // Whoever tried them may have been held up, for which the client cannot help.
            self.turns
                .charge(client, took.min(SLICE_TIME), Duration::ZERO);
            self.accounts.spend(&client.name, hashes, took, now);
            self.totals.hashes += hashes;
            self.totals.slices += 1;
        }
    }

    /// Whether there may be something to do for another worker.
    pub(crate) fn has_work(&self) -> bool {
        !self.turns.is_empty()
    }

    /// What a worker does next. If that is nothing and there is [work](Self::has_work) all the same, it asks
    /// again.
    pub(crate) fn next_job(&mut self, now: Duration, effects: &mut Effects) -> Option<Job> {
        for _ in 0..POPS_AT_ONCE {
            let id = self.turns.pop()?;
            if let Some(entry) = self.searches.get_mut(&id) {
                entry.place = None;
                if let Some(retry_after) = self.accounts.is_spent(&entry.client.name, now) {
                    self.tell(id, now, Stop::Quota(retry_after), effects);
                    continue;
                }
            }
            let Some((front, range)) = self.take(id) else {
                continue;
            };
            let job = self.give_out(id, front, range, now);
            // Many a search is over with its first slice; another worker's second would be in vain.
            if self.fronts.get(&front).is_some_and(|line| line.is_tried) {
                self.queue_turn(id, false);
            }
            return Some(Job::Slice(job));
        }
        None
    }

    /// Takes a slice back.
    pub(crate) fn finish(&mut self, id: JobId, done: Done, now: Duration) -> Effects {
        let mut effects = Effects::default();
        let Some(job) = self.jobs.remove(&id) else {
            return effects;
        };
        let took = now.saturating_sub(job.began);
        self.turns.charge(&job.client, took, SLICE_TIME);
        let mut touched = job.holders.clone();
        for holder in &touched {
            if let Some(entry) = self.searches.get_mut(holder) {
                entry.jobs.retain(|held| *held != id);
            }
        }
        let mut is_new = false;
        if let Some(line) = self.fronts.get_mut(&job.front) {
            line.jobs.retain(|under_way| *under_way != id);
            // Short as its first slice is, a new search's second goes before others' too.
            is_new = !std::mem::replace(&mut line.is_tried, true);
            touched.extend(std::mem::take(&mut line.idle));
            touched.push(job.search);
        }
        touched.extend(match done {
            Done::Tried { tried, hits } => {
                self.count(&job, tried - job.range.start, now);
                self.tried(&job, tried, took, hits)
            }
            Done::Panicked => self.panicked(&job, now),
        });
        touched.sort_unstable();
        touched.dedup();
        for id in touched {
            self.settle(id, now, &mut effects);
            self.queue_turn(id, is_new && id == job.search);
            self.forget(id);
        }
        effects.work = self.has_work();
        effects
    }

    /// Tells a search to stop. Its cores are free once the slices that serve it have come back; without
    /// any, at once. A search that has ended stays as it ended.
    pub(crate) fn stop(&mut self, id: SearchId, now: Duration) -> Effects {
        let mut effects = Effects::default();
        self.tell(id, now, Stop::Asked, &mut effects);
        effects
    }

    /// Stops a search whose handle is gone, and forgets it when its last worker has let go.
    pub(crate) fn abandon(&mut self, id: SearchId, now: Duration) -> Effects {
        let mut effects = self.stop(id, now);
        if let Some(entry) = self.searches.get_mut(&id) {
            entry.abandoned = true;
            effects
                .stale
                .extend(entry.reader.take().map(|(waker, _)| waker));
        }
        self.forget(id);
        effects
    }

    /// Stops every search.
    pub(crate) fn stop_all(&mut self, now: Duration) -> Effects {
        let mut effects = Effects::default();
        let ids: Vec<SearchId> = self.searches.keys().copied().collect();
        for id in ids {
            self.tell(id, now, Stop::Asked, &mut effects);
        }
        effects
    }

    /// The reader's turn: candidates, when `at_least` of them are there or no more will come, then
    /// the end. Until then `waker` is kept, to be woken once.
    pub(crate) fn poll(
        &mut self,
        id: SearchId,
        at_least: usize,
        waker: Waker,
    ) -> (Poll<Event>, Effects) {
        let mut effects = Effects::default();
        let limit = self.accounts.limits().queue_length;
        let Some(entry) = self.searches.get_mut(&id) else {
            // The handle is what keeps the entry, and the handle asks.
            unreachable!("search {id} was forgotten before its handle was dropped");
        };
        if entry.may_tell(at_least, limit) {
            let was_parked = entry.queue.len() >= limit;
            let candidates = std::mem::take(&mut entry.queue).into();
            if was_parked {
                // Others' fronts have gone on since.
                self.changed();
            }
            self.queue_turn(id, false);
            effects.work = !self.turns.is_empty();
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

    /// How far a search has come.
    pub(crate) fn frontier(&self, id: SearchId) -> Option<Index> {
        Some(self.searches.get(&id)?.frontier(&self.fronts))
    }

    /// How a search comes on, while its handle is there.
    pub(crate) fn progress(&self, id: SearchId) -> Option<Progress> {
        let entry = self.searches.get(&id)?;
        Some(Progress {
            state: entry.state(self.accounts.limits().queue_length, &self.fronts),
            frontier: entry.frontier(&self.fronts),
            hashes: entry.hashes,
            tests: entry.tests(&self.fronts),
        })
    }

    pub(crate) fn usage(&self, client: &str) -> Usage {
        self.accounts.usage(client)
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let mut metrics = self.totals.clone();
        metrics.tests += metrics.in_vain;
        let limit = self.accounts.limits().queue_length;
        for entry in self
            .searches
            .values()
            .filter(|entry| entry.on_release.is_some())
        {
            metrics.tests += entry.tests(&self.fronts);
            match entry.state(limit, &self.fronts) {
                SearchState::Parked => metrics.parked += 1,
                SearchState::Queued => metrics.queued += 1,
                // Workers have yet to let go of one that has ended.
                SearchState::Running | SearchState::Ended => metrics.active += 1,
            }
        }
        metrics
    }

    fn changed(&mut self) {
        self.changes += 1;
        self.upkeep.is_due();
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Gives a search a turn if it may want one.
    fn queue_turn(&mut self, id: SearchId, new: bool) {
        let limit = self.accounts.limits().queue_length;
        if let Some(entry) = self.searches.get_mut(&id)
            && entry.goes_on(limit)
            && entry.place.is_none()
        {
            entry.place = Some(self.turns.push(&entry.client, id, new));
        }
    }

    /// The next slice for a search whose turn it is.
    fn take(&mut self, id: SearchId) -> Option<(FrontId, Range<Index>)> {
        let limit = self.accounts.limits().queue_length;
        let entry = self
            .searches
            .get_mut(&id)
            .filter(|entry| entry.goes_on(limit))?;
        let frontier = entry.frontier(&self.fronts);
        // The slice at the frontier waits for the reader alone. If it also waited for what is held
        // beyond it, the two would wait for each other.
        let at_frontier_only = entry.queue.len() + entry.held.len() >= limit;
        let mut index = 0;
        while let Some(span) = self.searches[&id].spans.get(index).copied() {
            index += 1;
            let front = match span.front {
                Some(front) => front,
                None => self.begin_front(id, index - 1),
            };
            let line = self.fronts.get_mut(&front)?;
            let start = line.front.next_start();
            if start
                .is_some_and(|start| start < span.end && (start <= frontier || !at_frontier_only))
            {
                let (end, _) = line.followers.last()?;
                if let Some(range) = line.front.take(line.length, *end) {
                    return Some((front, range));
                }
            }
            // Whatever it waits for here comes with a slice that is under way.
            line.idle.insert(id);
        }
        None
    }

    /// Makes a front for a span that has none.
    fn begin_front(&mut self, id: SearchId, span: usize) -> FrontId {
        let front = self.new_id();
        let Some(entry) = self.searches.get_mut(&id) else {
            return front;
        };
        let span = &mut entry.spans[span];
        span.front = Some(front);
        let line = Line {
            front: Front::new(span.from),
            followers: BTreeSet::from([(span.end, id)]),
            held: BTreeSet::new(),
            set: Arc::new(Set::new(vec![Arc::clone(&entry.query)], vec![id])),
            cost: entry.cost,
            at_most: usize::MAX,
            length: at_cost(FIRST_SLICE, entry.cost),
            is_tried: false,
            jobs: Vec::new(),
            idle: BTreeSet::new(),
            seen: 0,
            stop: Arc::new(AtomicBool::new(false)),
        };
        self.fronts.insert(front, Box::new(line));
        self.upkeep.is_due();
        front
    }

    fn give_out(
        &mut self,
        search: SearchId,
        front: FrontId,
        range: Range<Index>,
        now: Duration,
    ) -> Slice {
        let id = self.new_id();
        let (entry, line) = (&self.searches[&search], &self.fronts[&front]);
        // Corrected when it is known how long the slice took.
        self.turns.charge(&entry.client, SLICE_TIME, Duration::ZERO);
        let alone = line.set.len() == 1 && !entry.query.reports_candidates();
        let slice = Slice {
            id,
            range: range.clone(),
            set: Arc::clone(&line.set),
            // Alone, the first hit is the answer.
            hit_limit: if alone { 1 } else { HITS_PER_SLICE },
            stop: Arc::clone(&line.stop),
        };
        let job = InFlight {
            front,
            search,
            client: entry.client.clone(),
            range,
            set: Arc::clone(&line.set),
            began: now,
            holders: Vec::new(),
        };
        self.jobs.insert(id, job);
        if let Some(line) = self.fronts.get_mut(&front) {
            line.jobs.push(id);
        }
        slice
    }

    /// Counts what was hashed, for whom it was.
    fn count(&mut self, job: &InFlight, hashes: u64, now: Duration) {
        self.accounts
            .spend(&job.client.name, hashes, now.saturating_sub(job.began), now);
        self.totals.hashes += hashes;
        self.totals.slices += 1;
        if let Some(entry) = self.searches.get_mut(&job.search) {
            entry.hashes += hashes;
        }
    }

    /// Draws the consequences of a slice that was tried: for its front, and for whoever had hits.
    fn tried(
        &mut self,
        job: &InFlight,
        tried: Index,
        took: Duration,
        hits: Vec<Found>,
    ) -> Vec<SearchId> {
        let limit = self.accounts.limits().queue_length;
        let mut touched = Vec::new();
        for Found {
            index,
            number,
            distance,
            window,
        } in hits
        {
            let Some((id, name)) = job.set.owner(number) else {
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
            // It may have left the front, or come to it behind this.
            let wants = |span: &Span| {
                span.front == Some(job.front) && (span.from..span.end).contains(&index)
            };
            if !entry.spans.iter().any(wants) {
                continue;
            }
            // A secret may be near several of a search's names, and is told once.
            let at_ideal = entry.ideal.filter(|ideal| ideal.index == index);
            let known = at_ideal.or_else(|| entry.held.get(&index).copied());
            let is_nearest = known.is_none_or(|known| candidate.nearness() < known.nearness());
            if entry.query.is_ideal(candidate.distance) {
                if is_nearest {
                    entry.held.remove(&index);
                    entry.ideal = Some(candidate);
                    self.end_at(id, index + 1);
                }
                touched.push(id);
            } else if at_ideal.is_none() && entry.query.is_interesting(candidate.distance) {
                // One that is known may have been found by another front, which is gone.
                if is_nearest {
                    entry.held.insert(index, candidate);
                }
                let too_many = entry.held.len() > limit + HITS_PER_SLICE;
                if let Some(line) = self.fronts.get_mut(&job.front) {
                    line.held.insert((index, id));
                }
                if too_many {
                    self.fall_back(id);
                }
            }
        }
        let Some(line) = self.fronts.get_mut(&job.front) else {
            return touched;
        };
        if Arc::ptr_eq(&line.set, &job.set) {
            line.adapt(&job.range, tried, took);
        }
        let before = line.front.done();
        line.front.finish(job.range.clone(), tried);
        let done = line.front.done();
        // Those that have just come to where they leave it. A search that has not come to this span yet
        // finds out when it does.
        let arrived = line
            .followers
            .range((before, SearchId::MAX)..=(done, SearchId::MAX));
        touched.extend(arrived.map(|(_, id)| *id));
        while let Some((index, id)) = line.held.first().copied()
            && index < done
        {
            line.held.pop_first();
            touched.push(id);
        }
        touched
    }

    /// What a panic leaves: the search that was alone in the slice fails; searches that shared it go on
    /// alone, and whoever it was is found out.
    fn panicked(&mut self, job: &InFlight, now: Duration) -> Vec<SearchId> {
        let Some(line) = self.fronts.get_mut(&job.front) else {
            return Vec::new();
        };
        line.front.finish(job.range.clone(), job.range.start);
        if let [alone] = job.set.members() {
            self.hold(*alone);
            let entry = self.searches.get_mut(alone);
            if let Some(entry) = entry.filter(|entry| entry.outcome.is_none()) {
                entry.stopped.get_or_insert((now, Stop::Panicked));
            }
            return vec![*alone];
        }
        let followers: Vec<SearchId> = line.followers.iter().map(|(_, id)| *id).collect();
        for &id in &followers {
            if let Some(entry) = self.searches.get_mut(&id) {
                entry.alone_until = job.range.end;
            }
            self.detach(id);
        }
        followers
    }

    fn tell(&mut self, id: SearchId, now: Duration, why: Stop, effects: &mut Effects) {
        self.hold(id);
        if let Some(entry) = self.searches.get_mut(&id)
            && entry.outcome.is_none()
            && entry.stopped.is_none()
        {
            entry.stopped = Some((now, why));
            if let Some(place) = entry.place.take() {
                self.turns.remove(&entry.client, place);
            }
            for front in entry.spans.iter().filter_map(|span| span.front) {
                // What was given out for it alone, and may not have begun.
                if let Some(line) = self
                    .fronts
                    .get(&front)
                    .filter(|line| line.followers.len() == 1)
                {
                    line.stop.store(true, Ordering::Relaxed);
                }
            }
        }
        self.settle(id, now, effects);
    }

    /// Makes a search wait for the slices under way that serve it. One that was told to stop waits for
    /// those that were under way then, and for no others.
    fn hold(&mut self, id: SearchId) {
        let entry = self.searches.get_mut(&id);
        let Some(entry) = entry.filter(|entry| entry.stopped.is_none()) else {
            return;
        };
        for front in entry.spans.iter().filter_map(|span| span.front) {
            let Some(line) = self.fronts.get(&front) else {
                continue;
            };
            for job in &line.jobs {
                if !entry.jobs.contains(job)
                    && let Some(under_way) = self.jobs.get_mut(job)
                {
                    entry.jobs.push(*job);
                    under_way.holders.push(id);
                }
            }
        }
    }

    /// Takes a search off a front.
    fn leave(&mut self, id: SearchId, span: Span) {
        let Some(front) = span.front else { return };
        let Some(line) = self.fronts.get_mut(&front) else {
            return;
        };
        line.followers.remove(&(span.end, id));
        if line.is_mostly_gone() {
            // Its filter looks for too many that nobody looks for any more.
            line.seen = 0;
            self.upkeep.is_due();
        }
        if line.followers.is_empty() {
            line.stop.store(true, Ordering::Relaxed);
            self.fronts.remove(&front);
        }
    }

    /// Takes a search off all fronts, with what it has covered.
    fn detach(&mut self, id: SearchId) {
        self.hold(id);
        let Some(entry) = self.searches.get_mut(&id) else {
            return;
        };
        let spans = entry.spans.clone();
        for span in &mut entry.spans {
            span.from = span.progress(&self.fronts);
            span.front = None;
        }
        entry.spans.retain(|span| span.from < span.end);
        for span in spans {
            self.leave(id, span);
        }
    }

    /// Forgets what a search has covered beyond its first span, and the hits there; if that is not enough,
    /// what it has covered beyond its frontier.
    fn fall_back(&mut self, id: SearchId) {
        self.hold(id);
        let limit = self.accounts.limits().queue_length;
        let before = self.tests(id);
        let Some(entry) = self.searches.get_mut(&id) else {
            return;
        };
        let beyond = entry.spans.split_off(1);
        if let Some(first) = entry.spans.first().copied()
            && first.end < entry.end
        {
            entry.held.split_off(&first.end);
            entry.spans.push(Span {
                from: first.end,
                end: entry.end,
                front: None,
            });
        }
        let is_enough = entry.held.len() <= limit;
        for span in beyond {
            self.leave(id, span);
        }
        if !is_enough {
            self.detach(id);
            if let Some(entry) = self.searches.get_mut(&id)
                && let Some(first) = entry.spans.first()
            {
                entry.held.split_off(&first.from);
            }
        }
        self.totals.in_vain += before - self.tests(id);
    }

    fn tests(&self, id: SearchId) -> u64 {
        let entry = self.searches.get(&id);
        entry.map_or(0, |entry| entry.tests(&self.fronts))
    }

    /// Forgets everything from `end` on.
    fn end_at(&mut self, id: SearchId, end: Index) {
        self.hold(id);
        let before = self.tests(id);
        let Some(entry) = self.searches.get_mut(&id) else {
            return;
        };
        entry.end = end;
        entry.held.split_off(&end);
        let kept = entry.spans.partition_point(|span| span.from < end);
        let mut left = entry.spans.split_off(kept);
        if let Some(last) = entry.spans.last_mut()
            && end < last.end
        {
            left.push(*last);
            last.end = end;
            let line = last.front.and_then(|front| self.fronts.get_mut(&front));
            if let Some(line) = line {
                line.followers.insert((end, id));
            }
        }
        for span in left {
            self.leave(id, span);
        }
        self.totals.in_vain += before - self.tests(id);
    }

    /// Draws the consequences of whatever has just happened to a search.
    fn settle(&mut self, id: SearchId, now: Duration, effects: &mut Effects) {
        let limit = self.accounts.limits().queue_length;
        while let Some(entry) = self.searches.get_mut(&id)
            && let Some(span) = entry.spans.first().copied()
            && span.end <= span.progress(&self.fronts)
        {
            let had_most = entry.spans.len() == MAX_SPANS;
            entry.spans.remove(0);
            self.leave(id, span);
            if had_most {
                self.changed();
            }
        }
        let Some(entry) = self.searches.get_mut(&id) else {
            return;
        };
        let frontier = entry.frontier(&self.fronts);
        let is_cleared = (1..=frontier).contains(&entry.alone_until);
        if is_cleared {
            entry.alone_until = 0;
        }
        while let Some(first) = entry.held.first_entry()
            && *first.key() < frontier
        {
            entry.queue.push_back(first.remove());
        }
        if entry.outcome.is_none() {
            if let Some(outcome) = entry.conclude(frontier) {
                self.totals.ended.count(&outcome);
                entry.tested = entry.tests(&self.fronts);
                entry.outcome = Some(outcome);
                // Nothing beyond is ever told.
                entry.end = frontier;
                entry.held.clear();
                if let Some(place) = entry.place.take() {
                    self.turns.remove(&entry.client, place);
                }
                self.hold(id);
                let spans = self
                    .searches
                    .get_mut(&id)
                    .map(|entry| std::mem::take(&mut entry.spans));
                for span in spans.unwrap_or_default() {
                    self.leave(id, span);
                }
            } else if entry.queue.len() >= limit {
                self.detach(id);
            }
        }
        if is_cleared {
            self.changed();
        }
        let Some(entry) = self.searches.get_mut(&id) else {
            return;
        };
        if let Some(outcome) = &entry.outcome
            && entry.jobs.is_empty()
            && let Some(release) = entry.on_release.take()
        {
            let stopped = entry.stopped.map(|(when, _)| now.saturating_sub(when));
            if let Some(latency) = stopped {
                let bucket = latency.as_micros().max(1).next_power_of_two().ilog2() as usize;
                let last = self.totals.stop_latency.len() - 1;
                self.totals.stop_latency[bucket.min(last)] += 1;
            }
            self.totals.tests += entry.tested;
            self.accounts.close(&entry.client, entry.tested);
            let report = Report {
                outcome: outcome.clone(),
                hashes: entry.hashes,
                tests: entry.tested,
                stop_latency: stopped,
            };
            effects.released.push((release, report));
        }
        let at_least = entry.reader.as_ref().map(|(_, at_least)| *at_least);
        let tells = |at_least| entry.outcome.is_some() || entry.may_tell(at_least, limit);
        if at_least.is_some_and(tells) {
            effects
                .wake
                .extend(entry.reader.take().map(|(waker, _)| waker));
        }
    }

    fn forget(&mut self, id: SearchId) {
        if let Some(entry) = self.searches.get(&id)
            && entry.abandoned
            && entry.on_release.is_none()
        {
            self.searches.remove(&id);
        }
    }
}

impl Span {
    /// Everything from the span's beginning up to here is covered.
    fn progress(&self, fronts: &Fronts) -> Index {
        let line = self.front.and_then(|front| fronts.get(&front));
        line.map_or(self.from, |line| {
            line.front.done().clamp(self.from, self.end)
        })
    }
}

impl Line {
    /// Whether more than half of those whom its filter is for have left.
    fn is_mostly_gone(&self) -> bool {
        self.set.len() > 2 * self.followers.len()
    }

    /// Whether its slices are not tried any more.
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Sizes the next slice from how long this one took.
    fn adapt(&mut self, slice: &Range<Index>, tried: Index, took: Duration) {
        let count = tried - slice.start;
        let length = self.length;
        self.length = if tried < slice.end {
            // So dense are the hits that a longer slice only comes back sooner.
            count
        } else {
            let took = took.as_nanos().max(1);
            let wanted = u128::from(count) * SLICE_TIME.as_nanos() / took;
            // Shorter by a factor of two at a time: one slice during which the system had something
            // else to do says little. Longer at once: none can have been faster than it is.
            u64::try_from(wanted).unwrap_or(MAX_SLICE).max(length / 2)
        }
        .clamp(at_cost(MIN_SLICE, self.cost), MAX_SLICE);
    }
}

/// How many secrets at a cost take as long as so many at a fast kernel's hash each; at least one.
fn at_cost(hashes: u64, cost: f64) -> u64 {
    ((hashes as f64 / cost) as u64).clamp(1, hashes)
}

impl Entry {
    /// How often it hits, or more than can be shared.
    fn rate(&self) -> f64 {
        if self.alone_until == 0 {
            self.rate
        } else {
            f64::INFINITY
        }
    }

    fn goes_on(&self, limit: usize) -> bool {
        self.outcome.is_none() && self.stopped.is_none() && self.queue.len() < limit
    }

    fn state(&self, limit: usize, fronts: &Fronts) -> SearchState {
        let mut lines = self
            .spans
            .iter()
            .filter_map(|span| fronts.get(&span.front?));
        if self.outcome.is_some() {
            SearchState::Ended
        } else if self.queue.len() >= limit {
            SearchState::Parked
        } else if !self.jobs.is_empty() || lines.any(|line| !line.jobs.is_empty()) {
            SearchState::Running
        } else {
            SearchState::Queued
        }
    }

    fn frontier(&self, fronts: &Fronts) -> Index {
        let first = self.spans.first();
        first.map_or(self.end, |span| span.progress(fronts))
    }

    /// How many secrets were tested for it.
    fn tests(&self, fronts: &Fronts) -> u64 {
        if self.outcome.is_some() {
            return self.tested;
        }
        let left = self
            .spans
            .iter()
            .map(|span| span.end - span.progress(fronts));
        self.end - self.query.range().start - left.sum::<u64>()
    }

    fn may_tell(&self, at_least: usize, limit: usize) -> bool {
        let queued = self.queue.len();
        queued > 0 && (queued >= at_least.min(limit) || self.outcome.is_some())
    }

    /// How the search has ended, if it has.
    fn conclude(&self, frontier: Index) -> Option<Outcome> {
        let cursor = || Cursor::new(&self.query, frontier);
        if frontier >= self.end {
            let at_end = || Outcome::in_vain(&self.query, self.end);
            return Some(self.ideal.map_or_else(at_end, Outcome::Ideal));
        }
        let (_, why) = self.stopped?;
        // What the workers still bring back belongs to the frontier that the cursor tells.
        self.jobs.is_empty().then(|| match why {
            Stop::Asked => Outcome::Stopped(cursor()),
            Stop::Quota(retry_after) => Outcome::QuotaSpent {
                cursor: cursor(),
                retry_after,
            },
            Stop::Panicked => Outcome::Failed(cursor()),
        })
    }
}

#[cfg(test)]
mod tests;
