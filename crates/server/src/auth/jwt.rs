//! JSON web tokens (RFC 7519), signed by one issuer whose keys are configured.
//!
//! A token does not choose how it is verified. Its `alg` header only selects among the keys that
//! the operator has configured for that algorithm, so a public key never serves as a shared secret.

use std::{
    fmt,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hashfinder_system::files;
use hashfinder_transport::ClientName;
use ring::{
    hmac,
    signature::{self, UnparsedPublicKey, VerificationAlgorithm},
};
use serde_json::Value;
use spki::{ObjectIdentifier, SubjectPublicKeyInfoRef, der::pem};

use crate::auth::{algorithm::Algorithm, settings::Settings};

/// Maximum difference between the clocks of the issuer and of this server.
const LEEWAY: Duration = Duration::from_secs(30);

/// Maximum number of keys of an issuer: enough for keys that are being replaced, and a few future
/// ones. All of them may be tried for one token.
const MAX_KEYS: usize = 16;

/// Maximum size of a file of keys, in bytes. Sixteen RSA keys of maximum length take less than half
/// of it.
const MAX_FILE_LEN: u64 = 64 << 10;

/// Minimum length of a shared secret, in bytes: the minimum of RFC 7518 for HS256.
const MIN_SECRET_LEN: usize = 32;

/// How an algorithm verifies a token.
enum Check {
    Signature(KeyKind, &'static dyn VerificationAlgorithm),
    Mac(hmac::Algorithm),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyKind {
    Rsa,
    P256,
    P384,
    Ed25519,
}

impl Algorithm {
    fn check(self) -> Check {
        use Check::{Mac, Signature};
        match self {
            Algorithm::RS256 => Signature(KeyKind::Rsa, &signature::RSA_PKCS1_2048_8192_SHA256),
            Algorithm::RS384 => Signature(KeyKind::Rsa, &signature::RSA_PKCS1_2048_8192_SHA384),
            Algorithm::RS512 => Signature(KeyKind::Rsa, &signature::RSA_PKCS1_2048_8192_SHA512),
            Algorithm::PS256 => Signature(KeyKind::Rsa, &signature::RSA_PSS_2048_8192_SHA256),
            Algorithm::PS384 => Signature(KeyKind::Rsa, &signature::RSA_PSS_2048_8192_SHA384),
            Algorithm::PS512 => Signature(KeyKind::Rsa, &signature::RSA_PSS_2048_8192_SHA512),
            Algorithm::ES256 => Signature(KeyKind::P256, &signature::ECDSA_P256_SHA256_FIXED),
            Algorithm::ES384 => Signature(KeyKind::P384, &signature::ECDSA_P384_SHA384_FIXED),
            Algorithm::EdDSA => Signature(KeyKind::Ed25519, &signature::ED25519),
            Algorithm::HS256 => Mac(hmac::HMAC_SHA256),
            Algorithm::HS384 => Mac(hmac::HMAC_SHA384),
            Algorithm::HS512 => Mac(hmac::HMAC_SHA512),
        }
    }
}

/// A key, and the one algorithm that it is used with.
struct Verifier {
    algorithm: &'static str,
    key: Key,
}

enum Key {
    Public(UnparsedPublicKey<Vec<u8>>),
    Shared(hmac::Key),
}

impl Verifier {
    fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.key {
            Key::Public(key) => key.verify(message, signature).is_ok(),
            Key::Shared(key) => hmac::verify(key, message, signature).is_ok(),
        }
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm)
    }
}

/// The keys and the claims that a valid token needs.
#[derive(Debug)]
pub(super) struct Tokens {
    verifiers: Vec<Verifier>,
    audience: String,
    issuer: Option<String>,
}

impl Tokens {
    /// Reads the keys that the settings name. Returns `None` if the settings do not mention tokens.
    pub(super) fn load(settings: &Settings) -> Result<Option<Tokens>> {
        let algorithms = &settings.jwt_algorithms;
        let verifiers = match (&settings.jwt_keys, &settings.jwt_secret) {
            (None, None) => {
                let is_named = !algorithms.is_empty()
                    || settings.jwt_audience.is_some()
                    || settings.jwt_issuer.is_some();
                ensure!(
                    !is_named,
                    "tokens need the issuer's key: set jwt-keys or jwt-secret"
                );
                return Ok(None);
            }
            (Some(path), _) => public(path, algorithms)
                .with_context(|| format!("cannot use the issuer's keys in {path:?}"))?,
            (None, Some(path)) => shared(path, algorithms)
                .with_context(|| format!("cannot use the issuer's secret in {path:?}"))?,
        };
        let audience = settings.jwt_audience.clone().context(
            "tokens need jwt-audience: without it, tokens for other services would be accepted",
        )?;
        Ok(Some(Tokens {
            verifiers,
            audience,
            issuer: settings.jwt_issuer.clone(),
        }))
    }

    /// Returns the client that a valid token names. Otherwise returns the cause, for the log.
    pub(super) fn verify(&self, token: &str, now: SystemTime) -> Result<ClientName, &'static str> {
        const MALFORMED: &str = "malformed token";
        let (signed, signature) = token.rsplit_once('.').ok_or(MALFORMED)?;
        let (header, claims) = signed.split_once('.').ok_or(MALFORMED)?;
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature);
        let signature = signature.map_err(|_| MALFORMED)?;
        let header = json(header).ok_or(MALFORMED)?;
        let algorithm = header["alg"].as_str().ok_or(MALFORMED)?;
        // `crit` lists extensions that a verifier has to understand, and this server supports none.
        if header.get("crit").is_some() {
            return Err("token with critical extensions (crit)");
        }
        let mut fitting = (self.verifiers.iter())
            .filter(|verifier| verifier.algorithm == algorithm)
            .peekable();
        if fitting.peek().is_none() {
            return Err("algorithm not allowed");
        }
        if !fitting.any(|verifier| verifier.has_signed(signed.as_bytes(), &signature)) {
            return Err("invalid signature");
        }
        self.subject(&json(claims).ok_or(MALFORMED)?, now)
    }

    /// Returns the client that the claims name, if they are valid now and for this server.
    fn subject(&self, claims: &Value, now: SystemTime) -> Result<ClientName, &'static str> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (now, leeway) = (now.as_secs_f64(), LEEWAY.as_secs_f64());
        let expires = claims["exp"]
            .as_f64()
            .ok_or("missing or invalid exp claim")?;
        if now >= expires + leeway {
            return Err("expired");
        }
        if let Some(begins) = claims.get("nbf") {
            let begins = begins.as_f64().ok_or("invalid nbf claim")?;
            if now < begins - leeway {
                return Err("not valid yet");
            }
        }
        let is_for_us = match &claims["aud"] {
            Value::String(one) => *one == self.audience,
            Value::Array(all) => all.iter().any(|one| *one == *self.audience),
            _ => false,
        };
        if !is_for_us {
            return Err("wrong audience");
        }
        if let Some(issuer) = &self.issuer
            && claims["iss"] != **issuer
        {
            return Err("wrong issuer");
        }
        let subject = claims["sub"].as_str().and_then(ClientName::of_subject);
        subject.ok_or("missing or invalid sub claim")
    }
}

