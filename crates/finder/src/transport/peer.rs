//! Who is at the other end of a connection.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use super::tls::Certificate;

/// Who is at the other end of a connection; requests carry it as an extension.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(super) who: Who,
    /// The connection's number, which no other one has.
    pub(crate) connection: u64,
    /// The client's certificate, if it has shown one that was found good.
    pub(crate) certificate: Option<Arc<Certificate>>,
}

#[derive(Clone, Debug)]
pub(super) enum Who {
    Address(SocketAddr),
    /// A user of this machine, by a Unix socket.
    User(u32),
    Nobody,
}

/// Where connections come from that are counted together before anybody is authenticated. Of IPv6 it is a network
/// also where [`Peer::client`] names a host: whoever is in one can give themselves all of its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    Network(IpAddr),
    User(u32),
    Nobody,
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
    /// Somebody who has shown no certificate.
    pub(super) fn new(who: Who, connection: u64) -> Peer {
        Peer {
            who,
            connection,
            certificate: None,
        }
    }

    /// Whether the system has told who it is, and no credential can tell it better.
    pub(crate) fn is_user(&self) -> bool {
        matches!(self.who, Who::User(_))
    }

    /// Whoever tests ask as.
    #[cfg(test)]
    pub(crate) fn nobody() -> Peer {
        Peer::new(Who::Nobody, 0)
    }

    pub(crate) fn origin(&self) -> Origin {
        match self.who {
            Who::Address(address) => Origin::of_address(address.ip()),
            Who::User(id) => Origin::User(id),
            Who::Nobody => Origin::Nobody,
        }
    }

    /// Who shares what one client may have: until somebody is authenticated, an address or a user.
    pub(crate) fn client(&self) -> ClientName {
        match self.who {
            Who::Address(address) => ClientName::of_address(address.ip()),
            Who::User(id) => ClientName::of_user(id),
            Who::Nobody => ClientName::of_nobody(),
        }
    }

    /// Where the peer is, unless it came by a Unix socket.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match self.who {
            Who::Address(address) => Some(address),
            Who::User(_) | Who::Nobody => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.who {
            Who::Address(address) => address.fmt(f),
            Who::User(id) => write!(f, "user:{id}"),
            Who::Nobody => f.write_str("nobody"),
        }
    }
}

/// The longest name that a credential may give to a client, in bytes: as long as OpenID Connect lets a
/// subject be.
const MAX_NAME_LEN: usize = 255;

/// What an address stands for: itself, or the network whose address comes back with `false`.
fn network(address: IpAddr) -> (IpAddr, bool) {
    match address.to_canonical() {
        // An address of the others is one host.
        IpAddr::V6(address)
            if !address.is_loopback()
                && !address.is_unicast_link_local()
                && !address.is_unique_local() =>
        {
            // A client that has one of these addresses may well have the 64 bits behind it too.
            (IpAddr::V6(first_64(address)), false)
        }
        host => (host, true),
    }
}

fn first_64(address: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)
}

/// A client's name: `ip:` and an address, `user:` and a number, `key:` and the id of an API key, `jwt:` and
/// the subject of a token, or `cert:` and the name in a certificate. The prefix keeps those of different
/// kinds apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClientName(pub(crate) Arc<str>);

impl ClientName {
    /// Whoever is gone already, or was never there.
    pub(crate) fn of_nobody() -> ClientName {
        ClientName(Arc::from("nobody"))
    }

    fn of_address(address: IpAddr) -> ClientName {
        let name = match network(address) {
            (address, true) => format!("ip:{address}"),
            (network, false) => format!("ip:{network}/64"),
        };
        ClientName(name.into())
    }

    pub(crate) fn of_user(id: u32) -> ClientName {
        ClientName(format!("user:{id}").into())
    }

    /// Whoever has the API key with this id.
    pub(crate) fn of_key(id: &str) -> Option<ClientName> {
        ClientName::of_credential("key:", id)
    }

    /// The subject of a JSON web token.
    pub(crate) fn of_subject(subject: &str) -> Option<ClientName> {
        ClientName::of_credential("jwt:", subject)
    }

    /// Whom a certificate names.
    pub(crate) fn of_certificate(name: &str) -> Option<ClientName> {
        ClientName::of_credential("cert:", name)
    }

    /// None if the name could not be told from others where people read it, or is too long for that.
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

    /// Reads a name as it is written, but an address without its `ip:`.
    fn from_str(text: &str) -> Result<ClientName, String> {
        let name = match text.split_once(':') {
            Some(("user", id)) => id.parse().ok().map(ClientName::of_user),
            Some(("key", id)) => ClientName::of_key(id),
            Some(("jwt", subject)) => ClientName::of_subject(subject),
            Some(("cert", name)) => ClientName::of_certificate(name),
            _ => text.parse().ok().map(ClientName::of_address),
        };
        name.ok_or_else(|| {
            "give an IP address, user: and a user's number, key: and a key's id, jwt: and a subject, or \
             cert: and a certificate's name"
                .to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
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
    fn client_names() {
        for (text, name) in [
            ("10.0.0.7", "ip:10.0.0.7"),
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
            "ip:10.0.0.7",
        ] {
            assert!(wrong.parse::<ClientName>().is_err(), "{wrong}");
        }
        assert!(ClientName::of_subject(&"x".repeat(MAX_NAME_LEN)).is_some());
        assert!(ClientName::of_subject(&"x".repeat(MAX_NAME_LEN + 1)).is_none());
    }
}
