//! The other end of a connection.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use crate::tls::Certificate;

/// The other end of a connection. Requests carry it as an extension.
#[derive(Clone, Debug)]
pub struct Peer {
    pub(crate) who: Who,
    /// The connection's unique number.
    pub connection: u64,
    /// The client's certificate, if it sent a valid one.
    pub certificate: Option<Arc<Certificate>>,
}

#[derive(Clone, Debug)]
pub(crate) enum Who {
    Address(SocketAddr),
    /// A user of this machine, connected through a Unix socket.
    User(u32),
    /// The peer has no known address: it has disconnected, or did not come through a listener.
    Unknown,
}

/// Key by which connections are counted before authentication.
///
/// An IPv6 address counts as its /64 network, even if [`Peer::client`] names a single host, because
/// a host can use every address of its network. Only the loopback address counts by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// An IPv4 address, an IPv6 network, or the IPv6 loopback address.
    Network(IpAddr),
    /// A user of this machine.
    User(u32),
    /// The peer has no known address: it has disconnected, or did not come through a listener.
    Unknown,
}

impl Origin {
    fn of_address(address: IpAddr) -> Origin {
        Origin::Network(match address.to_canonical() {
            IpAddr::V6(address) if !address.is_loopback() => IpAddr::V6(first_64(address)),
            host => host,
        })
    }
}

impl Peer {
    /// Returns a peer without a certificate.
    pub(crate) fn new(who: Who, connection: u64) -> Peer {
        Peer {
            who,
            connection,
            certificate: None,
        }
    }

    /// Whether the peer is a user of this machine, connected through a Unix socket.
    #[must_use]
    pub fn is_user(&self) -> bool {
        matches!(self.who, Who::User(_))
    }

    /// Returns a peer without an address, for requests without a connection, as in tests.
    #[must_use]
    pub fn unknown() -> Peer {
        Peer::new(Who::Unknown, 0)
    }

    /// Returns the key by which connections are counted before authentication.
    #[must_use]
    pub fn origin(&self) -> Origin {
        match self.who {
            Who::Address(address) => Origin::of_address(address.ip()),
            Who::User(id) => Origin::User(id),
            Who::Unknown => Origin::Unknown,
        }
    }

    /// Returns the name under which the limits of an unauthenticated client are counted: its
    /// address or its user id.
    #[must_use]
    pub fn client(&self) -> ClientName {
        match self.who {
            Who::Address(address) => ClientName::of_address(address.ip()),
            Who::User(id) => ClientName::of_user(id),
            Who::Unknown => ClientName::unknown(),
        }
    }

    /// Returns the peer's address, or `None` for a Unix socket or an unknown address.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self.who {
            Who::Address(address) => Some(address),
            Who::User(_) | Who::Unknown => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.who {
            Who::Address(address) => address.fmt(f),
            Who::User(id) => write!(f, "user:{id}"),
            Who::Unknown => f.write_str("nobody"),
        }
    }
}

/// Maximum length of a name from a credential, in bytes. OpenID Connect has the same maximum for a
/// subject.
const MAX_NAME_LEN: usize = 255;

/// Returns `address` and `true` if it identifies one host; otherwise its /64 network and `false`.
fn network(address: IpAddr) -> (IpAddr, bool) {
    match address.to_canonical() {
        // Loopback, link-local and unique local addresses identify one host, as IPv4 addresses do.
        IpAddr::V6(address)
            if !address.is_loopback()
                && !address.is_unicast_link_local()
                && !address.is_unique_local() =>
        {
            // A client with such an address may have all addresses of the /64 network.
            (IpAddr::V6(first_64(address)), false)
        }
        host => (host, true),
    }
}

fn first_64(address: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)
}

/// Name of a client.
///
/// It is `ip:` and an address or a /64 network, `user:` and a number, `key:` and the id of an API
/// key, `jwt:` and the subject of a token, or `cert:` and the name in a certificate. The prefix
/// separates names of different kinds. Only [`unknown`](ClientName::unknown) has none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientName(Arc<str>);

impl ClientName {
    /// Returns the name of a peer without an address: `nobody`.
    #[must_use]
    pub fn unknown() -> ClientName {
        ClientName(Arc::from("nobody"))
    }

