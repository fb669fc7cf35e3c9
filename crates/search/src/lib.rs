//! The search itself: queries, the order in which secrets are tried, and the engine of threads that
//! runs searches and stops them on request.
//!
//! ```
//! use hashfinder_kernels::Kernel;
//! use hashfinder_search::{Client, Distance, Engine, Event, Outcome, Query, Report};
//!
//! let started = std::time::Instant::now();
//! let engine = Engine::start(2, Kernel::best(), move || started.elapsed())?;
//! let query = Query::new("doc".parse()?, Distance::ZERO)?;
//! let client = Client::default();
//! let on_release = |report: Report| println!("{} tests", report.tests);
//! let mut search = engine.search(client, query.clone(), on_release)?;
//! let Event::Ended(Outcome::Ideal(found)) = search.blocking_next() else {
//!     panic!("there is a doc");
//! };
//! let secret = query.keyspace().secret(found.index);
//! let hashed_name = query.spelling().hashed_name(&secret);
//! assert!(hashed_name.as_str().to_lowercase().contains("doc"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The answer never depends on the number of workers, on the kernel or on the machine. It is the
//! same as if a single thread tried one secret after another. A budget, too, ends a search at
//! exactly the same secret.
//!
//! This crate reads no clock, no socket and no environment variable, and does not depend on an
//! asynchronous runtime: [`Search::next`] is a plain future.

#![forbid(unsafe_code)]

mod checkpoint;
mod client;
mod crew;
mod cursor;
mod dispatcher;
mod engine;
mod fair_queue;
mod group;
mod ids;
mod keyspace;
mod ledger;
mod limits;
mod matcher;
mod name;
mod odds;
mod outcome;
mod pacing;
mod progress;
mod query;
mod scheduler;
mod slice;
mod spelling;
mod sync;
pub mod throughput;

pub use checkpoint::{Advance, Checkpoint, InvalidCheckpoint, MAX_RANGES};
pub use client::{Client, Quota};
pub use crew::{Crew, QuerySet, TaskId, Tried};
pub use cursor::{Cursor, CursorError};
pub use dispatcher::{Dispatcher, FalseReport, Lease, LeaseId};
pub use engine::{Admission, Backend, Engine, ResumableSearch, Search, Stopper};
pub use hashfinder_kernels::{self as kernels, Filter, Kernel};
pub use ids::SearchId;
pub use keyspace::{Alphabet, AlphabetError, Index, Keyspace, KeyspaceError};
pub use limits::{Limits, OverLimit, Usage};
pub use matcher::{Found, Matcher};
pub use name::{DesiredName, Distance, NameError, Nearest, NegativeDistance};
pub use odds::Odds;
pub use outcome::{Event, Outcome, Report};
pub use pacing::{Pacing, Worker};
pub use progress::{Ended, Metrics, Progress, SearchState};
pub use query::{Candidate, Impossible, Query};
pub use spelling::{Algorithm, Anchor, Encoding, HashedName, Spelling};
