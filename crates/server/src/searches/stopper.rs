//! What stops a search, wherever it runs.

use hashfinder_fleet_nats::FleetStopper;
use hashfinder_search::{self as search, Progress};

/// Stops a search, wherever it runs.
#[derive(Clone, Debug)]
pub(crate) enum Stopper {
    /// On the engine. Before it came there, this many secrets were covered.
    Engine(search::Stopper, u64),
    Fleet(FleetStopper),
}

impl Stopper {
    pub(crate) fn stop(&self) {
        match self {
            Stopper::Engine(stopper, _) => stopper.stop(),
            Stopper::Fleet(stopper) => stopper.stop(),
        }
    }

    /// Returns the progress; `None` if the search ended with its first secrets, or if it was
    /// released after its handle was dropped.
    pub(crate) fn progress(&self) -> Option<Progress> {
        match self {
            Stopper::Engine(stopper, covered) => stopper.progress().map(|progress| Progress {
                hashes: progress.hashes + covered,
                tests: progress.tests + covered,
                ..progress
            }),
            Stopper::Fleet(stopper) => Some(stopper.progress()),
        }
    }
}
