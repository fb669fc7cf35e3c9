//! The connections of a server: where they come from, who is at their other end, and what they may do.

mod listener;
mod peer;
mod tls;

pub(crate) use self::{
    listener::{Listener, addresses, incoming},
    peer::{ClientName, Peer},
    tls::Tls,
};
