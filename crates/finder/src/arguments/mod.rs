//! The flags that several commands share.

mod connection;
mod fleet;
pub(crate) mod from_file;
mod query;
mod search;
mod server;
pub(crate) mod values;

pub(crate) use self::{
    connection::ConnectionArguments,
    fleet::{FleetArguments, FleetFiles},
    query::{QueryArguments, QueryError, SpellingArguments},
    search::SearchArguments,
    server::{ANSWER_TIMEOUT, ServerArguments},
};
