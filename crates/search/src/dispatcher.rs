//! Hands out slices to workers that are not threads of this process, such as other machines.

use std::{ops::Range, sync::Arc, task::Waker, time::Duration};

use hashfinder_kernels::Kernel;

use crate::{
    checkpoint::{Advance, Checkpoint},
    client::Client,
    group::Group,
    ids::{JobId, SearchId},
    keyspace::Index,
    limits::{Limits, OverLimit},
    matcher::{Found, Matcher},
    pacing::{Pacing, Worker},
    progress::{Metrics, Progress},
    query::Query,
    scheduler::{Effects, Job, Request, Resume, Scheduler},
    slice::SliceResult,
};

/// Number of a lease. No two leases of a dispatcher have the same one.
pub type LeaseId = JobId;

/// Searches whose slices are tried elsewhere: an [`Engine`](crate::Engine) without threads, locks
/// and clock.
///
/// The caller takes [leases](Self::lease) for its workers and reports what these have tried, in any
/// order. The answers are the same as those of one thread that tries one secret after another,
/// however many workers there are, however fast each is, and whatever becomes of them: a slice
/// whose worker is gone is [given back](Self::give_back), and another worker gets it.
///
/// `now` is the time since some fixed moment, on a clock that never goes back.
pub struct Dispatcher {
    scheduler: Scheduler,
    recalls: Vec<LeaseId>,
}

/// A slice for one worker, who tries its secrets for one or several searches.
#[derive(Clone)]
pub struct Lease {
    id: LeaseId,
    range: Range<Index>,
    group: Arc<Group>,
    hit_limit: usize,
    is_urgent: bool,
    planned: Duration,
}

/// A worker has reported something that is not true. Its slice counts as untried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FalseReport {
    /// It has tried what is not in its lease.
    #[error("the lease does not contain {tried}")]
    NotLeased {
        /// One past the last index that it claims to have tried.
        tried: Index,
    },
    /// An index is not a hit that the worker can have found, or not in order.
    #[error("{index} is not its next hit")]
    NotAHit {
        /// The index.
        index: Index,
    },
}

impl Lease {
    /// Returns the number of the lease.
    #[must_use]
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// Returns the secrets to try.
    #[must_use]
    pub fn range(&self) -> Range<Index> {
        self.range.clone()
    }

    /// Returns the queries whose names the worker looks for.
    pub fn queries(&self) -> impl Iterator<Item = &Query> {
        self.group.queries()
    }

    /// Returns the searches that it serves, in the order of their queries.
    #[must_use]
    pub fn searches(&self) -> &[SearchId] {
        self.group.members()
    }

    /// Returns the matcher for all of the queries. The first call for a set of queries plans its
    /// filter.
    #[must_use]
    pub fn matcher(&self) -> &Arc<Matcher> {
        self.group.matcher()
    }

    /// Returns how long it should take the worker.
    #[must_use]
    pub fn planned(&self) -> Duration {
        self.planned
    }

    /// Whether an answer waits for it, so that it is shorter than usual. The worker should have no
    /// other lease after it, and report at once.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        self.is_urgent
    }

    /// Returns after how many hits a worker stops.
    #[must_use]
    pub fn hit_limit(&self) -> usize {
        self.hit_limit
    }
}

impl Dispatcher {
    /// Creates a dispatcher without searches.
    #[must_use]
    pub fn new(limits: Limits, pacing: Pacing) -> Dispatcher {
        Dispatcher {
            scheduler: Scheduler::new(limits, pacing),
            recalls: Vec::new(),
        }
    }

