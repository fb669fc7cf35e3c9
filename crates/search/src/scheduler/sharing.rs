//! Bringing searches together: which could follow which front, and whether that would do all of them
//! good.
//!
//! Every few slices some searches and fronts are looked at, a bounded number at a time, so that nobody
//! waits long for the lock. When a front was found that others could follow, a worker makes the filter
//! for all of them outside of the lock, and with it sees what that costs.
//!
//! A set is as slow as its filter, so searches that cost a lot can make each other slower than they would
//! be with their own turns alone. Two rules keep that from happening, by what the kernel says a filter
//! costs and by what share of the time each search has. Sharing must not make any of them slower than it
//! would be alone, and newcomers must not make those slower who are there: the cost may grow as much as
//! the time that all their turns give. If that does not hold, half as many newcomers are tried, those that hit most seldom
//! first; so whoever does not fit is left out in the end.

use std::{collections::HashMap, ops::Bound};

use hashfinder_kernels::MAX_NAMES;

use super::*;
use crate::matcher::Sought;

/// How many searches a front may serve. Sixteen thousand names are looked for at a tenth of one name's
/// speed; with more, a second front is as good.
const MAX_FOLLOWERS: usize = 1 << 14;

/// How many hits a hash may have on average for all that share it: half of what ends a slice of 2^16
/// secrets early. A search that alone has more shares with nobody.
const MAX_SHARED_RATE: f64 = 1.0 / 512.0;

/// How many of a fast kernel's hashes a secret may cost a set. With more, a slice would hold so few of them
/// that what each slice costs to be given out would show.
const MAX_SHARED_COST: f64 = 1000.0;

/// By how much sharing may make a search slower after all. Costs are estimates.
const TOLERANCE: f64 = 1.2;

/// How many times as long as it takes to bring a front and its followers together nothing of the kind
/// happens again: five percent of one core's time go there at most.
const PAUSE: u32 = 20;

/// How many searches or fronts are looked at, or come to follow a front, before others have the lock. Few
/// in tests, where there are few.
const AT_ONCE: usize = if cfg!(test) { 2 } else { 256 };

/// What looking at one search or front takes, to see whether the one could follow the other.
const LOOK: Duration = Duration::from_nanos(200);

/// How far it has come with that.
#[derive(Default)]
pub(super) struct Upkeep {
    step: Step,
    /// Nothing is done before.
    next: Duration,
    /// Whether there is a front for which something may have changed.
    is_due: bool,
}

#[derive(Default)]
enum Step {
    #[default]
    Rest,
    /// Looking for the front that serves most, of those that something may have changed for; but whoever
    /// has waited for long comes first in the end.
    Choose {
        after: FrontId,
        best: Option<(u64, FrontId)>,
    },
    /// Looking who could follow it.
    Gather { after: SearchId, build: Build },
    /// A worker has the rest to do.
    Build,
}

impl Upkeep {
    pub(super) fn is_due(&mut self) {
        self.is_due = true;
    }
}

/// Searches that may be going to share a front.
pub(crate) struct Build {
    front: FrontId,
    /// Those that share it already.
    followers: Vec<Member>,
    /// Those that could.
    newcomers: Vec<Member>,
    /// How many of them are tried.
    at_most: usize,
    /// What the front's slices cost now.
    cost: f64,
    /// How many searches want turns, of each connection of each client.
    crowd: HashMap<Arc<str>, HashMap<u64, u32>>,
    /// Whether its filter looks for many that have left.
    is_stale: bool,
    /// When a worker began to make it.
    began: Duration,
    /// What came of it.
    made: Option<Made>,
}

struct Member {
    id: SearchId,
    query: Arc<Query>,
    rate: f64,
    cost: f64,
    client: Client,
}

struct Made {
    set: Arc<Set>,
    /// What the front served before.
    old: Option<Arc<Set>>,
    cost: f64,
    /// How many of its searches may follow already.
    installed: usize,
}

