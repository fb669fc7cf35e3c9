//! Prepares the TLS setup and the credential of a connection, from its options.

use std::{env, fmt::Display, fs, io::ErrorKind, net::IpAddr, sync::Arc};

use anyhow::{Context, Result, anyhow, bail, ensure};
use hashfinder_system::{files, text::as_text, threads};
use hashfinder_tls::{error as tls_error, pem};
use http::uri::Authority;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        AlertDescription, CertificateError, ClientConfig, Error, InvalidMessage, RootCertStore,
        crypto::ring, pki_types::ServerName, sign::SingleCertAndKey,
    },
};
use tonic::{Code, Request, Status, metadata::AsciiMetadataValue, service::Interceptor};

use crate::{
    address::{ServerAddress, bare_host},
    connector::{ALPN, ConnectFailure, Connector},
    options::ConnectOptions,
};

/// Environment variable that can hold a credential. The program reads it; this crate only names it
/// in messages.
pub const CREDENTIAL: &str = "HASHFINDER_CREDENTIAL";

/// Maximum length of a credential, in bytes. gRPC servers commonly accept 8 KiB for all headers
/// together, and tokens have a kilobyte or two.
const LONGEST_CREDENTIAL: u64 = 8 << 10;

/// Maximum length of a credential file, in bytes. Only its first line is used.
const LONGEST_CREDENTIAL_FILE: u64 = 1 << 20;

/// How to give a credential, for messages.
const CREDENTIAL_OPTIONS: &str = "with --credential-file PATH or in HASHFINDER_CREDENTIAL";

/// TLS and the credential of connections to a server.
pub(crate) struct Access {
    tls: Option<(TlsConnector, ServerName<'static>)>,
    credential: Credential,
    shows_certificate: bool,
}

impl Access {
    /// Reads the files that the options name, before anything is sent. Reading may block, so it is
    /// done on a separate thread; dropping the future abandons it.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new); also if the thread cannot be started.
    pub(crate) async fn read(server: &ServerAddress, options: &ConnectOptions) -> Result<Access> {
        let (server, options) = (server.clone(), options.clone());
        threads::aside("credentials", move || Access::new(&server, &options)).await?
    }

    /// Reads the files that the options name, before anything is sent.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or has unexpected content, if an option lacks another option that
    /// it needs, or if the credential would be sent where others can read it.
    fn new(server: &ServerAddress, options: &ConnectOptions) -> Result<Access> {
        let credential = Credential::read(options)?;
        let is_private = match server {
            ServerAddress::Tls(_) | ServerAddress::Unix(_) => true,
            ServerAddress::Tcp(authority) => is_loopback(authority),
        };
        if credential.0.is_some() && !is_private && !options.send_credential_unencrypted {
            bail!(
                "cannot send a credential to {server} without TLS: others on the network could \
                 read it; give --tls, or --send-credential-unencrypted if you trust the network"
            );
        }
        let tls = match server {
            ServerAddress::Tls(authority) => Some(tls(authority, options)?),
            ServerAddress::Tcp(_) | ServerAddress::Unix(_) => None,
        };
        Ok(Access {
            tls,
            credential,
            shows_certificate: options.tls_client_certificate.is_some(),
        })
    }

    pub(crate) fn connector(&self, server: &ServerAddress) -> Connector {
        Connector::new(server.clone(), self.tls.clone())
    }

    pub(crate) fn credential(&self) -> Credential {
        self.credential.clone()
    }

