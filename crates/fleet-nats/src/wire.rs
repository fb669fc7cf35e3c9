//! The messages of the fleet, in bytes and back.

use std::{fmt::Display, num::NonZeroU32, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use hashfinder_fleet::{
    self as fleet, Ask, Beat, CallId, Claim, Order, Orders, Report, Term, Told, WireIndex, Work,
    narrow, widen,
};
use hashfinder_proto::fleet::v1 as pb;
use hashfinder_search::{
    Checkpoint, Client, Cursor, Index, Outcome, OverLimit, Query, QuerySet, Quota, SearchState,
};
use prost::Message;

/// The version of the protocol that this program speaks.
pub(crate) const PROTOCOL: u32 = 1;

/// A message that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message of a fleet: {0}")]
pub(crate) struct Invalid(String);

fn invalid(what: impl Display) -> Invalid {
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

fn read_index(index: pb::Index) -> Result<Index, Invalid> {
    let wide = WireIndex::from(index.high) << 64 | WireIndex::from(index.low);
    narrow(wide).map_err(invalid)
}

fn read_indices(indices: &[pb::Index]) -> Result<Vec<Index>, Invalid> {
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

fn duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

fn read_duration(duration: Option<prost_types::Duration>) -> Result<Duration, Invalid> {
    let duration = duration.unwrap_or_default();
    Duration::try_from(duration).map_err(|_| invalid("a duration is negative"))
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
        number: term.number,
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

pub(crate) fn work(work: &Work, knows: Vec<u64>) -> pb::Work {
    pb::Work {
        protocol: PROTOCOL,
        agent: work.agent.to_string(),
        boot: work.boot,
        sequence: work.sequence,
        term: Some(term(work.term)),
        rate: work.rate,
        is_draining: work.is_draining,
        holds: work.holds.clone(),
        reports: work.reports.iter().map(report).collect(),
        knows,
        version: work.version.to_string(),
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

/// Reads a message of an agent, and the sets of queries that it knows.
pub(crate) fn read_work(work: pb::Work) -> Result<(Work, Vec<u64>), Invalid> {
    let reports = work.reports.into_iter().map(|report| {
        Ok(Report {
            lease: report.lease,
            tried: read_index(report.tried.unwrap_or_default())?,
            hits: read_indices(&report.hits)?,
            took: read_duration(report.took)?,
            failed: report.failed,
        })
    });
    let message = Work {
        agent: work.agent.into(),
        boot: work.boot,
        sequence: work.sequence,
        term: read_term(work.term),
        rate: work.rate,
        version: work.version.into(),
        is_draining: work.is_draining,
        holds: work.holds,
        reports: reports.collect::<Result<_, _>>()?,
    };
    Ok((message, work.knows))
}

/// Writes the reply to an agent that knows these sets of queries.
pub(crate) fn orders(orders: &Orders, knows: &[u64]) -> pb::Orders {
    let mut sets: Vec<pb::QuerySet> = Vec::new();
    for order in &orders.leases {
        let is_known = knows.contains(&order.set) || sets.iter().any(|set| set.id == order.set);
        if !is_known {
            sets.push(pb::QuerySet {
                id: order.set,
                queries: order.queries.iter().map(query).collect(),
            });
        }
    }
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
        sets,
        rejected: String::new(),
    }
}

/// Writes that an agent gets no leases because it speaks another version of the protocol.
pub(crate) fn rejected(in_term: Term, protocol: u32) -> pb::Orders {
    let what = if protocol < PROTOCOL {
        "update hashfinder on this machine"
    } else {
        "update hashfinder on the servers"
    };
    pb::Orders {
        term: Some(term(in_term)),
        rejected: format!(
            "this agent speaks version {protocol} of the fleet's protocol, and the leader version \
             {PROTOCOL}; {what}"
        ),
        ..pb::Orders::default()
    }
}

/// Returns the size of a query in messages, in bytes.
pub(crate) fn size(query: &Query) -> usize {
    self::query(query).len()
}

/// Reads a lease. The agent finds its queries by the number of their set.
pub(crate) fn read_lease(lease: &pb::Lease) -> Result<Order, Invalid> {
    Ok(Order {
        lease: lease.id,
        range: read_range(lease.range)?,
        queries: Arc::new([]),
        set: lease.set,
        hit_limit: usize::try_from(lease.hit_limit).unwrap_or(usize::MAX),
        planned: read_duration(lease.planned)?,
    })
}

pub(crate) fn read_set(set: &pb::QuerySet) -> Result<QuerySet, Invalid> {
    let queries = set.queries.iter().map(|text| read_query(text));
    let queries = queries.collect::<Result<Vec<_>, _>>()?;
    QuerySet::new(&queries).ok_or_else(|| invalid("its queries do not belong together"))
}

/// Writes a query without its start and its budget.
fn query(query: &Query) -> String {
    Cursor::new(query, 0).to_string()
}

fn read_query(text: &str) -> Result<Query, Invalid> {
    let cursor: Cursor = text.parse().map_err(invalid)?;
    Ok(cursor.query())
}

pub(crate) fn ask(ask: &Ask, known: Term) -> pb::Ask {
    let client = &ask.client;
    let rate = client.quota.hashes_per_second;
    pb::Ask {
        call: ask.call.to_string(),
        server: ask.server.to_string(),
        client: Some(pb::Client {
            name: client.name.to_string(),
            weight: client.weight.get(),
            hashes_per_second: rate.map_or(0, std::num::NonZeroU64::get),
        }),
        query: Cursor::new(&ask.query, ask.query.start()).to_string(),
        checkpoint: Some(checkpoint(&ask.checkpoint)),
        from: Some(index(ask.from)),
        term: Some(term(known)),
        stops: ask.stops,
    }
}

/// Reads a message of a server, and the term that it knows of.
pub(crate) fn read_ask(ask: pb::Ask) -> Result<(Ask, Term), Invalid> {
    let query = read_query(&ask.query)?;
    let client = ask.client.ok_or_else(|| missing("client"))?;
    let checkpoint = ask.checkpoint.ok_or_else(|| missing("checkpoint"))?;
    let known = read_term(ask.term);
    let message = Ask {
        call: ask.call.into(),
        server: ask.server.into(),
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
        from: read_index(ask.from.unwrap_or_default())?,
        stops: ask.stops,
    };
    Ok((message, known))
}

fn checkpoint(checkpoint: &Checkpoint) -> pb::Checkpoint {
    pb::Checkpoint {
        to_cover: checkpoint.to_cover().iter().map(range).collect(),
        held: checkpoint.held().map(index).collect(),
        end: Some(index(checkpoint.end())),
    }
}

fn read_checkpoint(query: &Query, checkpoint: &pb::Checkpoint) -> Result<Checkpoint, Invalid> {
    let to_cover = checkpoint
        .to_cover
        .iter()
        .map(|range| read_range(Some(*range)));
    let to_cover = to_cover.collect::<Result<Vec<_>, _>>()?;
    let held = read_indices(&checkpoint.held)?;
    let end = read_index(checkpoint.end.unwrap_or_default())?;
    Checkpoint::restore(query, to_cover, &held, end).map_err(invalid)
}

/// Writes what the leader has to say about a call.
pub(crate) fn told(call: &CallId, in_term: Term, told: &Told) -> pb::Told {
    use pb::told::Outcome as Ended;
    let outcome = told.outcome.as_ref().map(|outcome| match outcome {
        Outcome::Ideal(found) => Ended::Ideal(index(found.index)),
        Outcome::Exhausted | Outcome::BudgetSpent(_) => Ended::Nothing(true),
        Outcome::QuotaSpent { retry_after, .. } => {
            Ended::QuotaSpent(duration(*retry_after).unwrap_or_default())
        }
        Outcome::Stopped(_) => Ended::Stopped(true),
        Outcome::Failed(_) => Ended::Failed(true),
    });
    let state = match told.state {
        SearchState::Queued => pb::SearchState::Queued,
        SearchState::Running => pb::SearchState::Running,
        SearchState::Parked => pb::SearchState::Parked,
        SearchState::Ended => pb::SearchState::Ended,
    };
    pb::Told {
        call: call.to_string(),
        term: Some(term(in_term)),
        from: Some(index(told.from)),
        candidates: told
            .candidates
            .iter()
            .map(|found| index(found.index))
            .collect(),
        checkpoint: Some(checkpoint(&told.checkpoint)),
        state: state.into(),
        outcome,
    }
}

/// Writes that a call cannot begin.
pub(crate) fn refused(ask: &Ask, in_term: Term, over: OverLimit) -> pb::Told {
    use pb::told::Outcome as Ended;
    let outcome = match over {
        OverLimit::Hashes { retry_after, .. } => {
            Ended::QuotaSpent(duration(retry_after).unwrap_or_default())
        }
        _ => Ended::Full(true),
    };
    pb::Told {
        call: ask.call.to_string(),
        term: Some(term(in_term)),
        from: Some(index(ask.from)),
        candidates: Vec::new(),
        checkpoint: Some(checkpoint(&ask.checkpoint)),
        state: pb::SearchState::Ended.into(),
        outcome: Some(outcome),
    }
}

/// What a leader says about a call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum News {
    Told(Told),
    /// The fleet has reached a limit: the server searches itself.
    Refused,
}

/// Reads what a leader says about the call with this query. Every candidate is hashed again.
pub(crate) fn read_told(query: &Query, told: &pb::Told) -> Result<News, Invalid> {
    use pb::told::Outcome as Ended;
    let checkpoint = told.checkpoint.as_ref();
    let checkpoint = checkpoint.ok_or_else(|| missing("checkpoint"))?;
    let checkpoint = read_checkpoint(query, checkpoint)?;
    let frontier = checkpoint.frontier();
    let from = read_index(told.from.unwrap_or_default())?;
    let mut next = from;
    let mut candidates = Vec::new();
    for at in read_indices(&told.candidates)? {
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
    let outcome = match told.outcome {
        None => None,
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
        Some(Ended::Full(_)) => return Ok(News::Refused),
    };
    let state = match told.state() {
        pb::SearchState::Unspecified | pb::SearchState::Queued => SearchState::Queued,
        pb::SearchState::Running => SearchState::Running,
        pb::SearchState::Parked => SearchState::Parked,
        pb::SearchState::Ended => SearchState::Ended,
    };
    Ok(News::Told(Told {
        from,
        candidates,
        checkpoint,
        outcome,
        state,
    }))
}

pub(crate) fn status(beat_now: &Beat, calls: usize, agents: &[fleet::Listed]) -> pb::Status {
    let agents = agents.iter().map(|listed| pb::Agent {
        agent: listed.agent.to_string(),
        rate: listed.rate,
        leases: u32::try_from(listed.leases).unwrap_or(u32::MAX),
        silent_for: duration(listed.silent_for),
        is_draining: listed.is_draining,
        false_reports: listed.false_reports,
        is_trusted: listed.is_trusted,
        version: listed.version.to_string(),
    });
    pb::Status {
        leader: Some(beat(beat_now)),
        calls: u32::try_from(calls).unwrap_or(u32::MAX),
        agents: agents.collect(),
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
        is_trusted: agent.is_trusted,
    })
}
