//! The gRPC contracts of hashfinder, as Rust types.
//!
//! This crate holds what a server and its clients have to agree on, and nothing else:
//!
//! - [`hash_name`]: messages, client and server of the reference contract
//!   (`proto/hash_name.proto`).
//! - [`v1`]: the same for our own contract (`proto/hashfinder/v1/finder.proto`).
//! - [`google::longrunning`]: the same for long-running operations.
//! - [`fleet::v1`]: what the machines of a fleet send to each other
//!   (`proto/hashfinder/fleet/v1/fleet.proto`); messages only.
//! - [`Reason`]: every reason for which a server of ours rejects or ends a call.
//! - [`Details`]: what a client can read from an error status.
//! - [`limits`]: the limits that the contract states.
//! - [`DESCRIPTORS`]: the contracts in encoded form, for reflection and for tables of methods.
//!
//! A client starts with [`v1::finder_client::FinderClient`], a server with
//! [`v1::finder_server::FinderServer`].
//!
//! The crate must not depend on the server, the client, the command line or the search engine.
//! Cursors are text here: only the program that resumes a search has to parse them.
//!
//! # Example
//!
//! ```
//! use hashfinder_proto::{Details, Reason};
//! use tonic::Status;
//!
//! fn explain(status: &Status) -> String {
//!     let details = Details::of(status);
//!     if details.has(Reason::KeyspaceExhausted) {
//!         return "all secrets were tried".to_owned();
//!     }
//!     match details.cursor {
//!         Some(cursor) => format!("stopped; resume with {cursor}"),
//!         None => format!("failed: {}", status.message()),
//!     }
//! }
//!
//! assert_eq!(explain(&Status::internal("disk full")), "failed: disk full");
//! ```

#![forbid(unsafe_code)]

pub mod details;
pub mod limits;
mod operation;
mod reason;

pub use self::{details::Details, reason::Reason};

/// The reference contract, generated from `proto/hash_name.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
pub mod hash_name {
    include!("generated/hash_name.rs");
}

/// The contract of long-running operations, generated from
/// `proto/google/longrunning/operations.proto`.
pub mod google {
    /// The package `google.longrunning`.
    #[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
    pub mod longrunning {
        include!("generated/google.longrunning.rs");
    }
}

/// Our own contracts, generated from `proto/hashfinder/v1/finder.proto` and
/// `proto/hashfinder/fleet/v1/fleet.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    reason = "generated"
)]
mod hashfinder {
    pub mod v1 {
        include!("generated/hashfinder.v1.rs");
    }

    pub mod fleet {
        pub mod v1 {
            include!("generated/hashfinder.fleet.v1.rs");
        }
    }
}

pub use self::hashfinder::{fleet, v1};

/// Descriptors of all contracts that clients use: an encoded `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!("generated/descriptors.binpb");

impl From<v1::search_event::Event> for v1::SearchEvent {
    /// Wraps an event, without padding.
    fn from(event: v1::search_event::Event) -> v1::SearchEvent {
        v1::SearchEvent {
            event: Some(event),
            padding: Vec::new(),
        }
    }
}
