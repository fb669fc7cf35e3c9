//! Where a server may listen without authentication or TLS.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

/// Checks that a server may listen on these addresses.
///
/// # Errors
///
/// If it lacks TLS or authentication, and other machines could reach one of the addresses.
pub(crate) fn check_bind_policy(
    addresses: &[SocketAddr],
    has_tls: bool,
    has_authentication: bool,
) -> Result<()> {
    let (missing, risk) = match (has_tls, has_authentication) {
        (true, true) => return Ok(()),
        (true, false) => ("authentication", "other machines could use it"),
        (false, true) => ("TLS", "others on the network could read credentials"),
        (false, false) => (
            "TLS and authentication",
            "other machines could use it and read requests",
        ),
    };
    let open = addresses
        .iter()
        .find(|address| !address.ip().to_canonical().is_loopback());
    if let Some(open) = open {
        ensure!(
            false,
            "cannot listen on {open} without {missing}: {risk}; configure {missing}, listen on a \
             loopback address or a Unix socket, or set listen-unprotected"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unprotected_server_may_only_listen_on_loopback() {
        for (address, is_open) in [
            ("127.0.0.1:1", false),
            ("127.9.9.9:1", false),
            ("[::1]:1", false),
            ("[::ffff:127.0.0.1]:1", false),
            ("0.0.0.0:1", true),
            ("[::]:1", true),
            ("[::ffff:0.0.0.0]:1", true),
            ("10.0.0.7:1", true),
            ("169.254.0.1:1", true),
            ("[fe80::1]:1", true),
            ("[2001:db8::1]:1", true),
        ] {
            let address: SocketAddr = address.parse().unwrap();
            let loopback = "127.0.0.1:1".parse().unwrap();
            for (tls, auth) in [(false, false), (false, true), (true, false)] {
                // A single open address is enough.
                let checked = check_bind_policy(&[loopback, address], tls, auth);
                assert_eq!(checked.is_err(), is_open, "{address} {tls} {auth}");
            }
            assert!(check_bind_policy(&[address], true, true).is_ok());
        }
    }
}