impl Build {
    /// Makes the set and its filter, and finds out whether they do everybody good. It takes microseconds
    /// for a few searches and tens of milliseconds for thousands, so it is done outside of the lock.
    /// `cost_of` tells what a secret costs, in a fast kernel's hashes.
    pub(crate) fn make(&mut self, cost_of: impl Fn(&Sought) -> f64) {
        let by_rate = |a: &Member, b: &Member| a.rate.total_cmp(&b.rate).then(a.id.cmp(&b.id));
        self.newcomers.sort_by(by_rate);
        let mut rate: f64 = self.followers.iter().map(|member| member.rate).sum();
        let room = MAX_FOLLOWERS.saturating_sub(self.followers.len());
        let fitting = self.newcomers.iter().take(room.min(self.at_most));
        let followers = self.followers.iter();
        let mut names: usize = followers.map(|member| member.query.names().len()).sum();
        let fitting = fitting.take_while(|member| {
            rate += member.rate;
            names += member.query.names().len();
            rate <= MAX_SHARED_RATE && names <= MAX_NAMES
        });
        let fitting = fitting.count();
        self.newcomers.truncate(fitting);
        if self.newcomers.is_empty() && !self.is_stale {
            return;
        }

        let members = || self.followers.iter().chain(&self.newcomers);
        let set = Set::new(
            members().map(|member| Arc::clone(&member.query)).collect(),
            members().map(|member| member.id).collect(),
        );
        let cost = cost_of(set.sought());
        if self.newcomers.is_empty() || self.is_good_for_all(cost) {
            self.made = Some(Made {
                set: Arc::new(set),
                old: None,
                cost,
                installed: 0,
            });
        }
    }

    #[cfg(test)]
    pub(crate) fn members(&self) -> impl Iterator<Item = SearchId> {
        let members = self.followers.iter().chain(&self.newcomers);
        members.map(|member| member.id)
    }

    /// Whether none of them would come on more slowly than alone, and none of those that share already more
    /// slowly than they do.
    fn is_good_for_all(&self, cost: f64) -> bool {
        let all = || self.followers.iter().chain(&self.newcomers);
        let shares = |members: &[Member]| members.iter().map(|member| self.share(member)).sum();
        let before: f64 = shares(&self.followers);
        let after = before + shares(&self.newcomers);
        // Alone, a search has its own share of the time, and pays its own cost.
        let is_good_for =
            |member: &Member| cost * self.share(member) <= TOLERANCE * member.cost * after;
        cost <= MAX_SHARED_COST
            && cost * before <= TOLERANCE * self.cost * after
            && all().all(is_good_for)
    }

    /// A search's share of the time, in units that are the same for all: its client's weight, which is
    /// divided evenly between connections, and within these between searches.
    fn share(&self, member: &Member) -> f64 {
        let client = &member.client;
        let connections = self.crowd.get(&client.name);
        let searches = connections.and_then(|all| all.get(&client.connection));
        // One that wants no turn now will want one again.
        let (connections, searches) = (connections.map_or(1, HashMap::len), searches.unwrap_or(&1));
        f64::from(client.weight.get()) / connections as f64 / f64::from(*searches)
    }
}

impl Scheduler {
    /// Looks for searches that could go together, if that is due: a little at a time, whenever a worker is
    /// about to take a slice. What is found is for that worker to make.
    pub(crate) fn upkeep(&mut self, now: Duration) -> Option<Job> {
        if now < self.upkeep.next {
            return None;
        }
        let mut looks = AT_ONCE;
        let step = match std::mem::take(&mut self.upkeep.step) {
            Step::Rest if self.upkeep.is_due => {
                self.upkeep.is_due = false;
                self.choose(0, None, &mut looks)
            }
            Step::Rest => return None,
            Step::Choose { after, best } => self.choose(after, best, &mut looks),
            Step::Gather { after, build } => self.gather(after, build, &mut looks),
            Step::Build => Step::Build,
        };
        self.upkeep.next = now + LOOK * (AT_ONCE - looks) as u32 * PAUSE;
        match step {
            Step::Gather { mut build, after } if after == SearchId::MAX => {
                self.upkeep.step = Step::Build;
                build.began = now;
                Some(Job::Build(build))
            }
            step => {
                self.upkeep.step = step;
                None
            }
        }
    }

