//! Settings of operations.

use std::{num::NonZeroU64, path::PathBuf, time::Duration};

use hashfinder_operations::{ClientLimits, Limits};

/// Where operations are saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this folder. No other server may use it.
    Folder(PathBuf),
    /// At the broker of the server's fleet. Every server of the fleet serves them.
    Fleet,
}

/// Settings of operations: where they are saved, and their limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where they are saved.
    pub place: Place,
    /// Hash budget of an operation. Default: 10^16, about a year of two cores.
    pub maximum_hashes: NonZeroU64,
    /// Maximum number of operations of a client that have not ended. Default: 100.
    pub running_of_client: NonZeroU64,
    /// Maximum number of saved operations of a client. Default: 1,000, which take about a megabyte.
    /// Nothing is deleted to make room.
    pub saved_of_client: NonZeroU64,
    /// Maximum number of candidates of an operation. Default: 10,000, which take about half a
    /// megabyte.
    pub candidates: NonZeroU64,
}

/// Maximum time for which an operation is kept after its end, and the default.
pub(crate) const LONGEST_KEEP: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl Settings {
    /// Returns the default settings of operations that are saved here.
    #[must_use]
    pub fn at(place: Place) -> Settings {
        const MAXIMUM_HASHES: NonZeroU64 = NonZeroU64::new(10_000_000_000_000_000).unwrap();
        let limits = Limits::default();
        let positive = |limit| NonZeroU64::new(limit).unwrap_or(NonZeroU64::MIN);
        Settings {
            place,
            maximum_hashes: MAXIMUM_HASHES,
            running_of_client: positive(limits.of_client.running),
            saved_of_client: positive(limits.of_client.saved),
            candidates: positive(limits.candidates),
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            of_client: ClientLimits {
                running: self.running_of_client.get(),
                saved: self.saved_of_client.get(),
            },
            candidates: self.candidates.get(),
        }
    }
}
