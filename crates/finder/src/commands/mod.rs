//! The commands: their flags, and what they do.

pub(crate) mod agent;
pub(crate) mod bench;
pub(crate) mod config;
pub(crate) mod estimate;
pub(crate) mod find;
pub(crate) mod fleet;
pub(crate) mod git_commit;
pub(crate) mod hashcash;
pub(crate) mod health;
pub(crate) mod keys;
pub(crate) mod manual;
pub(crate) mod operations;
pub(crate) mod searches;
pub(crate) mod serve;
pub(crate) mod verify;
