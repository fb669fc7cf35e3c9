//! The arguments of `serve`: TLS.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use hashfinder_transport::TlsFiles;

/// Certificates of the server and its clients.
#[derive(Args, Debug)]
#[command(next_help_heading = "TLS")]
pub(super) struct TlsArguments {
    /// The server's certificate chain (PEM); only TLS connections are then accepted
    ///
    /// The server's own certificate comes first. TLS 1.2 and 1.3 are accepted. When one of the TLS
    /// files changes, the server reads them again and uses them for new connections. If they do not
    /// fit together, it keeps the old ones and logs an error.
    #[arg(long, value_name = "PATH", conflicts_with = "unix")]
    tls_certificate: Option<PathBuf>,

    /// Private key of that certificate (PEM)
    ///
    /// Only the server should be able to read it.
    #[arg(long, value_name = "PATH", conflicts_with = "unix")]
    tls_key: Option<PathBuf>,

    /// Certificate authorities (PEM) to verify client certificates against
    ///
    /// Clients must then have a certificate, unless it is optional (see below). A client is named
    /// cert: and the first DNS name or URI of its certificate or, without one, cert:sha256: and its
    /// fingerprint.
    #[arg(long, value_name = "PATH", conflicts_with = "unix")]
    tls_client_ca: Option<PathBuf>,

    /// Whether clients need a certificate: required or optional
    ///
    /// With optional, another credential is enough. The server rejects an invalid certificate in
    /// both cases.
    #[arg(
        long,
        value_enum,
        value_name = "MODE",
        default_value_t,
        hide_possible_values = true
    )]
    tls_client_certificates: ClientCertificates,
}

/// Whether clients need a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum ClientCertificates {
    /// The server closes a connection without one
    #[default]
    Required,
    /// Another credential, such as an API key, is enough
    Optional,
}

impl TlsArguments {
    /// Returns the TLS files, or `None` if none was given.
    ///
    /// # Errors
    ///
    /// If a flag is given without another one that it needs.
    pub(super) fn files(self) -> Result<Option<TlsFiles>> {
        let (certificate, key) = match (self.tls_certificate, self.tls_key) {
            (Some(certificate), Some(key)) => (certificate, key),
            (Some(_), None) => {
                bail!("--tls-certificate needs its private key: give --tls-key, too")
            }
            (None, Some(_)) => {
                bail!("--tls-key needs its certificate: give --tls-certificate, too")
            }
            (None, None) if self.tls_client_ca.is_some() => {
                bail!("--tls-client-ca needs TLS: give --tls-certificate and --tls-key, too")
            }
            (None, None) => return Ok(None),
        };
        let whether = match self.tls_client_certificates {
            ClientCertificates::Required => hashfinder_transport::ClientCertificates::Required,
            ClientCertificates::Optional => hashfinder_transport::ClientCertificates::Optional,
        };
        Ok(Some(TlsFiles {
            certificate,
            key,
            clients: self.tls_client_ca.map(|path| (path, whether)),
        }))
    }
}