    fn of_address(address: IpAddr) -> ClientName {
        let name = match network(address) {
            (address, true) => format!("ip:{address}"),
            (network, false) => format!("ip:{network}/64"),
        };
        ClientName(name.into())
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &Arc<str> {
        &self.0
    }

    /// Returns the name of the user with this id on this machine.
    #[must_use]
    pub fn of_user(id: u32) -> ClientName {
        ClientName(format!("user:{id}").into())
    }

    /// Returns the name of the client with this API key id, or `None` if the id is not a valid
    /// name.
    #[must_use]
    pub fn of_key(id: &str) -> Option<ClientName> {
        ClientName::of_credential("key:", id)
    }

    /// Returns the name of the client with this subject in its JSON web token, or `None` if the
    /// subject is not a valid name.
    #[must_use]
    pub fn of_subject(subject: &str) -> Option<ClientName> {
        ClientName::of_credential("jwt:", subject)
    }

    /// Returns the name of the client with this name in its certificate, or `None` if the name is
    /// not valid.
    #[must_use]
    pub fn of_certificate(name: &str) -> Option<ClientName> {
        ClientName::of_credential("cert:", name)
    }

    /// Returns `kind` followed by `name`, or `None` if `name` is empty, too long, or has characters
    /// that could make it look like another name.
    fn of_credential(kind: &str, name: &str) -> Option<ClientName> {
        let fits = (1..=MAX_NAME_LEN).contains(&name.len());
        let is_plain = name.bytes().all(|byte| byte.is_ascii_graphic());
        (fits && is_plain).then(|| ClientName([kind, name].concat().into()))
    }
}

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ClientName {
    type Err = String;

    /// Parses a name as `Display` writes it, or a plain IP address. The name of
    /// [`unknown`](ClientName::unknown) is an error.
    fn from_str(text: &str) -> Result<ClientName, String> {
        let name = match text.split_once(':') {
            // The form in lists of searches. An IPv6 network ends with `/64`.
            Some(("ip", address)) => {
                let address = address.strip_suffix("/64").unwrap_or(address);
                address.parse().ok().map(ClientName::of_address)
            }
            Some(("user", id)) => id.parse().ok().map(ClientName::of_user),
            Some(("key", id)) => ClientName::of_key(id),
            Some(("jwt", subject)) => ClientName::of_subject(subject),
            Some(("cert", name)) => ClientName::of_certificate(name),
            _ => text.parse().ok().map(ClientName::of_address),
        };
        name.ok_or_else(|| {
            "expected an IP address, user:ID, key:ID, jwt:SUBJECT or cert:NAME".to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_addresses_or_networks() {
        for (address, origin) in [
            ("10.0.0.7", "10.0.0.7"),
            ("::ffff:10.0.0.7", "10.0.0.7"),
            ("::1", "::1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("fd00:1:2:3:4:5:6:7", "fd00:1:2:3::"),
            ("fe80::1:2", "fe80::"),
        ] {
            let expected = Origin::Network(origin.parse().unwrap());
            assert_eq!(Origin::of_address(address.parse().unwrap()), expected);
        }
    }

    #[test]
    fn client_names_are_parsed() {
        for (text, name) in [
            ("10.0.0.7", "ip:10.0.0.7"),
            ("ip:10.0.0.7", "ip:10.0.0.7"),
            ("ip:::1", "ip:::1"),
            ("ip:2001:db8:1:2::/64", "ip:2001:db8:1:2::/64"),
            ("::ffff:10.0.0.7", "ip:10.0.0.7"),
            ("2001:db8:1:2:3:4:5:6", "ip:2001:db8:1:2::/64"),
            ("fe80::1:2", "ip:fe80::1:2"),
            ("::1", "ip:::1"),
            ("user:1000", "user:1000"),
            ("key:0123-ab_C", "key:0123-ab_C"),
            ("jwt:auth0|12:34=5", "jwt:auth0|12:34=5"),
            ("cert:spiffe://a/b", "cert:spiffe://a/b"),
        ] {
            assert_eq!(&*text.parse::<ClientName>().unwrap().0, name);
        }
        for wrong in [
            "",
            "user:",
            "user:root",
            "localhost",
            "10.0.0.7:80",
            "key:",
            "jwt:two words",
            "jwt:caf\u{e9}",
            "cert:a\nb",
            "ip:localhost",
        ] {
            assert!(wrong.parse::<ClientName>().is_err(), "{wrong}");
        }
        assert!(ClientName::of_subject(&"x".repeat(MAX_NAME_LEN)).is_some());
        assert!(ClientName::of_subject(&"x".repeat(MAX_NAME_LEN + 1)).is_none());
    }
}
