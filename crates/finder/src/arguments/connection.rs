//! The arguments for connections to a server.

use std::{
    env,
    path::{Path, PathBuf},
};

use clap::Args;
use hashfinder_client::{CREDENTIAL, ConnectOptions, ServerAddress};

use crate::terminal::quoted;

/// Heading of these flags in the help. It is given for each flag, because `next_help_heading` would
/// also apply to flags after these.
const HEADING: &str = "Connection";

/// How to connect to a server, and the credential.
#[derive(Args, Clone, Debug)]
pub(crate) struct ConnectionArguments {
    /// Use TLS
    ///
    /// An https:// address or any other TLS flag implies it. Without --tls-ca, the system's
    /// certificate authorities are trusted. Unix sockets never use TLS.
    #[arg(long, help_heading = HEADING)]
    tls: bool,

    /// Certificate authorities to trust (PEM), instead of those of the system
    #[arg(long, help_heading = HEADING, value_name = "PATH")]
    tls_ca: Option<PathBuf>,

    /// Client certificate chain (PEM)
    ///
    /// The client's own certificate comes first.
    #[arg(long, help_heading = HEADING, value_name = "PATH")]
    tls_client_certificate: Option<PathBuf>,

    /// Private key of the client certificate (PEM)
    #[arg(long, help_heading = HEADING, value_name = "PATH")]
    tls_client_key: Option<PathBuf>,

    /// Name that the server's certificate must be valid for [default: HOST]
    #[arg(long, help_heading = HEADING, value_name = "NAME")]
    tls_server_name: Option<String>,

    /// File whose first line is the credential: an API key or a token
    ///
    /// It is sent with every call. Alternatively, set the environment variable
    /// HASHFINDER_CREDENTIAL to the credential itself. No flag takes the credential itself, because
    /// all users of a machine can see the arguments of a process.
    #[arg(long, help_heading = HEADING, value_name = "PATH")]
    credential_file: Option<PathBuf>,

    /// Send the credential even over an unencrypted network connection
    ///
    /// By default, it is sent only if the connection uses TLS, is a Unix socket, or goes to a
    /// loopback address.
    #[arg(long, help_heading = HEADING)]
    send_credential_unencrypted: bool,
}

impl ConnectionArguments {
    /// Returns the server's address, with TLS if the flags say so.
    pub(crate) fn address(&self, server: &ServerAddress) -> ServerAddress {
        match server {
            ServerAddress::Tcp(authority) if self.asks_for_tls() => {
                ServerAddress::Tls(authority.clone())
            }
            server => server.clone(),
        }
    }

    /// Returns the flags for connecting to this server in the same way, quoted for a shell. They do
    /// not depend on settings in the environment or the file. They contain the paths of credentials
    /// and keys, but no credential.
    pub(crate) fn flags(&self, server: &ServerAddress) -> String {
        let ConnectionArguments {
            // The address says whether to use TLS.
            tls: _,
            tls_ca,
            tls_client_certificate,
            tls_client_key,
            tls_server_name,
            credential_file,
            send_credential_unencrypted,
        } = self;
        let server = self.address(server);
        let mut flags = format!("--server {}", quoted(&server.to_string()));
        let mut add = |flag: &str, value: &str| flags += &format!(" {flag} {}", quoted(value));
        let mut path = |flag: &str, path: &Option<PathBuf>| {
            if let Some(path) = path.as_deref().map(Path::to_string_lossy) {
                add(flag, &path);
            }
        };
        // A Unix socket has no TLS, so these flags would have no effect.
        if let ServerAddress::Tls(_) = server {
            path("--tls-ca", tls_ca);
            path("--tls-client-certificate", tls_client_certificate);
            path("--tls-client-key", tls_client_key);
        }
        path("--credential-file", credential_file);
        if let (ServerAddress::Tls(_), Some(name)) = (&server, tls_server_name) {
            add("--tls-server-name", name);
        }
        if *send_credential_unencrypted {
            flags += " --send-credential-unencrypted";
        }
        flags
    }

    fn asks_for_tls(&self) -> bool {
        let ConnectionArguments {
            tls,
            tls_ca,
            tls_client_certificate,
            tls_client_key,
            tls_server_name,
            credential_file: _,
            send_credential_unencrypted: _,
        } = self;
        let files = [tls_ca, tls_client_certificate, tls_client_key];
        *tls || tls_server_name.is_some() || files.into_iter().any(Option::is_some)
    }
}

impl From<&ConnectionArguments> for ConnectOptions {
    fn from(arguments: &ConnectionArguments) -> ConnectOptions {
        let arguments = arguments.clone();
        ConnectOptions {
            tls_ca: arguments.tls_ca,
            tls_client_certificate: arguments.tls_client_certificate,
            tls_client_key: arguments.tls_client_key,
            tls_server_name: arguments.tls_server_name,
            credential_file: arguments.credential_file,
            // An empty variable counts as unset, as for all settings.
            credential: env::var_os(CREDENTIAL).filter(|value| !value.is_empty()),
            send_credential_unencrypted: arguments.send_credential_unencrypted,
        }
    }
}
