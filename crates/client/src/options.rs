//! TLS and credentials of a connection.

use std::{ffi::OsString, path::PathBuf};

/// TLS and credentials of a connection. The default trusts the system's authorities, and has no
/// credential.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectOptions {
    /// PEM file of the authorities to trust, instead of the system's.
    pub tls_ca: Option<PathBuf>,
    /// PEM file of the client's certificate chain, from its own certificate on.
    pub tls_client_certificate: Option<PathBuf>,
    /// PEM file of that certificate's private key.
    pub tls_client_key: Option<PathBuf>,
    /// Name that the server's certificate has to be valid for. Default: the host of its address.
    pub tls_server_name: Option<String>,
    /// File whose first line is the credential to send with every RPC.
    pub credential_file: Option<PathBuf>,
    /// The credential itself, used if `credential_file` is `None`.
    pub credential: Option<OsString>,
    /// Send the credential even if others can read it on its way.
    pub send_credential_unencrypted: bool,
}
