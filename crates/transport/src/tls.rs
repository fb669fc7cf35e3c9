//! TLS for the server: handshakes, names from client certificates, and reloading of changed files.

use std::{
    fmt::{self, Write},
    fs,
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hashfinder_system::files::{Stamp, Watch};
use hashfinder_tls::{error as tls_error, pem};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, sink},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, UnixTime},
        server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
        sign::SingleCertAndKey,
    },
    server::TlsStream,
};
use webpki::EndEntityCert;

use crate::validity::{Validity, Warning, rejected_by_clients};

/// Interval of checks for changed files and for certificates that expire. A client's certificate is
/// checked again when the client makes a call, at most this often.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Maximum time that the server waits after a failed handshake, and maximum number of bytes that it
/// discards meanwhile. The peer needs the time to read the reason: closing a socket that has unread
/// input resets the connection, and the reset can overtake the last message.
const LINGER: (Duration, u64) = (Duration::from_millis(500), 64 << 10);

/// Maximum length of a name from a certificate, in bytes. DNS names are never longer; a URI that is
/// longer is replaced by the fingerprint.
const LONGEST_NAME: usize = 253;

/// Prefix of a name that consists of a fingerprint.
const FINGERPRINT: &str = "sha256:";

/// ALPN ID of HTTP/2, the only protocol that the server supports.
const ALPN: &[u8] = b"h2";

/// Files of the server's certificates and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain in PEM: the server's certificate, then the certificates that lead to its
    /// authority.
    pub certificate: PathBuf,
    /// The private key of the server's certificate, in PEM.
    pub key: PathBuf,
    /// Certificates of the authorities for client certificates, in PEM, and whether clients must
    /// have a certificate. Without this, clients are not asked for certificates.
    pub clients: Option<(PathBuf, ClientCertificates)>,
}

/// Whether clients must have certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Connections without a certificate are rejected.
    #[default]
    Required,
    /// A certificate is optional, but an invalid one is rejected.
    Optional,
}

/// TLS with certificates from files, which are read again when they change. Clones share all state.
///
/// Handshakes and calls use the certificates that were loaded last. They neither read files nor
/// wait while files are read.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    files: TlsFiles,
    config: Mutex<Config>,
    /// The thread that reads the files locks this, always before `config`.
    seen: Mutex<Seen>,
}

/// The file versions and warnings that have been handled.
struct Seen {
    /// The versions that are loaded, or whose error was logged.
    settled: Stamps,
    /// Versions that could not be used when they were read: perhaps not all files had been replaced
    /// yet.
    doubtful: Option<Stamps>,
    /// Warnings about the loaded versions that were logged and still apply.
    warned: Vec<Warning>,
}

/// The version of each file; `None` if the file does not exist or cannot be accessed.
type Stamps = Vec<Option<Stamp>>;

/// What was loaded from the files.
#[derive(Clone)]
struct Config {
    server: Arc<ServerConfig>,
    /// Verifies client certificates, if clients may have any.
    clients: Option<Arc<dyn ClientCertVerifier>>,
    terms: Arc<Terms>,
}

/// Validity periods of the certificates in the files, and warnings that do not depend on the date.
struct Terms {
    chain: Vec<Validity>,
    authorities: Vec<Validity>,
    lasting: Vec<Warning>,
}

impl Tls {
    /// Loads the files. This can block.
    ///
    /// # Errors
    ///
    /// If a file is missing or cannot be read, or if the files do not fit together.
    pub fn load(files: TlsFiles) -> Result<Tls> {
        // Taken before reading: a file that changes meanwhile is then read again.
        let settled = files.stamps();
        let config = Mutex::new(files.read()?);
        let seen = Mutex::new(Seen {
            settled,
            doubtful: None,
            warned: Vec::new(),
        });
        let shared = Shared {
            files,
            config,
            seen,
        };
        Ok(Tls(Arc::new(shared)))
    }

    /// Reloads files within a few seconds of a change, until the result is dropped. Logs warnings
    /// about the loaded files: now, after each reload, and when a certificate expires or is about
    /// to expire.
    ///
    /// # Errors
    ///
    /// If the thread cannot be started.
    pub fn watch(&self) -> io::Result<Watch> {
        self.warn(&mut self.seen());
        let tls = self.clone();
        Watch::start("certificates", LOOK_EVERY, move || tls.look())
    }

