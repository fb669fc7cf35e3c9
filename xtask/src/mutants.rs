//! `cargo xtask mutants`: plants known bugs in a copy of the sources, one at a time, and checks
//! that the tests find each.
//!
//! The bugs are those that broke earlier designs of a fleet. All are compiled into one copy, and an
//! environment variable chooses which one is active, so that the copy is built only once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::steps::{Form, cargo, output, root, skip_always, step, target};

/// A known bug.
struct Mutant {
    /// What the bug is.
    what: &'static str,
    /// Replacements that plant it: a file, the text of a part of it that occurs there once, and the
    /// text instead. The latter may contain `MUTANT`, which is true if this bug is active.
    edits: &'static [(&'static str, &'static str, &'static str)],
    /// The test that finds it: its file, or `lib`, and its name.
    test: (&'static str, &'static str),
}

const SIMULATION: (&str, &str) = ("simulation", "whatever_fails");

const AGENT: &str = "crates/fleet/src/agent.rs";
const CALLS: &str = "crates/fleet/src/calls.rs";
const ELECTION: &str = "crates/fleet/src/election.rs";
const IMAGE: &str = "crates/fleet-nats/src/operations/image.rs";
const LEADER: &str = "crates/fleet/src/leader.rs";
const REMOTE: &str = "crates/fleet/src/remote.rs";
const ROSTER: &str = "crates/fleet/src/roster.rs";
const SCHEDULER: &str = "crates/search/src/scheduler.rs";