    /// Begins a search, from a checkpoint or from [`Checkpoint::new`].
    ///
    /// `query` must be the one that the checkpoint belongs to. Its budget is ignored: the
    /// checkpoint has the end. Planning its filter takes microseconds for one name, and more for
    /// many.
    ///
    /// # Errors
    ///
    /// If the client or the dispatcher has reached a limit.
    pub fn begin(
        &mut self,
        client: Client,
        query: Query,
        checkpoint: Checkpoint,
        now: Duration,
    ) -> Result<SearchId, OverLimit> {
        self.scheduler.admit(&client, now)?;
        let matcher = Arc::new(query.matcher());
        let request = Request {
            rate: query.hit_rate(),
            cost: cost(&matcher),
            matcher,
            query,
            resume: Some(Resume {
                checkpoint,
                alone: false,
            }),
        };
        let release = Box::new(|_| ());
        let submitted = self
            .scheduler
            .submit(client, request, 0, Duration::ZERO, release, now);
        let (id, effects) = submitted;
        self.carry_out(effects);
        Ok(id)
    }

    /// Returns the next slice for a worker; `None` if no search has one. After another call, it may
    /// have one again.
    pub fn lease(&mut self, worker: Worker, now: Duration) -> Option<Lease> {
        let mut effects = Effects::default();
        let lease = loop {
            let job = self.scheduler.upkeep(now);
            let job = job.or_else(|| self.scheduler.next_job(worker, now, &mut effects));
            match job {
                Some(Job::Slice(slice)) => {
                    break Some(Lease {
                        planned: self.scheduler.planned(slice.id),
                        id: slice.id,
                        range: slice.range,
                        group: slice.group,
                        hit_limit: slice.hit_limit,
                        is_urgent: slice.is_urgent,
                    });
                }
                Some(Job::Build(mut build)) => {
                    build.make(cost);
                    while !self.scheduler.install(&mut build, now) {}
                }
                None if self.scheduler.has_work() => {}
                None => break None,
            }
        };
        self.carry_out(effects);
        lease
    }

    /// Returns how many clients have searches that wait for leases.
    #[must_use]
    pub fn waiting_clients(&self) -> usize {
        self.scheduler.waiting_clients()
    }

    /// Reports that a worker has tried the secrets of its lease below `tried`, in `took`, and that
    /// `hits` are the indices of the hits among them, in order.
    ///
    /// Every hit is hashed again. The lease ends; what is untried is leased again. A lease that has
    /// ended before is ignored.
    ///
    /// # Errors
    ///
    /// If the report cannot be true. Hits that are missing from it are not found by this.
    pub fn finish(
        &mut self,
        id: LeaseId,
        tried: Index,
        hits: &[Index],
        took: Duration,
        now: Duration,
    ) -> Result<(), FalseReport> {
        let Some((range, group)) = self.scheduler.leased(id) else {
            return Ok(());
        };
        let found = match check(&range, group.matcher(), tried, hits) {
            Ok(found) => found,
            Err(why) => {
                self.give_back(id, now);
                return Err(why);
            }
        };
        self.scheduler.set_began(id, now.saturating_sub(took));
        let result = SliceResult::Tried { tried, hits: found };
        let effects = self.scheduler.finish(id, result, now);
        self.carry_out(effects);
        Ok(())
    }

    /// Reports that trying a lease's secrets has panicked. The lease ends. The searches that it
    /// served are tried alone, and one that panics again ends with
    /// [`Outcome::Failed`](crate::Outcome::Failed).
    pub fn fail(&mut self, id: LeaseId, now: Duration) {
        if self.scheduler.leased(id).is_some() {
            let effects = self.scheduler.finish(id, SliceResult::Panicked, now);
            self.carry_out(effects);
        }
    }

    /// Returns the cost of trying a lease's secrets below `tried`, in hashes of a fast kernel;
    /// `None` if the lease has ended.
    #[must_use]
    pub fn hashes(&self, id: LeaseId, tried: Index) -> Option<f64> {
        let (range, group) = self.scheduler.leased(id)?;
        Some(tried.saturating_sub(range.start) as f64 * cost(group.matcher()))
    }

    /// Whether a secret is a hit for one of the searches that a lease serves; false if the lease
    /// has ended.
    #[must_use]
    pub fn is_hit(&self, id: LeaseId, index: Index) -> bool {
        let leased = self.scheduler.leased(id);
        leased.is_some_and(|(_, group)| scan_one(group.matcher(), index, &mut Vec::new()))
    }

