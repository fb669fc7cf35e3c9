//! Files, threads and the date: the parts of the operating system that can fail, block or be set
//! wrong.
//!
//! Reading a file can block indefinitely, the system can refuse to start a thread at any time, and
//! the clock can show a year that no calendar has. Here each of these is an error, or happens on a
//! separate thread that can be abandoned, so the server and the commands need not handle it.
//!
//! - [`files`] reads the regular files that users name, with a size limit, and watches them.
//! - [`threads`] starts the async runtimes, and threads for work that may block.
//! - [`clock`] reads the date; [`running_time`] measures how long the process has run.
//! - [`text`] makes untrusted texts safe to show on a terminal.
//!
//! This crate must not depend on any other crate of this workspace.

#![forbid(unsafe_code)]

pub mod clock;
pub mod files;
pub mod running_time;
pub mod text;
pub mod threads;
