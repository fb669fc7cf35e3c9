//! What a store of operations does.

use hashfinder_search::Index;

use crate::record::{Millis, Name, Record};

/// Something to write. What one [`commit`](Store::commit) writes is written completely or not at
/// all.
#[derive(Clone, Debug)]
pub enum Change {
    /// Creates an operation, if the limits and earlier requests allow it.
    Create(Record),
    /// Replaces what changes in a record, and adds candidates.
    Update {
        /// The record after the change.
        record: Record,
        /// The indices of new candidates, in order.
        candidates: Vec<Index>,
    },
    /// Deletes an operation that has ended, and its candidates.
    Delete(Name),
}

/// What became of a [`Change::Create`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Creation {
    /// The operation was created.
    New,
    /// The same request created this operation before.
    Existing(Name),
    /// The operation was not created.
    Rejected(Rejection),
}

/// Why an operation is not created.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The client has used the request id for another request.
    #[error("this request id belongs to another request; use a new one")]
    RequestIdReused,
    /// The operation of the same request was deleted.
    #[error("the operation of this request was deleted; use a new request id to start another")]
    Deleted,
    /// The client has its maximum number of operations that have not ended.
    #[error(
        "this client already has {limit} operations that have not ended, the maximum; wait for one \
         to end, or cancel one"
    )]
    TooManyRunning {
        /// Maximum number of the client's operations that have not ended.
        limit: u64,
    },
    /// The client has its maximum number of operations.
    #[error(
        "this client already has {limit} saved operations, the maximum; delete some that have ended"
    )]
    TooManySaved {
        /// Maximum number of the client's operations.
        limit: u64,
    },
}

/// Maximum numbers of operations of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// Of those that have not ended.
    pub running: u64,
    /// Of all.
    pub saved: u64,
}

/// Why a store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A read or a write failed. It may work later.
    #[error("{0}")]
    Unavailable(String),
    /// The disk is full.
    #[error("{0}")]
    Full(String),
    /// The file is damaged. It must be recovered, which the server does not do by itself.
    #[error("{0}")]
    Damaged(String),
}

/// A reading of the system's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockReading {
    /// The time that it shows.
    pub wall: Millis,
    /// Until when it is doubtful, because it has jumped: nothing is deleted by it before.
    pub doubtful_until: Millis,
}

/// Keeps operations. Only one thread writes.
pub trait Store: Send {
    /// Writes these changes. When this returns, they survive a crash. Returns what became of each
    /// [`Change::Create`].
    ///
    /// Saves `now` with them.
    ///
    /// # Errors
    ///
    /// If the changes were possibly not written. Then the store must be opened again, and what it
    /// holds counts.
    fn commit(
        &mut self,
        changes: &[Change],
        now: ClockReading,
    ) -> Result<Vec<Creation>, StoreError>;

    /// Returns all operations that have not ended, in the order in which they were created.
    ///
    /// # Errors
    ///
    /// If the store cannot be read.
    fn unfinished(&mut self) -> Result<Vec<Record>, StoreError>;

    /// Deletes operations whose time is over, and forgets the request ids of those that were
    /// deleted a day ago. Returns how many operations were deleted.
    ///
    /// # Errors
    ///
    /// As for [`commit`](Self::commit).
    fn expire(&mut self, now: Millis) -> Result<u64, StoreError>;

    /// Returns the reading that was saved last.
    ///
    /// # Errors
    ///
    /// If the store cannot be read.
    fn last_reading(&mut self) -> Result<Option<ClockReading>, StoreError>;
}

/// Which operations to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only operations of this client.
    pub client: Option<String>,
    /// Only operations after this one, by creation time and name.
    pub after: Option<(Millis, String)>,
    /// Whether they must have ended, or must not.
    pub ended: Option<bool>,
}

/// Reads a store beside its writer.
pub trait Reader: Send {
    /// Returns an operation, if the store has it.
    ///
    /// # Errors
    ///
    /// If the store cannot be read.
    fn get(&mut self, name: &Name) -> Result<Option<Record>, StoreError>;

    /// Returns up to `limit` operations, ordered by creation time and name.
    ///
    /// # Errors
    ///
    /// If the store cannot be read.
    fn list(&mut self, selection: &Selection, limit: usize) -> Result<Vec<Record>, StoreError>;

    /// Returns up to `limit` indices of an operation's candidates from `from` on, in order.
    ///
    /// # Errors
    ///
    /// If the store cannot be read.
    fn candidates(
        &mut self,
        name: &Name,
        from: Index,
        limit: usize,
    ) -> Result<Vec<Index>, StoreError>;
}