    /// Returns warnings about the files in use.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        let (files, now) = (&self.0.files, UnixTime::now());
        let terms = self.config().terms;
        let shown = terms.chain.iter();
        let shown = shown.filter_map(|one| Warning::of_shown(&files.certificate, one, now));
        let mut warnings: Vec<Warning> = shown.collect();
        if let Some((file, _)) = &files.clients {
            let authorities = terms.authorities.iter();
            warnings.extend(authorities.filter_map(|one| Warning::of_authority(file, one, now)));
        }
        warnings.extend(terms.lasting.iter().cloned());
        warnings
    }

    /// Returns each file with certificates, by its name in the metrics, and the earliest expiry of
    /// its certificates, in seconds since 1970.
    #[must_use]
    pub fn expiries(&self) -> Vec<(&'static str, i64)> {
        let terms = self.config().terms;
        let files = [
            ("certificate", &terms.chain),
            ("client_ca", &terms.authorities),
        ];
        let end = |(file, all): (_, &Vec<_>)| {
            let seconds = Validity::first_end(all)?.as_secs();
            Some((file, i64::try_from(seconds).unwrap_or(i64::MAX)))
        };
        files.into_iter().filter_map(end).collect()
    }

    /// Performs the handshake with a client. Returns the connection, and the client's certificate
    /// if it sent one. The handshake has no time limit here. Dropping the future closes the
    /// connection.
    ///
    /// # Errors
    ///
    /// If the client does not speak TLS, does not offer HTTP/2, lacks a required certificate, has
    /// an invalid one, or disconnects.
    pub(crate) async fn accept(
        &self,
        tcp: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, Option<Arc<Certificate>>)> {
        let acceptor = TlsAcceptor::from(self.config().server);
        let mut stream = match acceptor.accept(tcp).into_fallible().await {
            Ok(stream) => stream,
            Err((error, tcp)) => {
                // After any other error, no peer is left to read the alert.
                if error.kind() == ErrorKind::InvalidData {
                    linger(tcp).await;
                }
                return Err(tls_error::of_connection(error, "client"));
            }
        };
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(ALPN) {
            // If a client offers only other protocols, the handshake itself fails with an alert.
            // This client offered none.
            let _ = stream.shutdown().await;
            linger(stream.into_inner().0).await;
            let why = "the client does not offer HTTP/2 (ALPN h2)";
            return Err(io::Error::new(ErrorKind::InvalidData, why));
        }
        let certificate = session.peer_certificates().and_then(|chain| {
            let (own, others) = chain.split_first()?;
            Some(Arc::new(Certificate::new(self, own, others)))
        });
        Ok((stream, certificate))
    }

    /// Returns the current configuration, for the next handshake or check of a certificate.
    fn config(&self) -> Config {
        let config = self.0.config.lock();
        config.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) {
        let mut seen = self.seen();
        self.renew(&mut seen);
        self.warn(&mut seen);
    }

    /// Logs the warnings that have not been logged yet.
    fn warn(&self, seen: &mut Seen) {
        let warnings = self.warnings();
        for warning in &warnings {
            if !seen.warned.contains(warning) {
                warning.log();
            }
        }
        seen.warned = warnings;
    }

    /// Reloads the files if they have changed. If the new ones cannot be used, the next check reads
    /// them again before an error is logged: perhaps not all of them have been replaced yet.
    fn renew(&self, seen: &mut Seen) {
        let Shared { files, config, .. } = &*self.0;
        let stamps = files.stamps();
        if stamps == seen.settled {
            seen.doubtful = None;
            return;
        }
        let read = files.read();
        // The files are still being written. The next check reads them.
        if files.stamps() != stamps {
            return;
        }
        match read {
            Ok(new) => {
                tracing::info!("certificates reloaded");
                *config.lock().unwrap_or_else(PoisonError::into_inner) = new;
                // The files are new, so warnings that still apply are logged again.
                seen.warned.clear();
            }
            Err(_) if seen.doubtful.as_ref() != Some(&stamps) => {
                seen.doubtful = Some(stamps);
                return;
            }
            Err(error) => tracing::error!(
                error = format_args!("{error:#}"),
                "cannot use the new certificates; the old ones stay in use"
            ),
        }
        seen.settled = stamps;
        seen.doubtful = None;
    }
}

