//! Addresses of servers.

use std::{fmt, str::FromStr};

use http::uri::Authority;

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAddress {
    /// `HOST:PORT`, without TLS.
    Tcp(Authority),
    /// `https://HOST:PORT`, with TLS.
    Tls(Authority),
    /// `unix:PATH`, a Unix socket on this machine.
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

impl FromStr for ServerAddress {
    type Err = String;

    /// Parses an address in the form of one of the variants of [`ServerAddress`].
    fn from_str(text: &str) -> Result<ServerAddress, String> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(ServerAddress::Unix(path.to_owned()));
        }
        let (kind, text): (fn(Authority) -> ServerAddress, &str) =
            match text.strip_prefix("https://") {
                Some(rest) => (ServerAddress::Tls, rest),
                None => (ServerAddress::Tcp, text),
            };
        let authority = Authority::from_str(text).ok();
        authority
            .filter(|authority| {
                let plain = !authority.as_str().contains('@') && !authority.host().is_empty();
                plain && authority.port_u16().is_some()
            })
            .map(kind)
            .ok_or_else(|| "expected HOST:PORT, https://HOST:PORT for TLS, or unix:PATH".to_owned())
    }
}

/// Returns the host of `authority`, without the brackets around an IPv6 address.
pub(crate) fn bare_host(authority: &Authority) -> &str {
    authority.host().trim_matches(['[', ']'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_addresses_are_validated() {
        for right in [
            "localhost:50051",
            "127.0.0.1:1",
            "[::1]:50051",
            "a.example:80",
            "https://a.example:443",
            "https://[::1]:50051",
            "unix:/run/a.sock",
        ] {
            assert!(right.parse::<ServerAddress>().is_ok(), "{right}");
        }
        for wrong in [
            "",
            "localhost",
            ":1",
            "localhost:",
            "host:99999",
            "http://host:1",
            "https://host",
            "https://host:1/",
            "https://u@h:1",
            "u@h:1",
            "unix:",
        ] {
            assert!(wrong.parse::<ServerAddress>().is_err(), "{wrong}");
        }
    }
}
