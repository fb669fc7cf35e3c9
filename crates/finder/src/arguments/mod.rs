//! The flags that several commands share.

mod connection;
pub(crate) mod from_file;
mod query;
mod search;
mod server;
pub(crate) mod values;

pub(crate) use self::{
    connection::ConnectionArguments,
    query::{QueryArguments, QueryError, SpellingArguments},
    search::SearchArguments,
    server::{ANSWER_TIMEOUT, ServerArguments},
};
