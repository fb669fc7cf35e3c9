//! Owners of operations, and the clients whose quotas their searches use.

use hashfinder_transport::{ClientName, Peer};

/// Owner of the operations of all clients without a credential on the server's own machine.
pub(crate) const LOCAL: &str = "local";

/// Name under which the engine counts the searches of [`LOCAL`].
const LOOPBACK: &str = "ip:127.0.0.1";

/// Returns the client whose quota the searches of an operation use.
pub(crate) fn client_of(owner: &str) -> ClientName {
    let name = if owner == LOCAL { LOOPBACK } else { owner };
    // A name that this version cannot read was written by another one.
    name.parse().unwrap_or_else(|_| ClientName::unknown())
}

/// Returns whether a client is known by its address alone.
pub(crate) fn is_address(name: &ClientName) -> bool {
    name.as_str().starts_with("ip:")
}

/// Returns whether a caller without a credential is on the server's own machine, and so owns the
/// operations of [`LOCAL`].
pub(crate) fn is_local(name: &ClientName, peer: Option<&Peer>) -> bool {
    let address = peer.and_then(Peer::address);
    is_address(name) && address.is_some_and(|address| address.ip().to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_owner_is_a_client() {
        for owner in ["key:a", "jwt:b", "cert:c", "user:7"] {
            assert_eq!(&**client_of(owner).as_str(), owner);
        }
        assert_eq!(&**client_of(LOCAL).as_str(), LOOPBACK);
    }
}
