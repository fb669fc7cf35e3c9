//! The connections of a server: where they come from, who is at their other end, and what they may do.

mod listener;
mod peer;

pub(crate) use self::{
    listener::{Listener, addresses},
    peer::{ClientName, Origin, Peer},
};
