//! Settings for authentication.

use std::path::PathBuf;

use crate::auth::algorithm::Algorithm;

/// Which credentials a server accepts. Without any, clients are identified by their addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// File of API keys. It is read again when it changes.
    pub api_keys: Option<PathBuf>,
    /// File with the public keys, in PEM, of the issuer of JSON web tokens.
    pub jwt_keys: Option<PathBuf>,
    /// File with the secret that the issuer signs tokens with, if it has no public keys.
    pub jwt_secret: Option<PathBuf>,
    /// Accepted signature algorithms of tokens. Required for tokens.
    pub jwt_algorithms: Vec<Algorithm>,
    /// The audience (`aud`) that a token has to name. Required for tokens.
    pub jwt_audience: Option<String>,
    /// The issuer (`iss`) that a token has to name. Without this setting, every issuer that has the
    /// key is accepted.
    pub jwt_issuer: Option<String>,
    /// Allows addresses that other machines can reach even without TLS, authentication or both.
    pub listen_unprotected: bool,
}
