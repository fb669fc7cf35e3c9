//! How a server is reached, and as whom: what the flags for TLS and credentials come to.

use std::{
    env,
    fmt::Display,
    fs::File,
    io::{BufRead, BufReader, Read},
    net::IpAddr,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use http::uri::Authority;
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, Error, crypto::ring, pki_types::ServerName,
};
use tonic::{
    Code, Request, Status,
    metadata::AsciiMetadataValue,
    service::Interceptor,
    transport::{ClientTlsConfig, Endpoint, Identity},
};

use super::as_text;
use crate::{
    cli::{ConnectionArguments, ServerAddress},
    pem,
};

/// The environment variable that can hold a credential.
pub(crate) const CREDENTIAL: &str = "HASHFINDER_CREDENTIAL";

/// How long a credential may be. Servers take so much of all headers together, and tokens have a kilobyte
/// or two.
const LONGEST_CREDENTIAL: u64 = 8 << 10;

/// What to do where it matters who asks.
const GIVE_A_CREDENTIAL: &str =
    "give a credential that it takes with --credential-file PATH or in HASHFINDER_CREDENTIAL";

/// How a server is reached, and as whom.
pub(super) struct Access {
    tls: Option<ClientTlsConfig>,
    credential: Credential,
    shows_certificate: bool,
}

impl Access {
    /// Reads what the flags name, before anything is sent.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or holds something else, only a part of what is needed was given, or the
    /// credential would be sent where others can read it.
    pub(super) fn new(server: &ServerAddress, arguments: &ConnectionArguments) -> Result<Access> {
        let credential = Credential::read(arguments)?;
        let is_private = match server {
            ServerAddress::Tls(_) | ServerAddress::Unix(_) => true,
            ServerAddress::Tcp(authority) => is_loopback(authority),
        };
        if credential.0.is_some() && !is_private && !arguments.send_credential_unencrypted {
            bail!(
                "a credential is not sent to {server} without TLS, for whoever is on the way could use it; give \
                 --tls, or --send-credential-unencrypted if nobody is"
            );
        }
        let tls = match server {
            ServerAddress::Tls(authority) => Some(tls_config(authority, arguments)?),
            ServerAddress::Tcp(_) | ServerAddress::Unix(_) => None,
        };
        Ok(Access {
            tls,
            credential,
            shows_certificate: arguments.tls_client_certificate.is_some(),
        })
    }

    pub(super) fn endpoint(&self, server: &ServerAddress) -> Result<Endpoint> {
        let endpoint = Endpoint::from_shared(server.uri())
            .with_context(|| format!("{server} is not a server's address"))?;
        let Some(tls) = &self.tls else {
            return Ok(endpoint);
        };
        endpoint.tls_config(tls.clone()).with_context(|| {
            "cannot begin with TLS; give the authorities to trust with --tls-ca if this system has none"
        })
    }

    pub(super) fn credential(&self) -> Credential {
        self.credential.clone()
    }