    fn choose(
        &mut self,
        mut after: FrontId,
        mut best: Option<(u64, FrontId)>,
        looks: &mut usize,
    ) -> Step {
        let changes = self.changes;
        let fronts = (self.fronts).range((Bound::Excluded(after), Bound::Unbounded));
        for (id, line) in fronts.take(*looks) {
            *looks -= 1;
            after = *id;
            if line.seen != changes {
                let weight = line.followers.len() as u64 * (changes - line.seen);
                best = best.max(Some((weight, *id)));
            }
        }
        if *looks == 0 {
            return Step::Choose { after, best };
        }
        let front = best.and_then(|(_, id)| Some((id, self.fronts.get_mut(&id)?)));
        let Some((id, line)) = front else {
            return Step::Rest;
        };
        // There may be others.
        self.upkeep.is_due = true;
        line.seen = changes;
        let build = Build {
            front: id,
            followers: Vec::new(),
            newcomers: Vec::new(),
            at_most: line.at_most,
            cost: line.cost,
            crowd: HashMap::new(),
            is_stale: false,
            began: Duration::ZERO,
            made: None,
        };
        Step::Gather { after: 0, build }
    }

    /// Whoever follows the front while this goes on followed it when it began, and is found. That is what
    /// matters: a search that was left out would never hear of its hits.
    fn gather(&mut self, mut after: SearchId, mut build: Build, looks: &mut usize) -> Step {
        let Some(line) = self
            .fronts
            .get(&build.front)
            .filter(|line| !line.is_stopped())
        else {
            return Step::Rest;
        };
        let limit = self.accounts.limits().queue_length;
        let at = line.front.next();
        // A front that has given out all that anybody wants goes nowhere.
        let goes_on = line.followers.last().is_some_and(|(end, _)| at < *end);
        let searches = (self.searches).range((Bound::Excluded(after), Bound::Unbounded));
        for (id, entry) in searches.take(*looks) {
            *looks -= 1;
            after = *id;
            if entry.goes_on(limit) {
                let client = &entry.client;
                if !build.crowd.contains_key(&client.name) {
                    build.crowd.insert(Arc::clone(&client.name), HashMap::new());
                }
                if let Some(connections) = build.crowd.get_mut(&client.name) {
                    *connections.entry(client.connection).or_default() += 1;
                }
            }
            let follows = entry.follows(build.front);
            let could = || {
                goes_on
                    && entry.could_follow(build.front, at, limit, &self.fronts)
                    && line.set.goes_with(&entry.query)
            };
            if !(follows || could()) {
                continue;
            }
            let member = Member {
                id: *id,
                query: Arc::clone(&entry.query),
                rate: entry.rate(),
                cost: entry.cost,
                client: entry.client.clone(),
            };
            if follows {
                build.followers.push(member);
            } else {
                build.newcomers.push(member);
            }
        }
        if *looks == 0 {
            return Step::Gather { after, build };
        }
        build.is_stale = line.is_mostly_gone();
        if build.newcomers.is_empty() && !build.is_stale {
            return Step::Rest;
        }
        Step::Gather {
            after: SearchId::MAX,
            build,
        }
    }

    /// Lets a front serve the set that was made, and some of its searches follow; tells whether that were
    /// all. Others wait for the lock, so that thousands are not brought there at once.
    pub(crate) fn install(&mut self, build: &mut Build, now: Duration) -> bool {
        let is_done = match &mut build.made {
            Some(made) => self.install_some(build.front, build.newcomers.len(), made),
            None => {
                self.refuse(build);
                true
            }
        };
        if is_done {
            self.upkeep.step = Step::Rest;
            self.upkeep.next = now + now.saturating_sub(build.began) * PAUSE;
        }
        is_done
    }

