//! TLS, as the server speaks it: handshakes, whose certificate a client has, and new files taken while it
//! serves.

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

/// How often the server checks whether the files have changed, whether its certificates are valid, and whether the
/// certificate of a client that calls still is.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long a peer whose handshake has failed may take to read why, and how much of what it has sent
/// meanwhile is thrown away. Who closes a socket that has something to read resets the connection, and the
/// reset overtakes what was said last.
const LINGER: (Duration, u64) = (Duration::from_millis(500), 64 << 10);

/// How long a name from a certificate may be. A DNS name never is longer; a URI that is goes by the
/// fingerprint.
const LONGEST_NAME: usize = 253;

/// What a fingerprint's name begins with.
const FINGERPRINT: &str = "sha256:";

/// What we speak.
const ALPN: &[u8] = b"h2";

/// The files with the certificates and the key of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate in PEM, followed by those that lead to its authority.
    pub certificate: PathBuf,
    /// The private key of that certificate, in PEM.
    pub key: PathBuf,
    /// The authorities that have to have signed the certificates of clients, in PEM, and whether clients have to have
    /// one. Without it clients are not asked for certificates.
    pub clients: Option<(PathBuf, ClientCertificates)>,
}

/// Whether clients have to have certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Without one there is no connection.
    #[default]
    Required,
    /// A client may come without one; a wrong one is rejected all the same.
    Optional,
}

/// TLS with certificates from files, which are read again when they change. Clones share all of it.
///
/// Handshakes and calls take what was loaded last. They read no file, nor do they wait for a read.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    files: TlsFiles,
    config: Mutex<Config>,
    /// Locked by the thread that reads the files, and not while anything else is.
    seen: Mutex<Seen>,
}

/// What a server has seen of its files.
struct Seen {
    /// The versions that are loaded, or whose error was logged.
    settled: Stamps,
    /// Versions that did not fit together when they were read: half of them may not be there yet.
    doubtful: Option<Stamps>,
    /// The warnings about the loaded versions that the log has and that still apply.
    warned: Vec<Warning>,
}

/// The version of each file; `None` for one that is not there.
type Stamps = Vec<Option<Stamp>>;

/// What the files come to.
#[derive(Clone)]
struct Config {
    server: Arc<ServerConfig>,
    /// What finds the certificates of clients good, if these may have some.
    clients: Option<Arc<dyn ClientCertVerifier>>,
    terms: Arc<Terms>,
}

/// When the certificates in the files are valid, and what is wrong with the files at any time.
struct Terms {
    chain: Vec<Validity>,
    authorities: Vec<Validity>,
    lasting: Vec<Warning>,
}