/// Decodes a JSON object from base64url.
fn json(text: &str) -> Option<Value> {
    let text = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
    let value: Value = serde_json::from_slice(&text).ok()?;
    value.is_object().then_some(value)
}

/// Reads the public keys in a file. Returns each of them with each allowed algorithm that suits it.
fn public(path: &Path, algorithms: &[Algorithm]) -> Result<Vec<Verifier>> {
    let text = files::read(path, MAX_FILE_LEN)?;
    let text = String::from_utf8(text).context("it is not UTF-8")?;
    ensure!(
        !text.contains("PRIVATE KEY-----"),
        "it contains a private key; give the public key instead"
    );
    let begin = "-----BEGIN ";
    let places: Vec<usize> = text.match_indices(begin).map(|(place, _)| place).collect();
    ensure!(
        !places.is_empty(),
        "no public key found; give a PEM file with a -----BEGIN PUBLIC KEY----- line for each key"
    );
    ensure!(places.len() <= MAX_KEYS, "it has more than {MAX_KEYS} keys");
    let mut verifiers = Vec::new();
    for (number, place) in places.iter().enumerate() {
        let end = places.get(number + 1).copied().unwrap_or(text.len());
        // Text between the keys, such as a comment, is not PEM.
        let block = &text[*place..end];
        let last = block.rfind("-----").map_or(block.len(), |last| last + 5);
        let (kind, key) = public_key(&block[..last])
            .with_context(|| format!("cannot use public key {}", number + 1))?;
        let before = verifiers.len();
        for algorithm in algorithms {
            if let Check::Signature(needs, verification) = algorithm.check()
                && needs == kind
            {
                verifiers.push(Verifier {
                    algorithm: algorithm.name(),
                    key: Key::Public(UnparsedPublicKey::new(verification, key.clone())),
                });
            }
        }
        ensure!(
            verifiers.len() > before,
            "public key {} fits no algorithm in jwt-algorithm",
            number + 1
        );
    }
    every_algorithm_has_a_key(algorithms, &verifiers)?;
    Ok(verifiers)
}

