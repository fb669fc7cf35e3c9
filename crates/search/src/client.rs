//! The client that a search is for, and its quota.

use std::{
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
};

/// The client that a search is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// Identifies the client: an address, a user, or an authenticated identity. Names of different
    /// kinds must differ, for example by a prefix.
    pub name: Arc<str>,
    /// The client's connection that the search arrived on. The client's share is divided evenly
    /// between its connections.
    pub connection: u64,
    /// The client's share of the time, relative to other clients'. Weights above a few thousand
    /// make little difference: even a client that outweighs all others does not starve them.
    pub weight: NonZeroU32,
    /// Limits of this client that differ from the engine's.
    pub quota: Quota,
}

impl Default for Client {
    /// The only client of a process that searches for itself.
    fn default() -> Client {
        Client {
            name: Arc::from(""),
            connection: 0,
            weight: NonZeroU32::MIN,
            quota: Quota::default(),
        }
    }
}

/// Limits of one client that differ from the engine's [`Limits`](crate::Limits).
///
/// The quota of a client's first search applies until the engine forgets the client (see
/// [`Usage`](crate::Usage)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Quota {
    /// Replaces [`Limits::searches_per_client`](crate::Limits::searches_per_client).
    pub searches: Option<usize>,
    /// Replaces
    /// [`Limits::hashes_per_second_per_client`](crate::Limits::hashes_per_second_per_client).
    pub hashes_per_second: Option<NonZeroU64>,
}
