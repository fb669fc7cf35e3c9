//! How searches are cut into slices.

use std::time::Duration;

/// How searches are cut into slices. It depends on what tries them: the defaults are for threads of
/// this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pacing {
    /// Time that a slice should take. A stop costs at most one slice on each worker, a new search
    /// waits for at most one, and a hit is final at the earliest when the slices below it are done.
    /// If slices were much shorter, workers would spend most of their time on setting them up. It
    /// must not be 0.
    pub slice_time: Duration,
    /// Maximum number of finished slices beyond the frontier of a scan. If one worker stalls, the
    /// frontier stops at its slice, and the other workers finish this many more slices before they
    /// wait for it.
    pub most_ahead: usize,
    /// Maximum factor by which a slice is longer than the one before it.
    pub most_growth: u64,
    /// Maximum number of searches that follow a scan, and so of the queries that a worker is given.
    pub most_followers: usize,
    /// Maximum number of out-of-order hits of a search, if it is more than the length of its queue.
    /// A search that holds as many gets only the slice at its frontier. The more workers there are,
    /// the more slices lie beyond it.
    pub most_held: usize,
    /// Number of hits that end a slice early. It bounds the hits that a search can hold beyond its
    /// queue.
    pub hits_per_slice: usize,
}

impl Default for Pacing {
    fn default() -> Pacing {
        Pacing {
            slice_time: SLICE_TIME,
            // About half a second on one core.
            most_ahead: 1024,
            // No slice can have been faster than the thread is.
            most_growth: u64::MAX,
            most_followers: MOST_FOLLOWERS,
            most_held: 0,
            // Few in tests, so that slices often come back partly tried.
            hits_per_slice: if cfg!(test) { 16 } else { 256 },
        }
    }
}

/// What tries a slice, and so how long the slice is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Worker {
    /// How many times as many secrets as a worker of speed 1 it tries in the same time: a positive
    /// number.
    pub speed: f64,
    /// Maximum length of its slices, whatever the clock says.
    pub longest_slice: u64,
    /// Its part of what all workers together try, from 0 to 1. Once a search has found an ideal hit
    /// and only has to wait for the secrets before it, a worker gets this part of them, so that all
    /// workers finish at the same time. With 1, slices are as long as ever.
    pub share: f64,
    /// How many slices share the time of one. With several, a worker whose slices take long serves
    /// more clients in the same time.
    pub parts: u32,
}

impl Default for Worker {
    /// A thread of this process.
    fn default() -> Worker {
        Worker {
            speed: 1.0,
            // At a billion secrets a second, this takes a quarter of a millisecond.
            longest_slice: 1 << 18,
            // Its slices are short anyway.
            share: 1.0,
            parts: 1,
        }
    }
}

impl Worker {
    /// Returns how many secrets this worker tries while one of speed 1 tries `count`: at least one,
    /// and at most its longest slice.
    pub(crate) fn scale(&self, count: u64) -> u64 {
        ((count as f64 * self.speed) as u64).clamp(1, self.longest_slice.max(1))
    }

    /// Returns how many secrets a worker of speed 1 tries while this one tries `count`.
    pub(crate) fn unscale(&self, count: u64) -> u64 {
        (count as f64 / self.speed) as u64
    }
}

/// Maximum number of followers of a scan of threads. Sixteen thousand names are matched at a tenth
/// of one name's speed; with more, a second scan is as good.
const MOST_FOLLOWERS: usize = 1 << 14;

/// Maximum factor by which a worker's part of what is left is shorter than its usual slices: even
/// shorter ones would cost more messages than they save time.
pub(crate) const LEAST_PART: u64 = 100;

/// Time that a slice of a thread should take.
pub(crate) const SLICE_TIME: Duration = Duration::from_micros(500);
