//! Certificates and private keys, for the server and the client. [`pem`] reads them from files;
//! [`error`] describes in words what is wrong with a certificate or a handshake.
//!
//! Of the crates of this workspace, this one may depend only on `hashfinder-system`, which reads
//! the files.

#![forbid(unsafe_code)]

pub mod error;
pub mod pem;