    /// Ends a lease of which nothing was tried, as far as is known, so that another worker gets the
    /// slice. A lease that has ended before is ignored.
    pub fn give_back(&mut self, id: LeaseId, now: Duration) {
        let Some((range, _)) = self.scheduler.leased(id) else {
            return;
        };
        let result = SliceResult::Tried {
            tried: range.start,
            hits: Vec::new(),
        };
        let effects = self.scheduler.finish(id, result, now);
        self.carry_out(effects);
    }

    /// Takes the candidates of a search that are ready, and returns them with a checkpoint of the
    /// same moment. After the end, every call returns the same outcome. `None` if the search is
    /// unknown.
    ///
    /// `waker` is woken once when the queue of candidates is half full or the search has ended.
    pub fn advance(&mut self, id: SearchId, waker: &Waker) -> Option<Advance> {
        self.scheduler.progress(id)?;
        let (advance, effects) = self.scheduler.advance(id, waker.clone());
        self.carry_out(effects);
        Some(advance)
    }

    /// Returns the progress of a search; `None` if the search is unknown.
    #[must_use]
    pub fn progress(&self, id: SearchId) -> Option<Progress> {
        self.scheduler.progress(id)
    }

    /// Stops a search. It ends once the leases that serve it have ended. One that has ended keeps
    /// its outcome.
    pub fn stop(&mut self, id: SearchId, now: Duration) {
        let effects = self.scheduler.stop(id, now);
        self.carry_out(effects);
    }

    /// Stops a search, and forgets it.
    pub fn forget(&mut self, id: SearchId, now: Duration) {
        let effects = self.scheduler.abandon(id, now);
        self.carry_out(effects);
    }

    /// Recalls leases again for which answers have waited for a second, although nothing is left to
    /// lease: their workers are slow or gone. Call this ten times a second.
    pub fn tick(&mut self, now: Duration) {
        let recalls = self.scheduler.recall_again(now);
        self.recalls.extend(recalls);
    }

    /// Returns the leases whose workers should report now what they have tried, and stop: no search
    /// wants the rest any more, or an answer has to wait for it, and other workers try it sooner.
    /// Each lease is recalled at most once. A worker that does not hear of it may as well finish.
    pub fn take_recalls(&mut self) -> Vec<LeaseId> {
        std::mem::take(&mut self.recalls)
    }

    /// Whether there may be a lease for another worker.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.scheduler.has_work()
    }

    /// Returns the totals and the current state.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.scheduler.metrics()
    }

    /// Carries out what the scheduler requires, as far as it concerns this process.
    fn carry_out(&mut self, effects: Effects) {
        for (release, report) in effects.released {
            release(report);
        }
        for waker in effects.wake {
            waker.wake();
        }
        self.recalls.extend(effects.recalls);
    }
}

fn cost(matcher: &Matcher) -> f64 {
    matcher.cost(Kernel::best())
}

/// Checks what a worker has reported, and returns its hits with their distances.
fn check(
    range: &Range<Index>,
    matcher: &Matcher,
    tried: Index,
    hits: &[Index],
) -> Result<Vec<Found>, FalseReport> {
    if !(range.start..=range.end).contains(&tried) {
        return Err(FalseReport::NotLeased { tried });
    }
    let mut found = Vec::new();
    let mut next = range.start;
    for &index in hits {
        if !(next..tried).contains(&index) || !scan_one(matcher, index, &mut found) {
            return Err(FalseReport::NotAHit { index });
        }
        next = index + 1;
    }
    Ok(found)
}

/// Tries a single secret, and adds its hits. Returns whether there are any.
fn scan_one(matcher: &Matcher, index: Index, found: &mut Vec<Found>) -> bool {
    // For single secrets, the last kernel is the fastest: the others hash many side by side.
    let kernel = Kernel::all().last().unwrap_or_else(Kernel::best);
    let before = found.len();
    matcher.scan(kernel, index..index + 1, usize::MAX, found);
    found.len() > before
}
