//! Where a server may listen without authentication or TLS.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

/// Checks that a server that can be reached at these addresses may listen there.
///
/// # Errors
///
/// If it lacks TLS or authentication, and other machines could reach it.
pub(crate) fn check_bind_policy(
    addresses: &[SocketAddr],
    has_tls: bool,
    has_authentication: bool,
) -> Result<()> {
    let lacks = match (has_tls, has_authentication) {
        (true, true) => return Ok(()),
        (true, false) => "without authentication anybody could use it",
        (false, true) => "without TLS anybody on the way could read credentials",
        (false, false) => {
            "without TLS and authentication anybody could use it, and read what others ask for"
        }
    };
    let open = addresses
        .iter()
        .find(|address| !address.ip().to_canonical().is_loopback());
    if let Some(open) = open {
        ensure!(
            false,
            "{open} can be reached from other machines, and {lacks}; configure both, listen on the \
             loopback or a Unix socket, or give --listen-unprotected"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loopback_is_for_the_unprotected() {
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
                // One address among others is enough.
                let checked = check_bind_policy(&[loopback, address], tls, auth);
                assert_eq!(checked.is_err(), is_open, "{address} {tls} {auth}");
            }
            assert!(check_bind_policy(&[address], true, true).is_ok());
        }
    }
}
