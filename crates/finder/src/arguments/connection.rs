//! The arguments for connections to a server.

use std::{
    env,
    path::{Path, PathBuf},
};

use clap::Args;
use hashfinder_client::{CREDENTIAL, ConnectOptions, ServerAddress};

use crate::terminal::quoted;

/// Heading of these flags in the help. As a command's next heading it would also stand above other
/// flags.
const HEADING: &str = "How a server is asked";

/// How a server is reached, and who asks.
#[derive(Args, Clone, Debug)]
pub(crate) struct ConnectionArguments {
    /// Speak TLS with the server
    ///
    /// https://HOST:PORT says the same, and so does each of the other flags for TLS. Without --tls-ca, those
    /// authorities are trusted that this system trusts. A Unix socket needs no TLS, and has none.
    #[arg(long, help_heading = HEADING)]
    tls: bool,

    /// Trust the authorities in this PEM file to know the server, and no others
    #[arg(long, help_heading = HEADING, value_name = "PATH")]
    tls_ca: Option<PathBuf>,

    /// Show the server the certificate in this PEM file, in which those follow that lead to its
    /// authority
    #[arg(long, help_heading = HEADING, value_name = "PATH")]
    tls_client_certificate: Option<PathBuf>,

    /// The private key of that certificate, in PEM
    #[arg(long, help_heading = HEADING, value_name = "PATH")]
    tls_client_key: Option<PathBuf>,

    /// The name that the server's certificate has to be for [default: the HOST that is asked]
    #[arg(long, help_heading = HEADING, value_name = "NAME")]
    tls_server_name: Option<String>,

    /// Send the credential that is the first line of this file
    ///
    /// It is an API key or a token, and goes with every RPC. HASHFINDER_CREDENTIAL can hold one
    /// itself; no flag can, for everybody on the machine sees the flags of a process.
    #[arg(long, help_heading = HEADING, value_name = "PATH")]
    credential_file: Option<PathBuf>,

    /// Send the credential even where others can read it on its way
    ///
    /// Else it is sent by TLS, by a Unix socket or to this machine alone.
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

    /// Returns the flags that connect to this server in the same way, whatever the settings are
    /// then, quoted for a shell. They contain the paths of credentials and keys, but no credential.
    pub(crate) fn flags(&self, server: &ServerAddress) -> String {
        let ConnectionArguments {
            // It is in the address.
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
            // An empty variable counts as unset, as with all others.
            credential: env::var_os(CREDENTIAL).filter(|value| !value.is_empty()),
            send_credential_unencrypted: arguments.send_credential_unencrypted,
        }
    }
}