    /// Returns why further connections to the server will fail, too, and what to do about it.
    pub(crate) fn advice(&self, failure: &ConnectFailure, server: &ServerAddress) -> String {
        let error = match failure {
            ConnectFailure::Tls(error) => error,
            ConnectFailure::SpeaksTls => {
                return format!(
                    "the server at {server} uses TLS; give --tls or --server https://{server}"
                );
            }
        };
        let certificate = format!("the certificate of the server at {server}");
        let ours = match self.shows_certificate {
            true => "give another with --tls-client-certificate and --tls-client-key",
            false => "give one with --tls-client-certificate and --tls-client-key",
        };
        let no_http2 = format!(
            "{server} is not a gRPC server: it speaks TLS but not HTTP/2; give the address of a \
             `hashfinder serve`"
        );
        match error {
            Error::InvalidCertificate(wrong) => {
                // The text may quote the certificate, so it is untrusted.
                let what = as_text(&tls_error::of_certificate(wrong));
                match wrong {
                    CertificateError::UnknownIssuer => format!(
                        "{certificate} was signed by an unknown authority; give the authority's \
                         certificate with --tls-ca PATH"
                    ),
                    CertificateError::NotValidForNameContext { presented, .. }
                        if !presented.is_empty() =>
                    {
                        format!("{certificate} {what}; give the right name with --tls-server-name")
                    }
                    CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                        format!("{certificate} {what}; check the clock of this machine")
                    }
                    _ => format!("{certificate} {what}; the server needs another certificate"),
                }
            }
            Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) => format!(
                "the server at {server} does not speak TLS; to connect without TLS, remove \
                 https:// and the --tls flags"
            ),
            Error::AlertReceived(AlertDescription::NoApplicationProtocol)
            | Error::NoApplicationProtocol => no_http2,
            Error::AlertReceived(alert) => match tls_error::of_rejection(*alert) {
                Some(why) if self.shows_certificate => {
                    format!("the server at {server} rejected the client certificate: {why}; {ours}")
                }
                // Versions before TLS 1.3 have no alert for a missing certificate.
                None if *alert == AlertDescription::HandshakeFailure && !self.shows_certificate => {
                    format!(
                        "the server at {server} ended the TLS handshake; if it requires a client \
                         certificate, {ours}"
                    )
                }
                None if *alert != AlertDescription::CertificateRequired => {
                    let what = tls_error::of_handshake(error, "server");
                    format!("the TLS handshake with the server at {server} failed: {what}")
                }
                _ => format!("the server at {server} requires a client certificate; {ours}"),
            },
            error => {
                let what = as_text(&tls_error::of_handshake(error, "server"));
                format!("the TLS handshake with the server at {server} failed: {what}")
            }
        }
    }
}

fn tls(
    authority: &Authority,
    options: &ConnectOptions,
) -> Result<(TlsConnector, ServerName<'static>)> {
    let name = options.tls_server_name.as_deref();
    let name = name.unwrap_or_else(|| bare_host(authority));
    let Ok(name) = ServerName::try_from(name.to_owned()) else {
        bail!("invalid server name {name:?}; give another with --tls-server-name");
    };
    let authorities = match &options.tls_ca {
        Some(path) => pem::authorities(path)?,
        None => authorities_of_system()?,
    };
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(authorities);
    let own = (&options.tls_client_certificate, &options.tls_client_key);
    let mut config = match own {
        (Some(certificate), Some(key)) => {
            let identity = pem::identity(certificate, key, &provider)?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)))
        }
        (Some(_), None) => {
            bail!("--tls-client-certificate requires --tls-client-key")
        }
        (None, Some(_)) => {
            bail!("--tls-client-key requires --tls-client-certificate")
        }
        (None, None) => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok((TlsConnector::from(Arc::new(config)), name))
}

fn authorities_of_system() -> Result<RootCertStore> {
    let mut authorities = RootCertStore::empty();
    // `load_native_certs` reads this file as a whole, however long it is, so it must be a regular
    // one.
    if let Some(path) = env::var_os("SSL_CERT_FILE")
        && let Ok(file) = fs::metadata(&path)
    {
        let is_regular = files::require_regular(&file);
        is_regular.with_context(|| format!("cannot use SSL_CERT_FILE={}", path.display()))?;
    }
    // Some of a system's certificates may be unreadable; the others suffice.
    let found = rustls_native_certs::load_native_certs();
    let (usable, _) = authorities.add_parsable_certificates(found.certs);
    ensure!(
        usable > 0,
        "this system has no trusted authorities; give a file of them with --tls-ca PATH"
    );
    Ok(authorities)
}

