//! The files that TLS is made of: certificates and private keys, in PEM.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use tokio_rustls::rustls::{
    Error, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

use crate::files;

/// How long a file may be. All the authorities that a system trusts need a quarter of it.
const LONGEST: u64 = 1 << 20;

/// The authorities in a file.
///
/// # Errors
///
/// If it cannot be read, or holds none, or something else where one should be.
pub(crate) fn authorities(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        let added = roots.add(certificate);
        added.with_context(|| format!("{} holds no authority's certificate", path.display()))?;
    }
    Ok(roots)
}

/// A certificate with those that lead to its authority, and the key that belongs to it.
///
/// # Errors
///
/// If one of the files cannot be read, or holds something else, or the two do not fit together.
pub(crate) fn identity(
    certificate: &Path,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<CertifiedKey> {
    let identity = CertifiedKey::from_der(certificates(certificate)?, private_key(key)?, provider);
    let (certificate, key) = (certificate.display(), key.display());
    identity.map_err(|error| match error {
        Error::InconsistentKeys(_) => anyhow::anyhow!(
            "the key in {key} does not belong to the first certificate in {certificate}; give the one that it \
             was made with"
        ),
        error => anyhow::Error::new(error)
            .context(format!("cannot use {certificate} with the key in {key}")),
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = read(path)?;
    let shown = path.display();
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates =
        certificates.with_context(|| format!("{shown} is not PEM as it should be"))?;
    ensure!(
        !certificates.is_empty(),
        "there is no certificate in {shown}; give a PEM file, with a line -----BEGIN CERTIFICATE-----"
    );
    Ok(certificates)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let text = read(path)?;
    let shown = path.display();
    let key = PrivateKeyDer::pem_slice_iter(&text).next();
    let Some(key) = key else {
        bail!(
            "there is no private key in {shown}; give a PEM file, with a line -----BEGIN PRIVATE KEY-----, \
             whose key is not encrypted"
        );
    };
    key.with_context(|| format!("{shown} is not PEM as it should be"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    files::read(path, LONGEST).with_context(|| format!("cannot read {}", path.display()))
}
