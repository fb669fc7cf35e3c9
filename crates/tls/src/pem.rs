//! Reads certificates and private keys from PEM files.

use std::path::Path;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use hashfinder_system::files;
use tokio_rustls::rustls::{
    self, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};

use crate::error;

/// Maximum length of a file, in bytes. A file of all authorities that a system trusts has a quarter
/// of this length.
const LONGEST: u64 = 1 << 20;

/// Maximum number of PEM labels, such as `CERTIFICATE REQUEST`, that a message lists if a file
/// lacks the expected section.
const LABELS_SHOWN: usize = 3;

/// Reads a file of authorities.
///
/// # Errors
///
/// If the file cannot be read, has no certificate, or has a damaged one.
pub fn authorities(path: &Path) -> Result<RootCertStore> {
    trusting(&certificates(path)?, path)
}

/// Returns a store that trusts these certificates as authorities. Errors name `path`, the file that
/// the certificates come from.
///
/// # Errors
///
/// If one of the certificates is damaged.
pub fn trusting(certificates: &[CertificateDer<'static>], path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for (number, certificate) in (1..).zip(certificates) {
        let added = roots.add(certificate.clone());
        added.map_err(|error| wrong_certificate(number, path, &error))?;
    }
    Ok(roots)
}

/// Reads a certificate chain and its private key.
///
/// # Errors
///
/// If a file cannot be read or has unexpected content, the key is encrypted, or the key does not
/// match the first certificate.
pub fn identity(certificate: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey> {
    let identity = CertifiedKey::from_der(certificates(certificate)?, private_key(key)?, provider);
    identity.map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => anyhow!(
            "the private key in {} does not match the first certificate in {}; give the key of \
             that certificate",
            key.display(),
            certificate.display()
        ),
        rustls::Error::InvalidCertificate(_) => wrong_certificate(1, certificate, &error),
        // The provider has no more precise error for a key that it cannot use.
        _ => anyhow!(
            "the private key in {} is damaged, or its type is not supported; use RSA (2,048 to \
             4,096 bits), ECDSA (P-256 or P-384) or Ed25519",
            key.display()
        ),
    })
}

/// Reads the certificates in a file, which must have at least one.
///
/// # Errors
///
/// If the file cannot be read, is damaged, or has no certificate.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates = certificates.map_err(|error| damaged(path, &text, &error))?;
    ensure!(
        !certificates.is_empty(),
        "no certificate in {}{}; give a PEM file with a -----BEGIN CERTIFICATE----- line",
        path.display(),
        instead(&text)
    );
    Ok(certificates)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let text = read(path)?;
    match PrivateKeyDer::pem_slice_iter(&text).next() {
        Some(Ok(key)) => Ok(key),
        Some(Err(error)) => Err(damaged(path, &text, &error)),
        None if is_encrypted(&text) => Err(encrypted(path)),
        None => bail!(
            "no private key in {}{}; give a PEM file with a -----BEGIN PRIVATE KEY----- line",
            path.display(),
            instead(&text)
        ),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    /// UTF-8 byte order mark, which some editors write at the start of a file.
    const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
    let text = files::read(path, LONGEST);
    let mut text = text.with_context(|| format!("cannot read {}", path.display()))?;
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(text)
}

fn wrong_certificate(number: usize, path: &Path, error: &rustls::Error) -> Error {
    let path = path.display();
    match error {
        rustls::Error::InvalidCertificate(wrong) => {
            let wrong = error::of_certificate(wrong);
            anyhow!("certificate {number} in {path} {wrong}")
        }
        error => anyhow!("certificate {number} in {path} cannot be used: {error}"),
    }
}

/// Returns the error for a damaged section of a file.
fn damaged(path: &Path, text: &[u8], error: &pem::Error) -> Error {
    // The headers of an encrypted key are not base64, so the key seems damaged.
    if is_encrypted(text) {
        return encrypted(path);
    }
    let path = path.display();
    match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            let label = String::from_utf8_lossy(end_marker);
            let label = label.escape_debug();
            anyhow!("{path} is truncated: it has no line -----END {label}-----")
        }
        pem::Error::IllegalSectionStart { .. } => {
            anyhow!("{path} is damaged: a -----BEGIN line does not end with five hyphens")
        }
        _ => anyhow!("{path} is damaged: a section is not valid base64"),
    }
}

fn encrypted(path: &Path) -> Error {
    let path = path.display();
    anyhow!(
        "the private key in {path} is encrypted; give it without a passphrase (`openssl pkey -in \
         {path}` prints it)"
    )
}

/// Whether a file has a private key with a passphrase: in PKCS #8, or with the older headers of
/// OpenSSL (RFC 1421).
fn is_encrypted(text: &[u8]) -> bool {
    text.split(|byte| *byte == b'\n').any(|line| {
        line.starts_with(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
            || line.starts_with(b"Proc-Type: 4,ENCRYPTED")
    })
}

/// Returns what a file contains instead of the expected section, to be appended to a message.
fn instead(text: &[u8]) -> String {
    let Ok(text) = str::from_utf8(text) else {
        return ": it is binary, perhaps DER or PKCS #12 (convert it with `openssl`)".to_owned();
    };
    let label = |line: &str| {
        let label = line.trim().strip_prefix("-----BEGIN ")?;
        let label = label.strip_suffix("-----")?;
        let is_plain = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == ' ';
        label.chars().all(is_plain).then(|| label.to_owned())
    };
    let mut labels: Vec<String> = text.lines().filter_map(label).collect();
    labels.dedup();
    labels.truncate(LABELS_SHOWN);
    match labels.is_empty() {
        true => String::new(),
        false => format!(", only {}", labels.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_actual_content_of_a_file_is_reported() {
        for (text, said) in [
            (&b""[..], ""),
            (b"nothing\n", ""),
            (
                b"-----BEGIN CERTIFICATE REQUEST-----\r\nAAAA\r\n-----END CERTIFICATE REQUEST-----\r\n",
                ", only CERTIFICATE REQUEST",
            ),
            // Each label appears once, and only valid labels appear.
            (
                b"-----BEGIN A-----\n-----BEGIN A-----\n-----BEGIN \x1b[31m-----\n-----BEGIN B-----\n",
                ", only A, B",
            ),
            (
                b"\x30\x82\x01\xff",
                ": it is binary, perhaps DER or PKCS #12 (convert it with `openssl`)",
            ),
        ] {
            assert_eq!(instead(text), said);
        }
    }
}
