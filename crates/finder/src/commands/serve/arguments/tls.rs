//! The arguments of `serve`: TLS.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use hashfinder_transport::TlsFiles;

/// TLS, as `serve` speaks it.
#[derive(Args, Debug)]
pub(super) struct TlsArguments {
    /// Speak TLS alone, with the certificate in this PEM file
    ///
    /// The server's own certificate comes first, then those that lead to its authority. TLS 1.2 and
    /// 1.3 are spoken. The files of TLS are read anew when they change, for the connections that
    /// come then; files that do not fit together change nothing, and the log tells.
    #[arg(long, value_name = "PATH", conflicts_with = "unix")]
    tls_certificate: Option<PathBuf>,

    /// The private key of that certificate, in PEM; only the server should be able to read it
    #[arg(long, value_name = "PATH", conflicts_with = "unix")]
    tls_key: Option<PathBuf>,

    /// Ask clients for certificates, which an authority in this PEM file has to have signed
    ///
    /// A client with one is the client cert: and the certificate's first DNS name or URI, or
    /// sha256: and its fingerprint where it has neither.
    #[arg(long, value_name = "PATH", conflicts_with = "unix")]
    tls_client_ca: Option<PathBuf>,

    /// Whether a client has to have a certificate, or may come without one and be known by
    /// something else
    ///
    /// A certificate that is wrong is refused in either case.
    #[arg(long, value_enum, value_name = "WHETHER", default_value_t)]
    tls_client_certificates: ClientCertificates,
}

/// Whether clients have to have certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum ClientCertificates {
    /// Without one there is no connection
    #[default]
    Required,
    /// An API key, for one, does as well
    Optional,
}

impl TlsArguments {
    /// Returns the TLS files, or `None` if none was given.
    ///
    /// # Errors
    ///
    /// If a flag is given without another that it needs.
    pub(super) fn files(self) -> Result<Option<TlsFiles>> {
        let (certificate, key) = match (self.tls_certificate, self.tls_key) {
            (Some(certificate), Some(key)) => (certificate, key),
            (Some(_), None) => bail!("--tls-certificate needs its key: give --tls-key too"),
            (None, Some(_)) => bail!("--tls-key needs its certificate: give --tls-certificate too"),
            (None, None) if self.tls_client_ca.is_some() => bail!(
                "--tls-client-ca is of use with TLS alone: give --tls-certificate and --tls-key too"
            ),
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
