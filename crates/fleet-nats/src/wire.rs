//! The messages of the fleet, in bytes and back.

use std::{fmt::Display, num::NonZeroU32, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use hashfinder_fleet::{
    self as fleet, Beat, CallId, CallRenewal, CallUpdate, Claim, NewSet, Order, Orders, Report,
    Term, WireIndex, Work, narrow, widen,
};
use hashfinder_proto::fleet::v1 as pb;
use hashfinder_search::{
    Checkpoint, Client, Cursor, Index, Outcome, OverLimit, Query, Quota, SearchState,
};
use prost::Message;

/// The latest version of the protocol that this program speaks.
pub(crate) const PROTOCOL: u32 = 2;

/// The earliest one. In version 1, the subjects of agents did not contain their user.
pub(crate) const OLDEST_PROTOCOL: u32 = 2;

/// What an agent of this version can do beyond the protocol: it reads queries in all forms of a
/// cursor up to `hf4_`.
pub(crate) const FEATURES: [&str; 1] = ["cursor-4"];

/// What every search needs of these.
const NEEDED: [&str; 1] = ["cursor-4"];

/// Maximum number of a term. Larger ones are read as this one: the leader after the one with the
/// largest possible number could not have a higher one.
const HIGHEST_TERM: u64 = u64::MAX >> 1;

/// Maximum duration in a message, in seconds. Sums of a few can be computed.
const LONGEST_S: u64 = 1 << 32;

/// Maximum number of agents in a status, and of bytes of their names and versions: with more, it
/// would not fit into a message.
const MOST_LISTED: usize = 4096;
const MOST_LISTED_BYTES: usize = 512 << 10;

/// A message that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message of a fleet: {0}")]
pub(crate) struct Invalid(String);

pub(crate) fn invalid(what: impl Display) -> Invalid {
    Invalid(what.to_string())
}

fn missing(field: &str) -> Invalid {
    Invalid(format!("it has no {field}"))
}

pub(crate) fn encode(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

pub(crate) fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, Invalid> {
    M::decode(bytes).map_err(invalid)
}

pub(crate) fn index(index: Index) -> pb::Index {
    let wide: WireIndex = widen(index);
    pb::Index {
        low: wide as u64,
        high: (wide >> 64) as u64,
    }
}

pub(crate) fn read_index(index: pb::Index) -> Result<Index, Invalid> {
    let wide = WireIndex::from(index.high) << 64 | WireIndex::from(index.low);
    narrow(wide).map_err(invalid)
}

pub(crate) fn read_indices(indices: &[pb::Index]) -> Result<Vec<Index>, Invalid> {
    indices.iter().map(|index| read_index(*index)).collect()
}

fn range(range: &Range<Index>) -> pb::Range {
    pb::Range {
        start: Some(index(range.start)),
        end: Some(index(range.end)),
    }
}

fn read_range(range: Option<pb::Range>) -> Result<Range<Index>, Invalid> {
    let range = range.ok_or_else(|| missing("range"))?;
    let start = read_index(range.start.unwrap_or_default())?;
    let end = read_index(range.end.unwrap_or_default())?;
    if start > end {
        return Err(invalid("a range ends before it begins"));
    }
    Ok(start..end)
}

pub(crate) fn duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

pub(crate) fn read_duration(duration: Option<prost_types::Duration>) -> Result<Duration, Invalid> {
    let duration = duration.unwrap_or_default();
    let seconds = u64::try_from(duration.seconds).ok();
    let seconds = seconds.filter(|seconds| *seconds <= LONGEST_S);
    let nanos = u32::try_from(duration.nanos).ok();
    let nanos = nanos.filter(|nanos| *nanos < 1_000_000_000);
    match (seconds, nanos) {
        (Some(seconds), Some(nanos)) => Ok(Duration::new(seconds, nanos)),
        _ => Err(invalid("a duration is negative or too long")),
    }
}

pub(crate) fn term(term: Term) -> pb::Term {
    pb::Term {
        number: term.number,
        nonce: term.nonce,
    }
}

pub(crate) fn read_term(term: Option<pb::Term>) -> Term {
    let term = term.unwrap_or_default();
    Term {
        number: term.number.min(HIGHEST_TERM),
        nonce: term.nonce,
    }
}

pub(crate) fn claim(claim: &Claim) -> pb::Claim {
    pb::Claim {
        term: Some(term(claim.term)),
        server: claim.server.to_string(),
    }
}

pub(crate) fn read_claim(claim: pb::Claim) -> Claim {
    Claim {
        term: read_term(claim.term),
        server: claim.server.into(),
    }
}

pub(crate) fn beat(beat: &Beat) -> pb::Beat {
    pb::Beat {
        term: Some(term(beat.term)),
        server: beat.server.to_string(),
        resigns: beat.resigns,
        agents: beat.agents,
        rate: beat.rate,
    }
}

pub(crate) fn read_beat(beat: pb::Beat) -> Beat {
    Beat {
        term: read_term(beat.term),
        server: beat.server.into(),
        resigns: beat.resigns,
        agents: beat.agents,
        rate: beat.rate,
    }
}

pub(crate) fn work(work: &Work) -> pb::Work {
    pb::Work {
        protocol: PROTOCOL,
        agent: work.agent.to_string(),
        sequence: work.sequence,
        answered: work.answered,
        term: Some(term(work.term)),
        rate: work.rate,
        is_draining: work.is_draining,
        holds: work.holds.clone(),
        reports: work.reports.iter().map(report).collect(),
        knows: work.knows.clone(),
        version: work.version.to_string(),
        oldest_protocol: OLDEST_PROTOCOL,
        features: FEATURES.map(str::to_owned).into(),
    }
}

fn report(report: &Report) -> pb::Report {
    pb::Report {
        lease: report.lease,
        tried: Some(index(report.tried)),
        hits: report.hits.iter().copied().map(index).collect(),
        took: duration(report.took),
        failed: report.failed,
    }
}

/// Reads a message of an agent.
pub(crate) fn read_work(work: pb::Work) -> Result<Work, Invalid> {
    let reports = work.reports.into_iter().map(|report| {
        Ok(Report {
            lease: report.lease,
            tried: read_index(report.tried.unwrap_or_default())?,
            hits: read_indices(&report.hits)?,
            took: read_duration(report.took)?,
            failed: report.failed,
        })
    });
    Ok(Work {
        agent: work.agent.into(),
        sequence: work.sequence,
        answered: work.answered,
        term: read_term(work.term),
        rate: work.rate,
        version: work.version.into(),
        is_draining: work.is_draining,
        holds: work.holds,
        reports: reports.collect::<Result<_, _>>()?,
        knows: work.knows,
    })
}

/// Writes the reply to an agent.
pub(crate) fn orders(orders: &Orders) -> pb::Orders {
    let sets = orders.sets.iter().map(|set| pb::QuerySet {
        id: set.number,
        queries: set.queries.iter().map(query).collect(),
        ending: u32::try_from(set.ending).unwrap_or(u32::MAX),
    });
    let leases = orders.leases.iter().map(|order| pb::Lease {
        id: order.lease,
        range: Some(range(&order.range)),
        set: order.set,
        hit_limit: order.hit_limit as u64,
        planned: duration(order.planned),
    });
    pb::Orders {
        term: Some(term(orders.term)),
        leases: leases.collect(),
        recalls: orders.recalls.clone(),
        over: orders.over.clone(),
        sets: sets.collect(),
        rejected: String::new(),
        ends: orders.ends,
    }
}

/// Returns why an agent gets no leases, if its version and the leader's do not fit together.
pub(crate) fn unfit(work: &pb::Work) -> Option<String> {
    let newest = work.protocol;
    let oldest = match work.oldest_protocol {
        0 => newest,
        oldest => oldest,
    };
    let versions = |oldest, newest| {
        if oldest == newest {
            format!("version {newest}")
        } else {
            format!("versions {oldest} to {newest}")
        }
    };
    let differ = |update: &str| {
        let (its, ours) = (
            versions(oldest, newest),
            versions(OLDEST_PROTOCOL, PROTOCOL),
        );
        let text = format!(
            "this agent speaks {its} of the fleet's protocol, and the leader {ours}; update \
             hashfinder on {update}"
        );
        Some(text)
    };
    if newest < OLDEST_PROTOCOL {
        return differ("this machine");
    }
    if oldest > PROTOCOL {
        return differ("the servers");
    }
    let lacks = |feature: &&&str| !work.features.iter().any(|has| has == **feature);
    let lacking = NEEDED.iter().find(lacks)?;
    Some(format!(
        "this agent lacks the feature {lacking}; update hashfinder on this machine"
    ))
}

/// Writes that an agent gets no leases.
pub(crate) fn rejected(in_term: Term, why: String) -> pb::Orders {
    pb::Orders {
        term: Some(term(in_term)),
        rejected: why,
        ..pb::Orders::default()
    }
}

/// Reads the reply to an agent.
pub(crate) fn read_orders(orders: pb::Orders) -> Result<Orders, Invalid> {
    let leases = orders.leases.iter().map(|lease| {
        Ok(Order {
            lease: lease.id,
            range: read_range(lease.range)?,
            set: lease.set,
            hit_limit: usize::try_from(lease.hit_limit).unwrap_or(usize::MAX),
            planned: read_duration(lease.planned)?,
        })
    });
    let leases = leases.collect::<Result<_, _>>()?;
    let sets = orders.sets.iter().map(|set| {
        let queries = set.queries.iter().map(|text| read_query(text));
        Ok(NewSet {
            number: set.id,
            queries: queries.collect::<Result<_, _>>()?,
            ending: set.ending as usize,
        })
    });
    Ok(Orders {
        term: read_term(orders.term),
        leases,
        recalls: orders.recalls,
        over: orders.over,
        sets: sets.collect::<Result<_, _>>()?,
        ends: orders.ends,
    })
}

/// Writes a query without its start and its budget.
fn query(query: &Query) -> String {
    Cursor::new(query, 0).to_string()
}

fn read_query(text: &str) -> Result<Query, Invalid> {
    let cursor: Cursor = text.parse().map_err(invalid)?;
    Ok(cursor.query())
}

pub(crate) fn renewal(renewal: &CallRenewal, known: Term) -> pb::CallRenewal {
    let client = &renewal.client;
    let rate = client.quota.hashes_per_second;
    pb::CallRenewal {
        call: renewal.call.to_string(),
        server: renewal.server.to_string(),
        client: Some(pb::Client {
            name: client.name.to_string(),
            weight: client.weight.get(),
            hashes_per_second: rate.map_or(0, std::num::NonZeroU64::get),
        }),
        query: Cursor::new(&renewal.query, renewal.query.start()).to_string(),
        checkpoint: Some(checkpoint(&renewal.checkpoint)),
        from: Some(index(renewal.from)),
        term: Some(term(known)),
        stops: renewal.stops,
    }
}

/// Reads a message of a server, and the term that it knows of.
pub(crate) fn read_renewal(renewal: pb::CallRenewal) -> Result<(CallRenewal, Term), Invalid> {
    let query = read_query(&renewal.query)?;
    let client = renewal.client.ok_or_else(|| missing("client"))?;
    let checkpoint = renewal.checkpoint.ok_or_else(|| missing("checkpoint"))?;
    let known = read_term(renewal.term);
    let message = CallRenewal {
        call: renewal.call.into(),
        server: renewal.server.into(),
        client: Client {
            name: client.name.into(),
            connection: 0,
            weight: NonZeroU32::new(client.weight).unwrap_or(NonZeroU32::MIN),
            quota: Quota {
                searches: None,
                hashes_per_second: client.hashes_per_second.try_into().ok(),
            },
        },
        checkpoint: read_checkpoint(&query, &checkpoint)?,
        query,
        from: read_index(renewal.from.unwrap_or_default())?,
        stops: renewal.stops,
    };
    Ok((message, known))
}

pub(crate) fn checkpoint(checkpoint: &Checkpoint) -> pb::Checkpoint {
    pb::Checkpoint {
        to_cover: checkpoint.to_cover().iter().map(range).collect(),
        held: checkpoint.held().map(index).collect(),
        end: Some(index(checkpoint.end())),
    }
}

pub(crate) fn read_checkpoint(
    query: &Query,
    checkpoint: &pb::Checkpoint,
) -> Result<Checkpoint, Invalid> {
    let to_cover = checkpoint
        .to_cover
        .iter()
        .map(|range| read_range(Some(*range)));
    let to_cover = to_cover.collect::<Result<Vec<_>, _>>()?;
    let held = read_indices(&checkpoint.held)?;
    let end = read_index(checkpoint.end.unwrap_or_default())?;
    Checkpoint::restore(query, to_cover, &held, end).map_err(invalid)
}

/// What a leader answers about a call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    Update(CallUpdate),
    /// The fleet has reached a limit: the server searches itself.
    Full,
}

/// Returns the answer about a call that cannot begin.
pub(crate) fn over_limit(renewal: &CallRenewal, over: OverLimit) -> Answer {
    let OverLimit::Hashes { retry_after, .. } = over else {
        return Answer::Full;
    };
    let checkpoint = renewal.checkpoint.clone();
    Answer::Update(CallUpdate {
        from: renewal.from,
        candidates: Vec::new(),
        outcome: Some(Outcome::QuotaSpent {
            cursor: Cursor::new(&renewal.query, checkpoint.frontier()),
            retry_after,
        }),
        checkpoint,
        state: SearchState::Ended,
    })
}

/// Writes a leader's answer about a call.
pub(crate) fn answer(call: &CallId, in_term: Term, answer: &Answer) -> pb::CallUpdate {
    use pb::call_update::Outcome as Ended;
    let message = pb::CallUpdate {
        call: call.to_string(),
        term: Some(term(in_term)),
        ..pb::CallUpdate::default()
    };
    let Answer::Update(update) = answer else {
        return pb::CallUpdate {
            outcome: Some(Ended::Full(true)),
            ..message
        };
    };
    let outcome = update.outcome.as_ref().map(|outcome| match outcome {
        Outcome::Ideal(found) => Ended::Ideal(index(found.index)),
        Outcome::Exhausted | Outcome::BudgetSpent(_) => Ended::Nothing(true),
        Outcome::QuotaSpent { retry_after, .. } => {
            Ended::QuotaSpent(duration(*retry_after).unwrap_or_default())
        }
        Outcome::Stopped(_) => Ended::Stopped(true),
        Outcome::Failed(_) => Ended::Failed(true),
    });
    let state = match update.state {
        SearchState::Queued => pb::SearchState::Queued,
        SearchState::Running => pb::SearchState::Running,
        SearchState::Parked => pb::SearchState::Parked,
        SearchState::Ended => pb::SearchState::Ended,
    };
    let candidates = update.candidates.iter().map(|found| index(found.index));
    pb::CallUpdate {
        from: Some(index(update.from)),
        candidates: candidates.collect(),
        checkpoint: Some(checkpoint(&update.checkpoint)),
        state: state.into(),
        outcome,
        ..message
    }
}

/// Reads a leader's answer about the call with this query, whose candidates below `from` have
/// arrived. Every new candidate is hashed again.
///
/// An old or repeated message, which changes nothing, is `None`: its candidates are not read.
pub(crate) fn read_answer(
    query: &Query,
    from: Index,
    message: &pb::CallUpdate,
) -> Result<Option<Answer>, Invalid> {
    use pb::call_update::Outcome as Ended;
    if let Some(Ended::Full(_)) = message.outcome {
        return Ok(Some(Answer::Full));
    }
    if read_index(message.from.unwrap_or_default())? != from {
        return Ok(None);
    }
    let checkpoint = message.checkpoint.as_ref();
    let checkpoint = checkpoint.ok_or_else(|| missing("checkpoint"))?;
    let checkpoint = read_checkpoint(query, checkpoint)?;
    let frontier = checkpoint.frontier();
    let mut next = from;
    let mut candidates = Vec::new();
    for at in read_indices(&message.candidates)? {
        if !(next..frontier).contains(&at) {
            return Err(invalid(format!("{at} is not the next candidate")));
        }
        let found = query.candidate(at);
        if query.is_ideal(found.distance) || !query.is_interesting(found.distance) {
            return Err(invalid(format!("{at} is not a candidate")));
        }
        next = at + 1;
        candidates.push(found);
    }
    let cursor = || Cursor::new(query, frontier);
    let outcome = match message.outcome {
        None | Some(Ended::Full(_)) => None,
        Some(Ended::Ideal(at)) => {
            let at = read_index(at)?;
            if frontier != checkpoint.end() || at.checked_add(1) != Some(frontier) {
                return Err(invalid("the search has not ended with this secret"));
            }
            let found = query.candidate(at);
            if !query.is_ideal(found.distance) {
                return Err(invalid("the secret is not ideal"));
            }
            Some(Outcome::Ideal(found))
        }
        Some(Ended::Nothing(_)) if frontier != checkpoint.end() => {
            return Err(invalid("not all secrets were tried"));
        }
        Some(Ended::Nothing(_)) if frontier == query.keyspace().end() => Some(Outcome::Exhausted),
        Some(Ended::Nothing(_)) => Some(Outcome::BudgetSpent(cursor())),
        Some(Ended::QuotaSpent(after)) => Some(Outcome::QuotaSpent {
            cursor: cursor(),
            retry_after: read_duration(Some(after))?,
        }),
        Some(Ended::Failed(_)) => Some(Outcome::Failed(cursor())),
        Some(Ended::Stopped(_)) => Some(Outcome::Stopped(cursor())),
    };
    let state = match message.state() {
        pb::SearchState::Unspecified | pb::SearchState::Queued => SearchState::Queued,
        pb::SearchState::Running => SearchState::Running,
        pb::SearchState::Parked => SearchState::Parked,
        pb::SearchState::Ended => SearchState::Ended,
    };
    Ok(Some(Answer::Update(CallUpdate {
        from,
        candidates,
        checkpoint,
        outcome,
        state,
    })))
}

pub(crate) fn status(
    beat_now: &Beat,
    calls: usize,
    agents: &[fleet::Listed],
    bans: &[pb::Ban],
) -> pb::Status {
    let mut bytes = 0;
    let fits = |listed: &&fleet::Listed| {
        bytes += listed.agent.len() + listed.version.len();
        bytes <= MOST_LISTED_BYTES
    };
    let agents = agents.iter().take(MOST_LISTED).take_while(fits);
    let agents = agents.map(|listed| pb::Agent {
        agent: listed.agent.to_string(),
        rate: listed.rate,
        leases: u32::try_from(listed.leases).unwrap_or(u32::MAX),
        silent_for: duration(listed.silent_for),
        is_draining: listed.is_draining,
        false_reports: listed.false_reports,
        is_banned: listed.is_banned,
        is_trusted: listed.is_trusted,
        version: listed.version.to_string(),
    });
    pb::Status {
        leader: Some(beat(beat_now)),
        calls: u32::try_from(calls).unwrap_or(u32::MAX),
        agents: agents.collect(),
        bans: bans.to_vec(),
    }
}

/// Reads one agent of a status.
pub(crate) fn read_agent(agent: pb::Agent) -> Result<fleet::Listed, Invalid> {
    Ok(fleet::Listed {
        silent_for: read_duration(agent.silent_for)?,
        agent: agent.agent.into(),
        version: Arc::from(agent.version),
        rate: agent.rate,
        leases: agent.leases as usize,
        is_draining: agent.is_draining,
        false_reports: agent.false_reports,
        is_banned: agent.is_banned,
        is_trusted: agent.is_trusted,
    })
}
