//! Files, threads and the date: what the operating system may refuse, delay or set wrong.
//!
//! Reading a file can block indefinitely, a thread can be refused at any time, and the clock can
//! show a year that no calendar has. Here each of these is an error, or happens on a separate
//! thread that can be abandoned, so that the server and the commands need not handle it.
//!
//! - [`files`] reads the regular files that users name, with a limit of size, and watches them.
//! - [`threads`] starts the async runtimes, and threads for work that may block.
//! - [`clock`] reads the date, [`running_time`] how long the process has run.
//! - [`text`] makes texts from elsewhere safe to show at a terminal.
//!
//! It must not depend on any other crate of this workspace.

#![forbid(unsafe_code)]

pub mod clock;
pub mod files;
pub mod running_time;
pub mod text;
pub mod threads;
