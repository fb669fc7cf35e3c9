//! The arguments of every command that asks a server: how it is reached, and who asks.

use std::path::PathBuf;

use clap::Args;

use super::ServerAddress;

/// How a server is reached, and who asks.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "How a server is asked")]
pub(crate) struct ConnectionArguments {
    /// Speak TLS with the server
    ///
    /// https://HOST:PORT says the same, and so does each of the other flags for TLS. Without --tls-ca, those
    /// authorities are trusted that this system trusts. A Unix socket needs no TLS, and has none.
    #[arg(long)]
    pub(crate) tls: bool,

    /// Trust the authorities in this PEM file to know the server, and no others
    #[arg(long, value_name = "PATH")]
    pub(crate) tls_ca: Option<PathBuf>,

    /// Show the server the certificate in this PEM file, in which those follow that lead to its authority
    #[arg(long, value_name = "PATH")]
    pub(crate) tls_client_certificate: Option<PathBuf>,

    /// The private key of that certificate, in PEM
    #[arg(long, value_name = "PATH")]
    pub(crate) tls_client_key: Option<PathBuf>,

    /// The name that the server's certificate has to be for [default: the HOST that is asked]
    #[arg(long, value_name = "NAME")]
    pub(crate) tls_server_name: Option<String>,

    /// Send the credential that is the first line of this file
    ///
    /// It is an API key or a token, and goes with every RPC. HASHFINDER_CREDENTIAL can hold one itself; no
    /// flag can, for everybody on the machine sees the flags of a process.
    #[arg(long, value_name = "PATH")]
    pub(crate) credential_file: Option<PathBuf>,

    /// Send the credential even where others can read it on its way
    ///
    /// Else it is sent by TLS, by a Unix socket or to this machine alone.
    #[arg(long)]
    pub(crate) send_credential_unencrypted: bool,
}

impl ConnectionArguments {
    /// The server's address, given what the flags say of TLS.
    pub(crate) fn address(&self, server: &ServerAddress) -> ServerAddress {
        match server {
            ServerAddress::Tcp(authority) if self.asks_for_tls() => {
                ServerAddress::Tls(authority.clone())
            }
            server => server.clone(),
        }
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