/// A client's certificate, verified in the handshake. A connection may last forever, so the
/// certificate is verified again when a call begins, at most every 2 s. Open calls continue even if
/// it has become invalid.
pub struct Certificate {
    name: Arc<str>,
    own: CertificateDer<'static>,
    /// The certificates that lead to the client's authority.
    others: Vec<CertificateDer<'static>>,
    tls: Tls,
    checked: Mutex<Checked>,
}

struct Checked {
    is_good: bool,
    next: Instant,
}

impl Certificate {
    fn new(
        tls: &Tls,
        own: &CertificateDer<'static>,
        others: &[CertificateDer<'static>],
    ) -> Certificate {
        Certificate {
            name: name(own),
            own: own.clone(),
            others: others.to_vec(),
            tls: tls.clone(),
            checked: Mutex::new(Checked {
                is_good: true,
                next: Instant::now() + LOOK_EVERY,
            }),
        }
    }

    /// Returns the name in the certificate: the first DNS name, else the first URI, else `sha256:`
    /// and the fingerprint.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the certificate is still valid by the current authorities: it has not expired, and
    /// its authority is still trusted. The result may be 2 s old, and the files that it is based on
    /// may have changed up to 2 s before that.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if checked.next <= now {
            checked.next = now + LOOK_EVERY;
            checked.is_good = self.tls.config().clients.is_some_and(|verifier| {
                let verified =
                    verifier.verify_client_cert(&self.own, &self.others, UnixTime::now());
                verified.is_ok()
            });
        }
        checked.is_good
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Gives the peer time to read the last message, then closes the connection. Dropping the future
/// closes it at once.
async fn linger(mut tcp: TcpStream) {
    let (time, bytes) = LINGER;
    let _ = timeout(time, async {
        tcp.shutdown().await?;
        tokio::io::copy(&mut tcp.take(bytes), &mut sink()).await
    })
    .await;
}

impl TlsFiles {
    fn stamps(&self) -> Stamps {
        let clients = self.clients.iter().map(|(path, _)| path);
        let all = [&self.certificate, &self.key].into_iter().chain(clients);
        let stamp = |path: &PathBuf| Some(Stamp::of(&fs::metadata(path).ok()?));
        all.map(stamp).collect()
    }

    fn read(&self) -> Result<Config> {
        let provider = Arc::new(ring::default_provider());
        let identity = pem::identity(&self.certificate, &self.key, &provider)?;
        let (chain, mut lasting) = self.terms_of_chain(&identity.cert);
        lasting.extend(readable_by_others(&self.key));
        // TLS 1.2 and 1.3.
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let mut authorities = Vec::new();
        let (builder, clients) = match &self.clients {
            None => (builder.with_no_client_auth(), None),
            Some((path, whether)) => {
                let certificates = pem::certificates(path)?;
                let roots = Arc::new(pem::trusting(&certificates, path)?);
                // An old authority's certificate may be of X.509 version 1. webpki trusts it, but
                // cannot read its validity.
                authorities.extend(Validity::of_all(&certificates).into_iter().flatten());
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                let verifier = match whether {
                    ClientCertificates::Required => verifier,
                    ClientCertificates::Optional => verifier.allow_unauthenticated(),
                };
                let verifier = verifier.build();
                let verifier = verifier
                    .with_context(|| format!("cannot use the authorities in {}", path.display()))?;
                let builder = builder.with_client_cert_verifier(Arc::clone(&verifier));
                (builder, Some(verifier))
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed session skips the check of the client's certificate, so it could outlive the
        // certificate. Our clients rarely connect, so they lose little without resumption.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Config {
            server: Arc::new(config),
            clients,
            terms: Arc::new(Terms {
                chain,
                authorities,
                lasting,
            }),
        })
    }

