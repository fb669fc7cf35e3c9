//! Certificates and private keys, as server and client share them: [`pem`] reads them from files,
//! and [`error`] says in words what is wrong with one, or with a handshake.
//!
//! It must not depend on any other crate of this workspace but `hashfinder-system`, which reads the
//! files.

#![forbid(unsafe_code)]

pub mod error;
pub mod pem;
