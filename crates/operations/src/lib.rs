//! Searches that outlive their call, their client and their server.
//!
//! An *operation* is a search that is saved while it runs. What a client was told about it is never
//! taken back, whatever dies: that it started, its candidates, that it was cancelled, its end.
//! After a crash, it continues from what was saved, and repeats at most a second of searching.
//!
//! - A [`Record`] is an operation as it is saved.
//! - A [`Store`] keeps records. [`Sqlite`] is a store in a folder.
//! - A [`Runner`] decides which operations are searched, what is saved when, and how each ends. It
//!   has no threads, clocks or files.
//! - [`Operations`] connects them, and is what a server uses.
//!
//! This crate knows nothing of gRPC. A [`Host`] runs the searches for it.

#![forbid(unsafe_code)]

mod expiry;
mod maintenance;
mod record;
mod runner;
mod service;
mod sqlite;
mod store;

pub use self::{
    maintenance::{Change as RecoveredChange, Recovered, backup, recover},
    record::{COLLECTION, Canceller, End, EndReason, InvalidName, Millis, Name, Record, Request},
    runner::{
        BEGINS_WITHOUT_PROGRESS, Counts, Effects, Error, Health, Host, Now, Pace, Phase, Refused,
        Replied, Reply, Runner, Search, Snapshot, StopCause,
    },
    service::{
        COMMIT_SECONDS, Command, Limits, Metrics, Open, OpenReader, Operations, Relay,
        StoreOptions, now,
    },
    sqlite::{FILE, Folder, OpenError, Sqlite, SqliteReader},
    store::{
        Change, ClientLimits, ClockReading, Creation, Reader, Rejection, Selection, Store,
        StoreError,
    },
};
