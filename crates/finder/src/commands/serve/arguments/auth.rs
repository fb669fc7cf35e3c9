//! The arguments of `serve`: who may do what.

use std::path::PathBuf;

use clap::{
    Args,
    builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser},
};
use hashfinder_server::auth::{self, Algorithm};

/// Who may do what. What is given nowhere is empty.
#[derive(Args, Debug)]
pub(super) struct AuthArguments {
    /// Take the API keys in this file, which `hashfinder keys` makes
    ///
    /// Clients send one as `authorization: Bearer ID.SECRET`, and are called key:ID. The file is
    /// checked once a second, and changes also apply to connections and searches that already exist.
    /// With this, --jwt-keys or --jwt-secret, clients on a network must send a credential.
    #[arg(long, value_name = "PATH")]
    api_keys: Option<PathBuf>,

    /// Take JSON web tokens that were signed with one of the keys in this file
    ///
    /// It has the issuer's public keys as PEM, 16 at most: RSA of 2048 bits and more, P-256, P-384
    /// or Ed25519. Clients show a token as `authorization: Bearer TOKEN`, and are called jwt: and
    /// its subject. It is read once. --operator jwt:SUBJECT makes an operator; no claim does.
    #[arg(long, value_name = "PATH", conflicts_with = "jwt_secret")]
    jwt_keys: Option<PathBuf>,

    /// Take JSON web tokens that were signed with the secret in this file, of 32 bytes or more
    ///
    /// Anyone who knows it can make tokens, so only the issuer and this server may know it.
    #[arg(long, value_name = "PATH")]
    jwt_secret: Option<PathBuf>,

    /// How tokens may be signed; may be given more than once
    ///
    /// There is no default: an issuer uses one or two of them, and all others are nobody's but an
    /// attacker's.
    #[arg(long = "jwt-algorithm", value_name = "ALGORITHM", value_parser = algorithm())]
    jwt_algorithms: Vec<Algorithm>,

    /// What a token's audience (aud) has to name: this service, as its issuer calls it
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    jwt_audience: Option<String>,

    /// Whom a token has to name as its issuer (iss) [default: anybody who has the key]
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    jwt_issuer: Option<String>,

    /// Listen also where other machines can reach it, without TLS, authentication or both
    ///
    /// Without this, and without both of them, only a loopback address or a Unix socket is listened
    /// on. It is for a network where everybody may use the server, or behind a proxy that sees to
    /// what is missing.
    #[arg(long)]
    listen_unprotected: bool,
}

impl AuthArguments {
    pub(super) fn settings(self) -> auth::Settings {
        auth::Settings {
            api_keys: self.api_keys,
            jwt_keys: self.jwt_keys,
            jwt_secret: self.jwt_secret,
            jwt_algorithms: self.jwt_algorithms,
            jwt_audience: self.jwt_audience,
            jwt_issuer: self.jwt_issuer,
            listen_unprotected: self.listen_unprotected,
        }
    }
}

fn algorithm() -> impl TypedValueParser<Value = Algorithm> {
    let names = PossibleValuesParser::new(Algorithm::ALL.map(Algorithm::name));
    names.try_map(|name| Algorithm::named(&name).ok_or("there is no such algorithm"))
}
