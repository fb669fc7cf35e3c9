//! Whom a search is for.

use std::{
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
};

/// For whom a search is made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// Who shares what one client may have: an address, a user, or whoever was authenticated. Whoever
    /// makes these names sees to it that those of different kinds differ, by a prefix say.
    pub name: Arc<str>,
    /// Which of the client's connections asks. Between these its share is divided evenly.
    pub connection: u64,
    /// How much the client's share is, compared with other clients'. Over a few thousand it means little:
    /// even a client that outweighs all others does not keep them waiting for ever.
    pub weight: NonZeroU32,
    /// What it may have where that differs from what others may.
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

/// What one client may have where that differs from what [`Limits`](crate::Limits) let every client have.
///
/// While a client has searches under way, or owes hashes, it keeps the quota that the first of them was begun
/// with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Quota {
    /// In the place of [`Limits::searches_per_client`](crate::Limits::searches_per_client).
    pub searches: Option<usize>,
    /// In the place of [`Limits::hashes_per_second_per_client`](crate::Limits::hashes_per_second_per_client).
    pub hashes_per_second: Option<NonZeroU64>,
}
