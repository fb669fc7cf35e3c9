//! Settings for authentication.

use std::path::PathBuf;

use crate::auth::algorithm::Algorithm;

/// Credentials that a server accepts, in addition to client certificates. Without any of them,
/// clients are identified by their addresses or, on a Unix socket, by their users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// File of API keys. It is read again when it changes.
    pub api_keys: Option<PathBuf>,
    /// File with the public keys (PEM) of the issuer of JSON web tokens.
    pub jwt_keys: Option<PathBuf>,
    /// File with the secret that the issuer signs tokens with, if it has no public keys.
    pub jwt_secret: Option<PathBuf>,
    /// Accepted signature algorithms of tokens. Required for tokens.
    pub jwt_algorithms: Vec<Algorithm>,
    /// The audience (`aud`) that a token has to name. Required for tokens.
    pub jwt_audience: Option<String>,
    /// The issuer (`iss`) that a token has to name. Without this setting, the issuer is not
    /// checked, only the signature.
    pub jwt_issuer: Option<String>,
    /// Allows the server to listen without TLS, authentication or both on addresses that other
    /// machines can reach.
    pub listen_unprotected: bool,
}
