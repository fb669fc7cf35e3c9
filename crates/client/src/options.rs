//! Options of a connection: TLS and credentials.

use std::{ffi::OsString, path::PathBuf};

/// Options of a connection: TLS and credentials. The default trusts the system's authorities, and
/// has no credential.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectOptions {
    /// PEM file of the authorities to trust, instead of the system's.
    pub tls_ca: Option<PathBuf>,
    /// PEM file of the client's certificate chain, which begins with the client's own certificate.
    pub tls_client_certificate: Option<PathBuf>,
    /// PEM file of the private key of the client's certificate.
    pub tls_client_key: Option<PathBuf>,
    /// Name for which the server's certificate must be valid. Default: the host of the server's
    /// address.
    pub tls_server_name: Option<String>,
    /// File whose first line is the credential to send with every RPC.
    pub credential_file: Option<PathBuf>,
    /// The credential itself, used if `credential_file` is `None`.
    pub credential: Option<OsString>,
    /// Whether to send the credential even if others on the network could read it.
    pub send_credential_unencrypted: bool,
}