    /// What keeps us from ever coming together by TLS, and what to do about it; `None` if the error is
    /// about something else.
    pub(super) fn tls_failure(
        &self,
        error: &(dyn std::error::Error + 'static),
        server: &ServerAddress,
    ) -> Option<String> {
        self.tls.as_ref()?;
        let error = tls_error(error)?;
        let (certificate, ours) = (
            format!("the certificate of the server at {server}"),
            match self.shows_certificate {
                true => "give another with --tls-client-certificate and --tls-client-key",
                false => "give one with --tls-client-certificate and --tls-client-key",
            },
        );
        Some(match &error {
            Error::InvalidCertificate(wrong) => match wrong {
                CertificateError::UnknownIssuer => format!(
                    "{certificate} comes from no authority that is trusted here; give the authority's with \
                     --tls-ca PATH"
                ),
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => {
                    format!(
                        "{certificate} is for another name ({}); give the right one with --tls-server-name",
                        as_text(&wrong.to_string())
                    )
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    format!("{certificate} has expired; it has to be renewed there")
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    format!("{certificate} is not valid yet; look whether the clock here is right")
                }
                wrong => format!("{certificate} is wrong: {}", as_text(&wrong.to_string())),
            },
            Error::InvalidMessage(_) => format!(
                "what listens at {server} does not speak TLS; leave out https:// and the flags for TLS if that \
                 is meant to be"
            ),
            Error::AlertReceived(alert) => match alert {
                AlertDescription::CertificateRequired => {
                    format!("the server at {server} wants to see a certificate of ours; {ours}")
                }
                AlertDescription::HandshakeFailure if !self.shows_certificate => format!(
                    "the server at {server} refuses TLS with us ({alert:?}); if it wants to see a certificate of \
                     ours, {ours}"
                ),
                AlertDescription::AccessDenied
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::DecryptError
                | AlertDescription::UnknownCA
                | AlertDescription::UnsupportedCertificate => format!(
                    "the server at {server} does not take our certificate ({alert:?}); {ours}"
                ),
                AlertDescription::NoApplicationProtocol => format!(
                    "what listens at {server} speaks TLS, but not HTTP/2; give the address of a `hashfinder serve`"
                ),
                alert => format!("the server at {server} refuses TLS with us ({alert:?})"),
            },
            error => format!(
                "there is no TLS with the server at {server}: {}",
                as_text(&error.to_string())
            ),
        })
    }
}

/// What TLS has to say in an error.
fn tls_error(error: &(dyn std::error::Error + 'static)) -> Option<Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        // An error of I/O does not give what it holds as its source.
        let io = error.downcast_ref::<std::io::Error>();
        let inner = io.and_then(std::io::Error::get_ref);
        let tls = inner.and_then(|inner| inner.downcast_ref::<Error>());
        if let Some(tls) = tls.or_else(|| error.downcast_ref()) {
            return Some(tls.clone());
        }
        // In TLS 1.3 a server judges our certificate when we think that all is well; then the word comes
        // through HTTP/2, which leaves of it nothing but the text.
        let text = error.to_string();
        let judgement = JUDGEMENTS.map(Error::AlertReceived).into_iter();
        let mut judgement = judgement.filter(|alert| text.ends_with(&alert.to_string()));
        if let Some(alert) = judgement.next() {
            return Some(alert);
        }
        next = error.source();
    }
    None
}

/// What a server can say about a client's certificate.
const JUDGEMENTS: [AlertDescription; 9] = [
    AlertDescription::AccessDenied,
    AlertDescription::BadCertificate,
    AlertDescription::CertificateExpired,
    AlertDescription::CertificateRequired,
    AlertDescription::CertificateRevoked,
    AlertDescription::CertificateUnknown,
    AlertDescription::DecryptError,
    AlertDescription::UnknownCA,
    AlertDescription::UnsupportedCertificate,
];

fn tls_config(authority: &Authority, arguments: &ConnectionArguments) -> Result<ClientTlsConfig> {
    let mut config = ClientTlsConfig::new();
    config = match &arguments.tls_ca {
        Some(path) => config.trust_anchors(pem::authorities(path)?.roots),
        None => config.with_native_roots(),
    };
    config = match (&arguments.tls_client_certificate, &arguments.tls_client_key) {
        (Some(certificate), Some(key)) => {
            // So that it is told here what is wrong with them.
            pem::identity(certificate, key, &ring::default_provider())?;
            let [certificate, key] = [certificate, key].map(|path| pem::read(path));
            config.identity(Identity::from_pem(certificate?, key?))
        }
        (Some(_), None) => {
            bail!("--tls-client-certificate needs its key: give --tls-client-key too")
        }
        (None, Some(_)) => {
            bail!("--tls-client-key needs its certificate: give --tls-client-certificate too")
        }
        (None, None) => config,
    };
    let host = bare_host(authority);
    let name = arguments.tls_server_name.as_deref().unwrap_or(host);
    ensure!(
        ServerName::try_from(name).is_ok(),
        "{name:?} can be no server's name in a certificate; give another with --tls-server-name"
    );
    Ok(config.domain_name(name))
}

/// A host without the brackets of IPv6.
fn bare_host(authority: &Authority) -> &str {
    authority.host().trim_matches(['[', ']'])
}

fn is_loopback(authority: &Authority) -> bool {
    let host = bare_host(authority);
    let address = host.parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost")
        || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

/// What shows a server who asks, with every RPC. It is never shown to anybody else.
#[derive(Clone)]
pub(crate) struct Credential(Option<AsciiMetadataValue>);

impl Credential {
    /// The one in the file that is named, or else in the environment.
    fn read(arguments: &ConnectionArguments) -> Result<Credential> {
        if let Some(path) = &arguments.credential_file {
            let shown = path.display();
            let line = first_line(path).with_context(|| format!("cannot read {shown}"))?;
            return Credential::of(&line, format_args!("the first line of {shown}"));
        }
        match env::var(CREDENTIAL) {
            // As with other variables.
            Ok(value) if value.is_empty() => Ok(Credential(None)),
            Ok(value) => Credential::of(&value, CREDENTIAL),
            Err(env::VarError::NotPresent) => Ok(Credential(None)),
            Err(env::VarError::NotUnicode(_)) => bail!("{CREDENTIAL} holds no credential"),
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
                "{place} holds no credential: that is an API key or a token, up to {LONGEST_CREDENTIAL} \
                 characters without a space"
            )
        })?;
        // So that it is in no log, and in no table of HTTP/2's header compression.
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

fn first_line(path: &Path) -> std::io::Result<String> {
    let mut line = String::new();
    // With room for what is too long to be seen as such.
    let file = File::open(path)?.take(2 * LONGEST_CREDENTIAL);
    BufReader::new(file).read_line(&mut line)?;
    Ok(line)
}

/// What there is to do where a server ends a call because of who asks; `None` if that is not why.
pub(crate) fn advice(status: &Status, server: &ServerAddress) -> Option<String> {
    let message = as_text(status.message());
    match status.code() {
        Code::Unauthenticated => Some(format!(
            "the server at {server} does not know who asks: {message}; {GIVE_A_CREDENTIAL}"
        )),
        Code::PermissionDenied => Some(format!(
            "the server at {server} does not allow that: {message}; if you may do it, {GIVE_A_CREDENTIAL}"
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
    fn loopback() {
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
    fn credentials() {
        let Credential(value) = Credential::of(" key7.3vQ-_Zx9==\r\n", "here").unwrap();
        let value = value.unwrap();
        assert_eq!(value.to_str().unwrap(), "Bearer key7.3vQ-_Zx9==");
        // It is shown by nobody who prints the headers.
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
            assert!(error.starts_with("here holds no credential: "), "{error}");
            assert!(!error.contains("words"), "{error}");
        }
    }

    #[test]
    fn what_a_server_thinks_of_our_certificate_is_found_in_any_wrapping() {
        let wanted = Error::AlertReceived(AlertDescription::CertificateRequired);
        let by_io = std::io::Error::new(std::io::ErrorKind::InvalidData, wanted.clone());
        let by_text = std::io::Error::other(wanted.to_string());
        for error in [by_io, by_text] {
            let error = anyhow::Error::new(error).context("outside");
            assert_eq!(tls_error(error.as_ref()), Some(wanted.clone()));
        }
        let other = std::io::Error::other("certificate required");
        assert_eq!(tls_error(&other), None);
    }
}