fn is_loopback(authority: &Authority) -> bool {
    let host = bare_host(authority);
    let address = host.parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost")
        || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

/// The credential that a client sends with every RPC. It is never printed.
#[derive(Clone)]
pub struct Credential(Option<AsciiMetadataValue>);

impl Credential {
    /// Reads the credential from the file that the options name, or takes the one that they
    /// contain.
    fn read(options: &ConnectOptions) -> Result<Credential> {
        if let Some(path) = &options.credential_file {
            let shown = path.display();
            let text = files::read(path, LONGEST_CREDENTIAL_FILE).map_err(|error| {
                let hint = match error.kind() {
                    // Not a regular file: for example, a pipe from a password manager.
                    ErrorKind::InvalidInput => format!("; set {CREDENTIAL} instead"),
                    _ => String::new(),
                };
                anyhow!("cannot read {shown}: {error}{hint}")
            })?;
            let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let line = String::from_utf8_lossy(line);
            return Credential::of(&line, format_args!("the first line of {shown}"));
        }
        match &options.credential {
            None => Ok(Credential(None)),
            Some(value) => Credential::of(&value.to_string_lossy(), CREDENTIAL),
        }
    }

    fn of(text: &str, place: impl Display) -> Result<Credential> {
        let text = text.trim();
        let is_one = !text.is_empty()
            && text.len() as u64 <= LONGEST_CREDENTIAL
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        let value = is_one
            .then(|| format!("Bearer {text}").parse().ok())
            .flatten();
        let value: Option<AsciiMetadataValue> = value;
        let mut value = value.with_context(|| {
            format!(
                "invalid credential in {place}: expected an API key or a token, at most \
                 {LONGEST_CREDENTIAL} characters without spaces"
            )
        })?;
        // Keeps the value out of logs, and out of the tables of HTTP/2's header compression.
        value.set_sensitive(true);
        Ok(Credential(Some(value)))
    }
}

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// Returns what to do if a server ended a call because of its credential, or `None` if the call
/// ended for another reason.
#[must_use]
pub fn advice(status: &Status, server: &ServerAddress) -> Option<String> {
    let message = as_text(status.message());
    match status.code() {
        Code::Unauthenticated => Some(format!(
            "authentication failed at {server}: {message}; give a valid one {CREDENTIAL_OPTIONS}"
        )),
        Code::PermissionDenied => Some(format!(
            "permission denied by {server}: {message}; give another credential {CREDENTIAL_OPTIONS}"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(text: &str) -> Authority {
        text.parse().unwrap()
    }

    #[test]
    fn loopback_hosts_are_recognized() {
        for here in [
            "localhost:1",
            "LocalHost:1",
            "127.0.0.1:1",
            "127.9.9.9:1",
            "[::1]:1",
        ] {
            assert!(is_loopback(&authority(here)), "{here}");
        }
        assert!(is_loopback(&authority("[::ffff:127.0.0.1]:1")));
        for elsewhere in [
            "localhost.example:1",
            "10.0.0.1:1",
            "[::]:1",
            "0.0.0.0:1",
            "128.0.0.1:1",
        ] {
            assert!(!is_loopback(&authority(elsewhere)), "{elsewhere}");
        }
    }

    #[test]
    fn credentials_are_validated_and_never_printed() {
        let Credential(value) = Credential::of(" key7.3vQ-_Zx9==\r\n", "here").unwrap();
        let value = value.unwrap();
        assert_eq!(value.to_str().unwrap(), "Bearer key7.3vQ-_Zx9==");
        // Printing the headers does not show the credential.
        assert!(!format!("{value:?}").contains("key7"));
        let long = "a".repeat(8 << 10);
        assert!(Credential::of(&long, "here").is_ok());
        for wrong in [
            "",
            " ",
            "two words",
            "a\tb",
            "schlüssel",
            &format!("{long}a"),
        ] {
            let error = Credential::of(wrong, "here")
                .map(|_| ())
                .unwrap_err()
                .to_string();
            assert!(error.starts_with("invalid credential in here: "), "{error}");
            assert!(!error.contains("words"), "{error}");
        }
    }
}
