//! Who is at the other end of a connection.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

/// Who is at the other end of a connection; requests carry it as an extension.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(super) who: Who,
    /// The connection's number, which no other one has.
    pub(crate) connection: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Who {
    Address(SocketAddr),
    /// A user of this machine, by a Unix socket.
    User(u32),
    Nobody,
}

impl Peer {
    /// Of a connection that is no socket.
    #[cfg(fuzzing)]
    pub(super) fn nobody() -> Peer {
        Peer {
            who: Who::Nobody,
            connection: 0,
        }
    }

    /// Who shares what one client may have: until somebody is authenticated, an address or a user.
    pub(crate) fn client(&self) -> ClientName {
        match self.who {
            Who::Address(address) => ClientName::of_address(address.ip()),
            Who::User(id) => ClientName::of_user(id),
            Who::Nobody => ClientName(Arc::from("nobody")),
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

/// A client's name: `ip:` and an address, or `user:` and a number. The prefix keeps those of different
/// kinds apart, also from whoever is authenticated one day.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClientName(pub(crate) Arc<str>);

impl ClientName {
    fn of_address(address: IpAddr) -> ClientName {
        let name = match address.to_canonical() {
            IpAddr::V4(address) => format!("ip:{address}"),
            // One host, on whichever network it is.
            IpAddr::V6(address) if address.is_unicast_link_local() || address.is_unique_local() => {
                format!("ip:{address}")
            }
            // Whoever has one of these may well have the 64 bits behind it too.
            IpAddr::V6(address) => {
                let network = Ipv6Addr::from_bits(address.to_bits() >> 64 << 64);
                format!("ip:{network}/64")
            }
        };
        ClientName(name.into())
    }

    pub(crate) fn of_user(id: u32) -> ClientName {
        ClientName(format!("user:{id}").into())
    }
}

impl FromStr for ClientName {
    type Err = String;

    /// Reads an address, or `user:` and a number.
    fn from_str(text: &str) -> Result<ClientName, String> {
        let user = text.strip_prefix("user:").map(str::parse);
        match (user, text.parse()) {
            (Some(Ok(id)), _) => Ok(ClientName::of_user(id)),
            (None, Ok(address)) => Ok(ClientName::of_address(address)),
            _ => Err("give an IP address, or user: and a user's number".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_names() {
        for (text, name) in [
            ("10.0.0.7", "ip:10.0.0.7"),
            ("::ffff:10.0.0.7", "ip:10.0.0.7"),
            ("2001:db8:1:2:3:4:5:6", "ip:2001:db8:1:2::/64"),
            ("fe80::1:2", "ip:fe80::1:2"),
            ("user:1000", "user:1000"),
        ] {
            assert_eq!(&*text.parse::<ClientName>().unwrap().0, name);
        }
        for wrong in ["", "user:", "user:root", "localhost", "10.0.0.7:80"] {
            assert!(wrong.parse::<ClientName>().is_err(), "{wrong}");
        }
    }
}