    /// Returns the validity of the certificates in the server's chain, and a warning for each
    /// certificate that clients always reject.
    fn terms_of_chain(&self, chain: &[CertificateDer<'_>]) -> (Vec<Validity>, Vec<Warning>) {
        let rejected = |number, why: String| {
            let which = match number {
                1 => "the server's certificate",
                _ => "a certificate in the server's chain",
            };
            let what = format!("clients such as hashfinder reject {which}: it {why}");
            Warning::of_certificate(&self.certificate, number, what)
        };
        let (mut valid, mut warnings) = (Vec::new(), Vec::new());
        for (number, (certificate, validity)) in
            (1..).zip(chain.iter().zip(Validity::of_all(chain)))
        {
            match validity {
                Ok(validity) => {
                    valid.push(validity);
                    // The other certificates are not for servers and have no server names.
                    if number == 1 {
                        let why = rejected_by_clients(certificate, &validity);
                        warnings.extend(why.map(|why| rejected(number, why)));
                    }
                }
                Err(error) => warnings.push(rejected(number, tls_error::of_webpki(&error))),
            }
        }
        (valid, warnings)
    }
}

fn readable_by_others(key: &Path) -> Option<Warning> {
    const OTHERS: u32 = 0o007;
    let mode = fs::metadata(key).ok()?.mode();
    let what = "other users of this machine can read the private key; use `chmod o=`";
    (mode & OTHERS != 0).then(|| Warning::of_file(key, what))
}

/// Returns the name in a valid certificate: the first DNS name, else the first URI, else the
/// fingerprint. The result is short and printable ASCII.
fn name(certificate: &CertificateDer<'_>) -> Arc<str> {
    let fingerprint = || {
        let mut text = FINGERPRINT.to_owned();
        for byte in Sha256::digest(certificate) {
            let _ = write!(text, "{byte:02x}");
        }
        Arc::from(text)
    };
    let Ok(parsed) = EndEntityCert::try_from(certificate) else {
        return fingerprint();
    };
    // DNS names are not case-sensitive.
    let dns = parsed.valid_dns_names().next().map(str::to_ascii_lowercase);
    let uri = || parsed.valid_uri_names().next().map(str::to_owned);
    // A text without a scheme is not a URI. It could be another client's DNS name, and an
    // authority's name constraints on DNS names would not apply to it.
    let named = dns.or_else(|| uri().filter(|uri| uri.contains(':')));
    let named = named.filter(|name| {
        let is_plain = name.bytes().all(|byte| byte.is_ascii_graphic());
        // An authority must not be able to issue a name that looks like another certificate's
        // fingerprint.
        let is_like_ours = name
            .get(..FINGERPRINT.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(FINGERPRINT));
        !name.is_empty() && name.len() <= LONGEST_NAME && is_plain && !is_like_ours
    });
    named.map_or_else(fingerprint, Arc::from)
}

#[cfg(test)]
mod tests {
    use tokio_rustls::rustls::pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn certificates_yield_client_names() {
        // Certificates with all kinds of names. In the file, the line above each certificate
        // describes it.
        let all = CertificateDer::pem_slice_iter(include_bytes!("names.pem"));
        let all: Vec<CertificateDer<'_>> = all.map(Result::unwrap).collect();
        let names: Vec<Arc<str>> = all.iter().map(name).collect();
        let long = format!("urn:{}", "a".repeat(249));
        let by_fingerprint = |certificate: &CertificateDer<'_>| {
            let digest = Sha256::digest(certificate);
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("sha256:{hex}")
        };
        assert_eq!(&*names[0], "client.example");
        assert_eq!(&*names[1], "spiffe://example/one");
        for nameless in 2..6 {
            assert_eq!(*names[nameless], *by_fingerprint(&all[nameless]));
        }
        assert_eq!(&*names[2], NAMELESS);
        assert_eq!(&*names[6], long);
    }

    /// The fingerprint that `openssl x509 -fingerprint -sha256` prints, in the form of a client's
    /// name.
    const NAMELESS: &str =
        "sha256:4ea29df8fd734c6bb3e8e5d18894f8499c292a020fbb19f5d8f6ab52122b0435";
}
