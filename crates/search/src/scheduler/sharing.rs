//! Brings searches together: finds those that could follow a scan, and lets them follow it once a
//! worker has [made their group](Build::make).
//!
//! Every few slices, a worker checks a bounded number of searches and scans, so that no other waits
//! long for the lock. When it finds searches that could follow a scan, it makes the matcher for all
//! of them outside of the lock.

use std::{ops::Bound, sync::Arc, time::Duration};

use super::{
    Job, Scheduler,
    build::{Build, Made, Member, Step},
    entry::{MAX_SEGMENTS, Segment},
};
use crate::{
    ids::{ScanId, SearchId},
    keyspace::Index,
    matcher::Matcher,
};

/// Pause after a round of bringing searches together, as a multiple of the time that the round
/// took. So this takes at most five percent of one core's time.
const PAUSE: u32 = 20;

/// Maximum number of searches or scans to check, or of searches to let follow a scan, before other
/// workers get the lock. It is small in tests, which have few searches.
const STEPS_AT_ONCE: usize = if cfg!(test) { 2 } else { 256 };

/// Estimated time to check one search or scan.
const STEP_TIME: Duration = Duration::from_nanos(200);

impl Scheduler {
    /// Finds searches that could share a scan, if that is due: a few steps at a time, whenever a
    /// worker is about to take a slice. Once the searches are found, returns the job of making
    /// their group.
    pub(crate) fn upkeep(&mut self, now: Duration) -> Option<Job> {
        if now < self.upkeep.next {
            return None;
        }
        let mut steps = STEPS_AT_ONCE;
        let step = match std::mem::take(&mut self.upkeep.step) {
            Step::Rest if self.upkeep.is_due => {
                self.upkeep.is_due = false;
                self.choose(0, None, &mut steps)
            }
            Step::Rest => return None,
            Step::Choose { after, best } => self.choose(after, best, &mut steps),
            Step::Gather { after, build } => self.gather(after, build, &mut steps),
            Step::Build => Step::Build,
        };
        self.upkeep.next = now + STEP_TIME * (STEPS_AT_ONCE - steps) as u32 * PAUSE;
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
        mut after: ScanId,
        mut best: Option<(u64, ScanId)>,
        steps: &mut usize,
    ) -> Step {
        let changes = self.changes;
        let scans = (self.scans).range((Bound::Excluded(after), Bound::Unbounded));
        for (id, scan) in scans.take(*steps) {
            *steps -= 1;
            after = *id;
            if scan.checked_at != changes {
                let weight = scan.followers.len() as u64 * (changes - scan.checked_at);
                best = best.max(Some((weight, *id)));
            }
        }
        if *steps == 0 {
            return Step::Choose { after, best };
        }
        let chosen = best.and_then(|(_, id)| Some((id, self.scans.get_mut(&id)?)));
        let Some((id, scan)) = chosen else {
            return Step::Rest;
        };
        // There may be other scans to check.
        self.upkeep.mark_due();
        scan.checked_at = changes;
        let build = Build::new(
            id,
            scan.max_newcomers,
            self.pacing.most_followers,
            scan.cost,
        );
        Step::Gather { after: 0, build }
    }

    /// Gathers the scan's followers, and the searches that could follow it.
    ///
    /// A search never starts to follow a scan while this is under way, so all followers are found.
    /// That matters: a follower that is not in the group would miss its hits.
    fn gather(&mut self, mut after: SearchId, mut build: Build, steps: &mut usize) -> Step {
        let scan = self.scans.get(&build.scan);
        let Some(scan) = scan.filter(|scan| !scan.is_stopped()) else {
            return Step::Rest;
        };
        let limit = self.accounts.limits().queue_length;
        let at = scan.ledger.next();
        // A scan that has handed out everything that its followers want does not advance.
        let advances = scan.followers.last().is_some_and(|(end, _)| at < *end);
        let searches = (self.searches).range((Bound::Excluded(after), Bound::Unbounded));
        for (id, entry) in searches.take(*steps) {
            *steps -= 1;
            after = *id;
            if entry.is_runnable(limit) {
                build.count(&entry.client);
            }
            if entry.follows(build.scan) {
                build.followers.push(Member::new(*id, entry));
            } else if advances
                && entry.could_follow(build.scan, at, limit, &self.scans)
                && scan.group.is_compatible_with(&entry.query)
            {
                build.newcomers.push(Member::new(*id, entry));
            }
        }
        if *steps == 0 {
            return Step::Gather { after, build };
        }
        build.is_stale = scan.is_mostly_gone();
        if build.newcomers.is_empty() && !build.is_stale {
            return Step::Rest;
        }
        Step::Gather {
            after: SearchId::MAX,
            build,
        }
    }

