//! The search itself: what is searched for, in which order, where it ends, and the engine of threads
//! that runs it and stops on request.
//!
//! ```
//! use hashfinder_kernels::Kernel;
//! use hashfinder_search::{Client, Distance, Engine, Event, Outcome, Query};
//!
//! let started = std::time::Instant::now();
//! let engine = Engine::start(2, Kernel::best(), move || started.elapsed())?;
//! let query = Query::new("doc".parse()?, Distance::ZERO)?;
//! let client = Client::default();
//! let mut search = engine.search(client, query.clone(), |report| println!("{} tests", report.tests))?;
//! let Event::Ended(Outcome::Ideal(found)) = search.blocking_next() else {
//!     panic!("there is a doc");
//! };
//! let secret = query.keyspace().secret(found.index);
//! let hashed_name = query.spelling().hashed_name(&secret);
//! assert!(hashed_name.as_str().to_lowercase().contains("doc"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The answer never depends on how many workers there are, on the kernel or on the machine: it is
//! what one thread gives that tries one secret after another, and so is where a budget ends it.
//!
//! Nothing here reads a clock, a socket or an environment variable, and nothing knows of an
//! asynchronous runtime: [`Search::next`] is a plain future.

#![forbid(unsafe_code)]

mod client;
mod cursor;
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
mod progress;
mod query;
mod scheduler;
mod slice;
mod spelling;
mod sync;
pub mod throughput;

pub use client::{Client, Quota};
pub use cursor::{Cursor, CursorError};
pub use engine::{Backend, Engine, Search, Stopper};
pub use hashfinder_kernels::{self as kernels, Filter, Kernel};
pub use keyspace::{Alphabet, AlphabetError, Index, Keyspace, KeyspaceError};
pub use limits::{Limits, OverLimit, Usage};
pub use matcher::{Found, Matcher};
pub use name::{DesiredName, Distance, NameError, Nearest, NegativeDistance};
pub use odds::Odds;
pub use outcome::{Event, Outcome, Report};
pub use progress::{Ended, Metrics, Progress, SearchState};
pub use query::{Candidate, Impossible, Query};
pub use spelling::{Algorithm, Anchor, Encoding, HashedName, Spelling};
