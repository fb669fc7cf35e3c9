//! The arguments of `serve`: authentication.

use std::path::PathBuf;

use clap::{
    Args,
    builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser},
};
use hashfinder_server::auth::{self, Algorithm};

/// How the server identifies its clients.
#[derive(Args, Debug)]
#[command(next_help_heading = "Authentication")]
pub(super) struct AuthArguments {
    /// Accept the API keys in this file, created with `hashfinder keys`
    ///
    /// Clients send a key as `authorization: Bearer ID.SECRET` and are named key:ID. The server
    /// checks the file once a second. Changes also apply to open connections and running searches.
    /// With --api-keys, --jwt-keys or --jwt-secret, clients on a network must send a credential.
    #[arg(long, value_name = "PATH")]
    api_keys: Option<PathBuf>,

    /// Accept JSON web tokens that verify against a public key in this file
    ///
    /// The file has up to 16 public keys of the issuer as PEM: RSA with at least 2048 bits, P-256,
    /// P-384 or Ed25519. Clients send a token as `authorization: Bearer TOKEN` and are named
    /// jwt:SUBJECT. The server reads the file once. --operator jwt:SUBJECT makes an operator; no
    /// claim does.
    #[arg(long, value_name = "PATH", conflicts_with = "jwt_secret")]
    jwt_keys: Option<PathBuf>,

    /// Accept JSON web tokens signed with the shared secret in this file
    ///
    /// The secret has at least 32 bytes. Anyone who knows it can make tokens, so only the issuer
    /// and this server may know it.
    #[arg(long, value_name = "PATH")]
    jwt_secret: Option<PathBuf>,

    /// Signature algorithm of tokens, such as ES256; repeatable
    ///
    /// It is required with --jwt-keys and --jwt-secret. Name only those that the issuer uses: any
    /// others only help an attacker. RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384,
    /// EdDSA, HS256, HS384 and HS512 are supported.
    #[arg(long = "jwt-algorithm", value_name = "ALGORITHM", value_parser = algorithm(), hide_possible_values = true)]
    jwt_algorithms: Vec<Algorithm>,

    /// Audience (aud) that tokens must name
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    jwt_audience: Option<String>,

    /// Issuer (iss) that a token must name [default: any]
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    jwt_issuer: Option<String>,
}

impl AuthArguments {
    pub(super) fn settings(self, listen_unprotected: bool) -> auth::Settings {
        auth::Settings {
            api_keys: self.api_keys,
            jwt_keys: self.jwt_keys,
            jwt_secret: self.jwt_secret,
            jwt_algorithms: self.jwt_algorithms,
            jwt_audience: self.jwt_audience,
            jwt_issuer: self.jwt_issuer,
            listen_unprotected,
        }
    }
}

fn algorithm() -> impl TypedValueParser<Value = Algorithm> {
    let names = PossibleValuesParser::new(Algorithm::ALL.map(Algorithm::name));
    names.try_map(|name| Algorithm::named(&name).ok_or("unknown algorithm"))
}