    /// Makes a scan serve the group that was made, and lets some of the group's members follow.
    /// Returns whether nothing is left to do. The lock is released between calls, so that thousands
    /// of members do not make other workers wait.
    pub(crate) fn install(&mut self, build: &mut Build, now: Duration) -> bool {
        let is_done = match &mut build.made {
            Some(made) => self.install_some(build.scan, build.newcomers.len(), made),
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

    fn install_some(&mut self, scan_id: ScanId, newcomers: usize, made: &mut Made) -> bool {
        let scan = self.scans.get_mut(&scan_id);
        let Some(scan) = scan.filter(|scan| !scan.is_stopped()) else {
            return true;
        };
        if made.installed == 0 {
            made.old = Some(scan.replace_group(Arc::clone(&made.group), made.cost, made.rate));
            if newcomers == scan.max_newcomers {
                // There may be more newcomers, and these fitted.
                scan.max_newcomers = scan.max_newcomers.saturating_mul(2);
                scan.checked_at = 0;
                self.upkeep.mark_due();
            }
        }
        let members = made.group.members();
        let some = made.installed..members.len().min(made.installed + STEPS_AT_ONCE);
        let at = scan.ledger.next();
        for &id in &members[some.clone()] {
            let entry = self.searches.get(&id);
            if !entry.is_none_or(|entry| entry.follows(scan_id)) {
                let stale = self.follow(id, scan_id, at);
                made.stale_matchers.extend(stale);
            }
        }
        made.installed = some.end;
        made.installed == members.len()
    }

    /// Handles a group that was not made: fewer newcomers are tried next time. If there was only
    /// one, the scan does not try it again for now.
    fn refuse(&mut self, build: &Build) {
        if build.newcomers.is_empty() {
            return;
        }
        if let [only] = &build.newcomers[..]
            && let Some(entry) = self.searches.get_mut(&only.id)
        {
            if entry.refused_by.len() == MAX_SEGMENTS {
                entry.refused_by.remove(0);
            }
            entry.refused_by.push(build.scan);
        }
        if let Some(scan) = self.scans.get_mut(&build.scan) {
            scan.max_newcomers = (build.newcomers.len() / 2).max(1);
            scan.checked_at = 0;
            self.upkeep.mark_due();
        }
    }

    /// Lets a search follow a scan from `at` on, if it still can. Returns the search's own matcher
    /// if the search will not start a scan, to be dropped outside of the lock.
    fn follow(&mut self, id: SearchId, scan_id: ScanId, at: Index) -> Option<Arc<Matcher>> {
        let limit = self.accounts.limits().queue_length;
        let entry = self.searches.get(&id);
        if !entry.is_some_and(|entry| entry.could_follow(scan_id, at, limit, &self.scans)) {
            return None;
        }
        self.await_slices(id);
        let entry = self.searches.get_mut(&id)?;
        let covers = |segment: &Segment| segment.progress(&self.scans) <= at && at < segment.end;
        let index = entry.segments.iter().position(covers)?;
        let lower = entry.segments[index];
        let upper = Segment {
            from: at,
            end: lower.end,
            scan: Some(scan_id),
        };
        if lower.progress(&self.scans) == at {
            entry.segments[index] = upper;
        } else {
            entry.segments[index].end = at;
            entry.segments.insert(index + 1, upper);
            let before = lower.scan.and_then(|scan| self.scans.get_mut(&scan));
            if let Some(scan) = before {
                scan.followers.insert((at, id));
            }
        }
        let needs_scan = entry.segments.iter().any(|segment| segment.scan.is_none());
        let stale = entry.matcher.take_if(|_| !needs_scan);
        if let Some(scan) = self.scans.get_mut(&scan_id) {
            scan.followers.insert((upper.end, id));
        }
        // Only after the search was entered at `at`: if no other search follows the lower scan,
        // leaving it earlier would remove it.
        self.leave(id, lower);
        self.queue_turn(id, false);
        stale
    }
}