/// Decodes a public key from PEM, for `ring`.
fn public_key(text: &str) -> Result<(KeyKind, Vec<u8>)> {
    const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
    const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
    const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
    const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
    const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
    /// Length of a modulus of 2,048 bits, in bytes. A whole key is longer. RSA is not safe with a
    /// shorter modulus, and `ring` rejects it.
    const RSA_LEN: usize = 256;
    let (label, der) = pem::decode_vec(text.as_bytes()).context("it is not valid PEM")?;
    ensure!(
        label == "PUBLIC KEY",
        "it is a {label}; give a PUBLIC KEY (`openssl pkey -pubout` prints it)"
    );
    let info = SubjectPublicKeyInfoRef::try_from(&der[..]).context("it is damaged")?;
    let key = info.subject_public_key.raw_bytes();
    let curve = || info.algorithm.parameters_oid().ok();
    let kind = match info.algorithm.oid {
        RSA => KeyKind::Rsa,
        ED25519 => KeyKind::Ed25519,
        EC if curve() == Some(P256) => KeyKind::P256,
        EC if curve() == Some(P384) => KeyKind::P384,
        _ => bail!("its type is not supported; use RSA, P-256, P-384 or Ed25519"),
    };
    let is_whole = match kind {
        KeyKind::Rsa => key.len() > RSA_LEN,
        // A byte that says that the point is not compressed, and two coordinates.
        KeyKind::P256 => key.len() == 65,
        KeyKind::P384 => key.len() == 97,
        KeyKind::Ed25519 => key.len() == 32,
    };
    ensure!(is_whole, "it is too short or has an unsupported encoding");
    Ok((kind, key.to_vec()))
}

/// Reads the shared secret in a file. Returns it with each allowed algorithm that uses one.
fn shared(path: &Path, algorithms: &[Algorithm]) -> Result<Vec<Verifier>> {
    let (file, metadata) = files::open(path)?;
    let secret = files::contents(file, MAX_FILE_LEN)?;
    const OTHERS: u32 = 0o007;
    if metadata.mode() & OTHERS != 0 {
        let secret = path.display();
        tracing::warn!(
            %secret,
            "other users of this machine can access this secret and make tokens; use `chmod o=`"
        );
    }
    // Editors append a newline.
    let secret = secret.strip_suffix(b"\n").unwrap_or(&secret);
    ensure!(
        secret.len() >= MIN_SECRET_LEN,
        "it has {} bytes; a secret needs at least {MIN_SECRET_LEN}",
        secret.len()
    );
    // Keys in PEM are usually public, so they must not serve as secrets.
    let begin = b"-----BEGIN ";
    ensure!(
        !secret.windows(begin.len()).any(|part| part == begin),
        "it is a PEM key, not a shared secret; for public keys, use jwt-keys"
    );
    let verifiers: Vec<Verifier> = algorithms
        .iter()
        .filter_map(|algorithm| match algorithm.check() {
            Check::Mac(mac) => Some(Verifier {
                algorithm: algorithm.name(),
                key: Key::Shared(hmac::Key::new(mac, secret)),
            }),
            Check::Signature(..) => None,
        })
        .collect();
    every_algorithm_has_a_key(algorithms, &verifiers)?;
    Ok(verifiers)
}

fn every_algorithm_has_a_key(algorithms: &[Algorithm], verifiers: &[Verifier]) -> Result<()> {
    ensure!(
        !algorithms.is_empty(),
        "tokens need jwt-algorithm: set the algorithms that the issuer signs with"
    );
    for algorithm in algorithms {
        let name = algorithm.name();
        let has_key = verifiers.iter().any(|verifier| verifier.algorithm == name);
        ensure!(has_key, "no key for {name}, which jwt-algorithm lists");
    }
    Ok(())
}