    fn install_some(&mut self, front: FrontId, newcomers: usize, made: &mut Made) -> bool {
        let Some(line) = self
            .fronts
            .get_mut(&front)
            .filter(|line| !line.is_stopped())
        else {
            return true;
        };
        if made.installed == 0 {
            // Until its speed is known: a larger filter is slower, and a slice must not be longer.
            let growth = (made.cost / line.cost).max(1.0);
            line.length = at_cost(line.length, growth);
            // The old one is dropped where nobody waits for the lock.
            made.old = Some(std::mem::replace(&mut line.set, Arc::clone(&made.set)));
            line.cost = made.cost;
            if newcomers == line.at_most {
                // There may be more, and these went well.
                line.at_most = line.at_most.saturating_mul(2);
                line.seen = 0;
                self.upkeep.is_due = true;
            }
        }
        let members = made.set.members();
        let some = made.installed..members.len().min(made.installed + AT_ONCE);
        let at = line.front.next();
        for &id in &members[some.clone()] {
            let entry = self.searches.get(&id);
            if !entry.is_none_or(|entry| entry.follows(front)) {
                self.follow(id, front, at);
            }
        }
        made.installed = some.end;
        made.installed == members.len()
    }

    /// Tries fewer next time; and leaves out whoever was the only one.
    fn refuse(&mut self, build: &Build) {
        if build.newcomers.is_empty() {
            return;
        }
        if let [one] = &build.newcomers[..]
            && let Some(entry) = self.searches.get_mut(&one.id)
        {
            if entry.refused_by.len() == MAX_SPANS {
                entry.refused_by.remove(0);
            }
            entry.refused_by.push(build.front);
        }
        if let Some(line) = self.fronts.get_mut(&build.front) {
            line.at_most = (build.newcomers.len() / 2).max(1);
            line.seen = 0;
            self.upkeep.is_due = true;
        }
    }

    /// Lets a search follow a front from `at` on, if it still can.
    fn follow(&mut self, id: SearchId, front: FrontId, at: Index) {
        let limit = self.accounts.limits().queue_length;
        let entry = self.searches.get(&id);
        if !entry.is_some_and(|entry| entry.could_follow(front, at, limit, &self.fronts)) {
            return;
        }
        self.hold(id);
        let Some(entry) = self.searches.get_mut(&id) else {
            return;
        };
        let covers = |span: &Span| span.progress(&self.fronts) <= at && at < span.end;
        let Some(index) = entry.spans.iter().position(covers) else {
            return;
        };
        let lower = entry.spans[index];
        let upper = Span {
            from: at,
            end: lower.end,
            front: Some(front),
        };
        if lower.progress(&self.fronts) == at {
            entry.spans[index] = upper;
        } else {
            entry.spans[index].end = at;
            entry.spans.insert(index + 1, upper);
            let before = lower.front.and_then(|front| self.fronts.get_mut(&front));
            if let Some(line) = before {
                line.followers.insert((at, id));
            }
        }
        if let Some(line) = self.fronts.get_mut(&front) {
            line.followers.insert((upper.end, id));
        }
        // After it has its new place, so that a front that it was alone on does not go.
        self.leave(id, lower);
        self.queue_turn(id, false);
    }
}

impl Entry {
    fn follows(&self, front: FrontId) -> bool {
        self.spans.iter().any(|span| span.front == Some(front))
    }

    /// Whether a front whose next slice is at `at` could cover something for it.
    fn could_follow(&self, front: FrontId, at: Index, limit: usize, fronts: &Fronts) -> bool {
        self.goes_on(limit)
            && self.rate() <= MAX_SHARED_RATE
            && !self.refused_by.contains(&front)
            && self.spans.len() < MAX_SPANS
            && !self.follows(front)
            && (self.spans.iter()).any(|span| span.progress(fronts) <= at && at < span.end)
    }
}
