//! The flags that several commands share.

mod connection;
mod query;
mod search;
pub(crate) mod values;

pub(crate) use self::{
    connection::ConnectionArguments,
    query::{QueryArguments, QueryError, SpellingArguments},
    search::SearchArguments,
};