const MUTANTS: &[Mutant] = &[
    Mutant {
        what: "a lease that was given to another agent still counts when its first agent reports it",
        edits: &[
            (
                SCHEDULER,
                "struct InFlight {",
                "#[derive(Clone)]\nstruct InFlight {",
            ),
            (
                SCHEDULER,
                "let Some(job) = self.jobs.remove(&id) else {",
                "let keeps = MUTANT && matches!(&result, SliceResult::Tried { tried, .. }
                     if self.jobs.get(&id).is_some_and(|job| job.range.start == *tried));
                 let kept = keeps.then(|| self.jobs.get(&id).cloned()).flatten();
                 let Some(job) = kept.or_else(|| self.jobs.remove(&id)) else {",
            ),
            (
                LEADER,
                "let Some(dealt) = self.roster.take(agent, report.lease) else {",
                "let taken = self.roster.take(agent, report.lease);
                 let late = Dealt {
                     planned: Duration::ZERO,
                     at: Duration::ZERO,
                     sequence: 0,
                     recalled: None,
                     start: (0, 0),
                 };
                 let Some(dealt) = taken.or(MUTANT.then_some(late)) else {",
            ),
        ],
        test: ("traces", "a_report_after_the_lease_was_taken_back"),
    },
    Mutant {
        what: "a report of an earlier term counts",
        edits: &[(
            LEADER,
            "if work.term != self.term {",
            "if work.term != self.term && !MUTANT {",
        )],
        test: ("traces", "a_report_of_an_earlier_term"),
    },
    Mutant {
        what: "what a search has covered beyond its frontier is lost with its leader",
        edits: &[(
            CALLS,
            "if checkpoint.held().count() <= MOST_HELD_SENT {",
            "if checkpoint.held().count() <= MOST_HELD_SENT && !MUTANT {",
        )],
        test: ("traces", "the_next_leader_deals_nothing_that_is_covered"),
    },
    Mutant {
        what: "the end of the budget moves when a search begins again",
        edits: &[(
            REMOTE,
            "&& update.checkpoint.end() <= self.checkpoint.end();",
            "&& (update.checkpoint.end() <= self.checkpoint.end() || MUTANT);
             let mut update = update;
             if MUTANT {
                 let rest = self.query.clone().starting_at(update.checkpoint.frontier());
                 update.checkpoint = Checkpoint::new(&rest);
             }",
        )],
        test: SIMULATION,
    },
    Mutant {
        what: "a checkpoint arrives before the candidates below it were taken",
        edits: &[(
            REMOTE,
            "&& self.ready.is_empty()",
            "&& (self.ready.is_empty() || MUTANT)",
        )],
        test: SIMULATION,
    },
    Mutant {
        what: "an old message brings back what was reported before",
        edits: &[(
            REMOTE,
            "update.from == self.from",
            "(update.from == self.from || MUTANT)",
        )],
        test: SIMULATION,
    },
    Mutant {
        what: "a leader steps down when the acknowledgement of a write is lost",
        edits: &[(
            ELECTION,
            "(Role::Leader(_) | Role::Claiming(..), None) => {",
            "(Role::Leader(_), None) if MUTANT => {
                self.follow(now);
                None
            }
            (Role::Leader(_) | Role::Claiming(..), None) => {",
        )],
        test: ("elections", ""),
    },
    Mutant {
        what: "leases with more hits than a search may hold are dealt, and then dropped",
        edits: &[(
            LEADER,
            "most_held: 8192,",
            "most_held: if MUTANT { 0 } else { 8192 },",
        )],
        test: ("traces", "no_secret_is_tried_twice"),
    },
    Mutant {
        what: "a leader that wakes up after a pause deals leases",
        edits: &[(
            ELECTION,
            "now.saturating_sub(leader.written) < DEALS_FOR",
            "now.saturating_sub(leader.written) < DEALS_FOR || MUTANT",
        )],
        test: ("elections", ""),
    },
    Mutant {
        what: "the leases of a silent agent stay with it",
        edits: &[(
            ROSTER,
            "let is_overdue = is_late || silent >= SILENT_AFTER;",
            "let is_overdue = !MUTANT && (is_late || silent >= SILENT_AFTER);",
        )],
        test: SIMULATION,
    },
    Mutant {
        what: "the leases of a reply that was lost stay with their agent",
        edits: &[(
            LEADER,
            "for lease in self.roster.take_lost(agent, &held, work.answered) {",
            "let lost = if MUTANT { 0 } else { work.answered };
             for lease in self.roster.take_lost(agent, &held, lost) {",
        )],
        test: ("traces", "leases_of_a_lost_reply"),
    },
    Mutant {
        what: "leases are dealt again although the reply with them is under way",
        edits: &[(
            LEADER,
            "for lease in self.roster.take_lost(agent, &held, lost) {",
            "let lost = if MUTANT { u64::MAX } else { lost };
             for lease in self.roster.take_lost(agent, &held, lost) {",
        )],
        test: ("traces", "an_agent_whose_replies_take_longer"),
    },
    Mutant {
        what: "an agent reports a task of an earlier term for a lease with the same number",
        edits: &[(
            AGENT,
            "let is_this = |held: &Held| held.task == tried.task;",
            "let is_this = |held: &Held| held.task == tried.task || MUTANT;",
        )],
        test: SIMULATION,
    },
    Mutant {
        what: "an agent tries a lease for the queries of an earlier term",
        edits: &[
            (
                AGENT,
                "(*term, *number) == (self.term, order.set)",
                "(*term == self.term || MUTANT) && *number == order.set",
            ),
            (
                AGENT,
                "self.sets.iter().filter(|(term, ..)| *term == self.term);",
                "self.sets.iter().filter(|(term, ..)| *term == self.term || MUTANT);",
            ),
        ],
        test: SIMULATION,
    },
    Mutant {
        what: "a leader that may not deal shows its agents",
        edits: &[(
            ELECTION,
            "let (agents, rate) = if self.may_deal(now) {",
            "let (agents, rate) = if self.may_deal(now) || MUTANT {",
        )],
        test: ("simulation", "while_the_streams_have_no_leader"),
    },
    Mutant {
        what: "progress counts for a state with other candidates",
        edits: &[(
            IMAGE,
            "progress.candidates == base.candidates && base.end.is_none()",
            "(progress.candidates == base.candidates || MUTANT) && base.end.is_none()",
        )],
        test: ("lib", "lost_and_old_values"),
    },
    Mutant {
        what: "a restored value of the leader itself is not noticed",
        edits: &[(
            IMAGE,
            "before.nonce < self.nonce;",
            "before.nonce < self.nonce || MUTANT;",
        )],
        test: ("lib", "foreign_writes_are_noticed"),
    },
    Mutant {
        what: "an agent has 250 ms to answer a recall, however slow its messages are",
        edits: &[(
            ROSTER,
            "member.answers_within = (answers_within * 2).min(SILENT_AFTER);",
            "if !MUTANT {
                 member.answers_within = (answers_within * 2).min(SILENT_AFTER);
             }",
        )],
        test: SIMULATION,
    },
    Mutant {
        what: "the panic of one agent ends a search",
        edits: &[(
            LEADER,
            "&& self.is_confirmed(before, agent)",
            "&& (self.is_confirmed(before, agent) || MUTANT)",
        )],
        test: ("traces", "a_search_that_makes_two_agents_panic"),
    },
];

/// Added to each crate that has a bug.
const SWITCH: &str = r#"
pub(crate) fn mutant(number: usize) -> bool {
    static ACTIVE: std::sync::OnceLock<Option<usize>> = std::sync::OnceLock::new();
    let active = ACTIVE.get_or_init(|| std::env::var("MUTANT").ok()?.parse().ok());
    *active == Some(number)
}
"#;

/// Plants every bug, and checks that a test finds it. The short form checks only that each bug can
/// still be planted: to compile the copy takes minutes.
///
/// # Errors
///
/// If a test does not find its bug, or the text that a bug replaces is not there any more.
pub(crate) fn run(form: Form) -> Result<()> {
    if let Form::Short = form {
        planted()?;
        skip_always(
            "tests that find known bugs",
            "`cargo xtask mutants` takes minutes",
        );
        return Ok(());
    }
    let copy = target().join("mutants");
    write_copy(&copy)?;
    // The whole workspace, so that it shares compiled dependencies with the tests.
    let test = |arguments: &str| {
        let mut test = cargo("test --workspace --quiet");
        test.arg("--manifest-path")
            .arg(copy.join("Cargo.toml"))
            .args(arguments.split_whitespace())
            .env("CARGO_TARGET_DIR", target());
        test
    };
    // Without an active bug, the tests pass.
    let mut baseline =
        test("--test elections --test simulation --test traces -- in_parallel counts");
    step("a copy with known bugs", &mut baseline)?;
    for (number, mutant) in MUTANTS.iter().enumerate() {
        let (file, name) = mutant.test;
        let mut test = test(&match file {
            "lib" => format!("--lib {name}"),
            file => format!("--test {file} {name}"),
        });
        let run = test.env("MUTANT", number.to_string()).output()?;
        let printed = String::from_utf8_lossy(&run.stdout);
        ensure!(
            !run.status.success() && printed.contains("test result: FAILED"),
            "{file} {name} does not find this bug: {}\n{printed}{}",
            mutant.what,
            String::from_utf8_lossy(&run.stderr)
        );
        println!("found: {}", mutant.what);
    }
    Ok(())
}

/// Writes the copy. Files that have not changed since the last time are left alone, so that they
/// are not compiled again.
fn write_copy(copy: &Path) -> Result<()> {
    let listed = output(Command::new("git").args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let mut planted = planted()?;
    for name in listed.lines() {
        let text = match planted.remove(name) {
            Some(text) => text.into_bytes(),
            None => match fs::read(root().join(name)) {
                Ok(text) => text,
                // Deleted, but not yet in git.
                Err(_) => continue,
            },
        };
        let file = copy.join(name);
        if fs::read(&file).is_ok_and(|before| before == text) {
            continue;
        }
        fs::create_dir_all(file.parent().unwrap_or(copy))?;
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Returns the files with bugs, by name.
fn planted() -> Result<BTreeMap<String, String>> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for (number, mutant) in MUTANTS.iter().enumerate() {
        for (name, old, new) in mutant.edits {
            let text = match files.remove(*name) {
                Some(text) => text,
                None => fs::read_to_string(root().join(name))?,
            };
            ensure!(
                text.matches(old).count() == 1,
                "the bug {:?} replaces {old:?}, which has to occur once in {name}",
                mutant.what
            );
            let new = new.replace("MUTANT", &format!("crate::mutant({number})"));
            files.insert((*name).to_owned(), text.replacen(old, &new, 1));
        }
    }
    let crates = files.keys().filter_map(|name| name.split_once("/src/"));
    let crates: BTreeSet<String> = crates
        .map(|(name, _)| format!("{name}/src/lib.rs"))
        .collect();
    for name in crates {
        let text = fs::read_to_string(root().join(&name))?;
        files.insert(name, text + SWITCH);
    }
    Ok(files)
}