impl Tls {
    /// Reads the files. This can block.
    ///
    /// # Errors
    ///
    /// If they cannot be read or do not fit together, or one is missing.
    pub fn load(files: TlsFiles) -> Result<Tls> {
        // Looked at before they are read: what changes meanwhile is read again.
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

    /// Takes files that have changed, within a few seconds, until the result is dropped. Logs what is wrong with those
    /// that are loaded: now, whenever new ones are, and when a certificate's time comes.
    ///
    /// # Errors
    ///
    /// If a thread for it cannot be started.
    pub fn watch(&self) -> io::Result<Watch> {
        self.warn(&mut self.seen());
        let tls = self.clone();
        Watch::start("certificates", LOOK_EVERY, move || tls.look())
    }

    /// Returns what is wrong with the files, though they are used.
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

    /// Returns when the first certificate in each file ends, in seconds since 1970, by what the metrics call the file.
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

    /// Shakes hands with a client. Returns its connection, and its certificate if it has shown one. There is no time limit
    /// here. Dropping the future closes the connection.
    ///
    /// # Errors
    ///
    /// If the client does not speak TLS or not HTTP/2 in it, has no certificate that is good where one is
    /// required, or goes away.
    pub(crate) async fn accept(
        &self,
        tcp: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, Option<Arc<Certificate>>)> {
        let acceptor = TlsAcceptor::from(self.config().server);
        let mut stream = match acceptor.accept(tcp).into_fallible().await {
            Ok(stream) => stream,
            Err((error, tcp)) => {
                // Else there is nobody who could be told.
                if error.kind() == ErrorKind::InvalidData {
                    linger(tcp).await;
                }
                return Err(tls_error::of_connection(error, "client"));
            }
        };
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(ALPN) {
            // Who asks for another protocol is told so by TLS; this one has asked for none.
            let _ = stream.shutdown().await;
            linger(stream.into_inner().0).await;
            let why = "the client does not ask for HTTP/2 (ALPN h2)";
            return Err(io::Error::new(ErrorKind::InvalidData, why));
        }
        let certificate = session.peer_certificates().and_then(|chain| {
            let (own, others) = chain.split_first()?;
            Some(Arc::new(Certificate::new(self, own, others)))
        });
        Ok((stream, certificate))
    }

    /// What the next handshake goes by.
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

    /// Logs the warnings that the log does not have yet.
    fn warn(&self, seen: &mut Seen) {
        let warnings = self.warnings();
        for warning in &warnings {
            if !seen.warned.contains(warning) {
                warning.log();
            }
        }
        seen.warned = warnings;
    }

    /// Takes the files if they have changed and fit together. If they do not, they are read once more
    /// before the log reports it, for they are not all replaced in one moment.
    fn renew(&self, seen: &mut Seen) {
        let Shared { files, config, .. } = &*self.0;
        let stamps = files.stamps();
        if stamps == seen.settled {
            seen.doubtful = None;
            return;
        }
        let read = files.read();
        // They are being written; the next look reads what they have become.
        if files.stamps() != stamps {
            return;
        }
        match read {
            Ok(new) => {
                tracing::info!("new certificates are in use");
                *config.lock().unwrap_or_else(PoisonError::into_inner) = new;
                // They are new ones, though the same may be wrong with them.
                seen.warned.clear();
            }
            Err(_) if seen.doubtful.as_ref() != Some(&stamps) => {
                seen.doubtful = Some(stamps);
                return;
            }
            Err(error) => tracing::error!(
                error = format_args!("{error:#}"),
                "new certificates cannot be used, the old ones stay in use"
            ),
        }
        seen.settled = stamps;
        seen.doubtful = None;
    }
}

/// A client's certificate, which was found good in the handshake. As a connection may last for ever, that is
/// asked again.
pub struct Certificate {
    name: Arc<str>,
    own: CertificateDer<'static>,
    /// Those that lead to its authority.
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

    /// Returns the name in it: its first DNS name, or else its first URI, or else `sha256:` and its fingerprint.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is still good, by the authorities that are in force: it has not expired, and its authority
    /// is still there. What is told may be two seconds old, and the files that much older.
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

/// Lets a peer read what it was told last, then closes. Dropping the future closes at once.
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
                // An old authority's certificate may be of version 1, which webpki trusts but does not check.
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
        // A session that is taken up again is not checked again, so it could outlive the certificate that it
        // began with. Our clients connect seldom.
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

    /// Returns when the certificates are valid that the server shows, and why clients reject them at any time.
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
                    // Those that lead to the authority are neither for servers nor have they a server's names.
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
    let what = "other users of this machine can read the private key; chmod o= prevents that";
    (mode & OTHERS != 0).then(|| Warning::of_file(key, what))
}

/// The name in a certificate that was found good: the first DNS name, or else the first URI, or else its
/// fingerprint. It is short, and nothing but printable ASCII.
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
    // However it is written, it is one name.
    let dns = parsed.valid_dns_names().next().map(str::to_ascii_lowercase);
    let uri = || parsed.valid_uri_names().next().map(str::to_owned);
    // One without a scheme is none, and could be somebody's DNS name, to which an authority's constraints on
    // those do not apply.
    let named = dns.or_else(|| uri().filter(|uri| uri.contains(':')));
    let named = named.filter(|name| {
        let is_plain = name.bytes().all(|byte| byte.is_ascii_graphic());
        // Which is not for an authority to give away.
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
    fn names_of_clients() {
        // Certificates with all kinds of names; what is said of each stands above it.
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

    /// As `openssl x509 -fingerprint -sha256` has it.
    const NAMELESS: &str =
        "sha256:4ea29df8fd734c6bb3e8e5d18894f8499c292a020fbb19f5d8f6ab52122b0435";
}
