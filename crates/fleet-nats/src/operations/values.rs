//! What is saved at the broker, in bytes and back.

use std::sync::Arc;

use hashfinder_operations::{
    COLLECTION, Canceller, ClockReading, End, EndReason, Error, Name, Record, Rejection, Request,
};
use hashfinder_proto::fleet::v1::{self as pb, operation_error::Kind};
use hashfinder_search::{Cursor, Index};

use crate::wire::{self, Invalid, invalid};

/// Returns the name of an operation with this id.
pub(crate) fn name(id: &str) -> Result<Name, Invalid> {
    format!("{COLLECTION}/{id}").parse().map_err(invalid)
}

/// Writes an operation as its client requested it.
pub(crate) fn operation(record: &Record, nonce: u64) -> pb::SavedOperation {
    let request = &record.request;
    pb::SavedOperation {
        nonce,
        id: record.name.id().to_owned(),
        client: request.client.to_string(),
        request_id: request.request_id.clone(),
        display_name: request.display_name.clone(),
        query: request.text(),
        maximum_hashes: request.maximum_hashes,
        keep: wire::duration(request.keep),
        budget: record.budget,
        created_ms: record.created,
        resumes: record.resumes,
    }
}

pub(crate) fn read_operation(saved: pb::SavedOperation) -> Result<Record, Invalid> {
    let cursor: Cursor = saved.query.parse().map_err(invalid)?;
    let request = Request {
        client: saved.client.into(),
        request_id: saved.request_id,
        display_name: saved.display_name,
        query: cursor.query(),
        maximum_hashes: saved.maximum_hashes,
        keep: wire::read_duration(saved.keep)?,
    };
    let record = Record::new(name(&saved.id)?, request, saved.budget, saved.created_ms);
    Ok(Record {
        resumes: saved.resumes,
        ..record
    })
}

/// Writes how far an operation has come.
pub(crate) fn progress(record: &Record) -> pb::SavedProgress {
    pb::SavedProgress {
        id: record.name.id().to_owned(),
        candidates: record.candidates,
        checkpoint: Some(wire::checkpoint(&record.checkpoint)),
        updated_ms: record.updated,
        resumes: record.resumes,
        failures: record.failures,
    }
}

/// Applies progress to a record with as many candidates.
pub(crate) fn apply_progress(
    record: &mut Record,
    progress: &pb::SavedProgress,
) -> Result<(), Invalid> {
    let checkpoint = progress.checkpoint.as_ref();
    let checkpoint = checkpoint.ok_or_else(|| invalid("it has no checkpoint"))?;
    record.checkpoint = wire::read_checkpoint(record.query(), checkpoint)?;
    record.updated = progress.updated_ms;
    record.resumes = progress.resumes;
    record.failures = progress.failures;
    Ok(())
}

/// Writes what changes in an operation.
pub(crate) fn state(record: &Record, candidates: &[Index], nonce: u64) -> pb::SavedState {
    let end = record.end.as_ref();
    let progress = pb::SavedProgress {
        id: String::new(),
        ..progress(record)
    };
    pb::SavedState {
        nonce,
        progress: Some(progress),
        candidates: candidates.iter().copied().map(wire::index).collect(),
        cancel: record.cancel.map_or(0, |by| canceller(by).into()),
        end_reason: end.map_or(String::new(), |end| end.reason.name().to_owned()),
        ended_ms: end.map_or(0, |end| end.at),
        end_message: end.map_or(String::new(), |end| end.message.clone()),
    }
}

/// Takes the indices of an operation's candidates out of its state.
pub(crate) fn take_candidates(state: &mut pb::SavedState) -> Result<Arc<[Index]>, Invalid> {
    let candidates = wire::read_indices(&std::mem::take(&mut state.candidates))?;
    if candidates.is_sorted_by(|a, b| a < b) {
        Ok(candidates.into())
    } else {
        Err(invalid("its candidates are not in order"))
    }
}

/// Applies a state with this number of candidates to the record of an operation as it was
/// requested.
pub(crate) fn apply_state(
    record: &mut Record,
    state: &pb::SavedState,
    candidates: usize,
) -> Result<(), Invalid> {
    let progress = state.progress.as_ref();
    let progress = progress.ok_or_else(|| invalid("it has no progress"))?;
    if progress.candidates != candidates as u64 {
        return Err(invalid("its number of candidates is wrong"));
    }
    apply_progress(record, progress)?;
    record.candidates = progress.candidates;
    record.cancel = read_canceller(state.cancel());
    record.end = match &state.end_reason[..] {
        "" => None,
        reason => {
            let known = EndReason::ALL.into_iter();
            let reason = known.clone().find(|known| known.name() == reason);
            Some(End {
                at: state.ended_ms,
                reason: reason.ok_or_else(|| invalid("its reason is unknown"))?,
                message: state.end_message.clone(),
            })
        }
    };
    Ok(())
}

pub(crate) fn canceller(by: Canceller) -> pb::Canceller {
    match by {
        Canceller::Client => pb::Canceller::Client,
        Canceller::Operator => pb::Canceller::Operator,
        Canceller::Revocation => pb::Canceller::Revocation,
    }
}

pub(crate) fn read_canceller(by: pb::Canceller) -> Option<Canceller> {
    match by {
        pb::Canceller::Unspecified => None,
        pb::Canceller::Client => Some(Canceller::Client),
        pb::Canceller::Operator => Some(Canceller::Operator),
        pb::Canceller::Revocation => Some(Canceller::Revocation),
    }
}

pub(crate) fn clock(progress: &pb::ProgressOfAll) -> ClockReading {
    ClockReading {
        wall: progress.clock_ms,
        doubtful_until: progress.doubtful_until_ms,
    }
}

/// Writes why a request fails.
pub(crate) fn error(error: &Error) -> pb::OperationError {
    let (kind, limit) = match error {
        Error::Rejected(Rejection::RequestIdReused) => (Kind::RequestIdReused, 0),
        Error::Rejected(Rejection::Deleted) => (Kind::Deleted, 0),
        Error::Rejected(Rejection::TooManyRunning { limit }) => (Kind::TooManyRunning, *limit),
        Error::Rejected(Rejection::TooManySaved { limit }) => (Kind::TooManySaved, *limit),
        Error::NotEnded => (Kind::NotEnded, 0),
        Error::Unavailable(_) => (Kind::Unavailable, 0),
        Error::Damaged(_) => (Kind::Damaged, 0),
        Error::Draining => (Kind::Draining, 0),
    };
    let message = match error {
        Error::Unavailable(why) | Error::Damaged(why) => why.to_string(),
        _ => String::new(),
    };
    pb::OperationError {
        kind: kind.into(),
        message,
        limit,
    }
}

pub(crate) fn read_error(error: &pb::OperationError) -> Error {
    let limit = error.limit;
    let why = || Arc::from(error.message.as_str());
    match error.kind() {
        Kind::RequestIdReused => Error::Rejected(Rejection::RequestIdReused),
        Kind::Deleted => Error::Rejected(Rejection::Deleted),
        Kind::TooManyRunning => Error::Rejected(Rejection::TooManyRunning { limit }),
        Kind::TooManySaved => Error::Rejected(Rejection::TooManySaved { limit }),
        Kind::NotEnded => Error::NotEnded,
        Kind::Damaged => Error::Damaged(why()),
        Kind::Draining => Error::Draining,
        Kind::Unspecified | Kind::Unavailable => Error::Unavailable(why()),
    }
}
