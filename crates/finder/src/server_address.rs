//! Addresses of servers.

use std::fmt;

use http::uri::Authority;

/// The address of a server.
#[derive(Clone, Debug)]
pub(crate) enum ServerAddress {
    Tcp(Authority),
    Tls(Authority),
    Unix(String),
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerAddress::Tcp(authority) => authority.fmt(f),
            ServerAddress::Tls(authority) => write!(f, "https://{authority}"),
            ServerAddress::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}
