//! Layers that check every call. The layers for metrics and authentication are in the modules
//! `metrics` and `auth`.

pub(crate) mod body_observer;
pub(crate) mod protocol_check;
pub(crate) mod rate_limit;
