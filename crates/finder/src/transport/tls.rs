//! TLS, as the server speaks it: handshakes, whose certificate a client has, and new files taken while it
//! serves.

use std::{
    fmt::{self, Write},
    fs,
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
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
        sign::{CertifiedKey, SingleCertAndKey},
    },
    server::TlsStream,
};
use webpki::{EndEntityCert, KeyUsage};

use crate::{
    cli::{ClientCertificates, TlsArguments},
    files::{Stamp, Watch},
    pem, tls_error,
};

/// How often the server checks whether the files have changed, and whether the certificate of a client that calls
/// is still valid.
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

/// TLS with certificates from files, which are read anew when they change. Clones share all of it.
///
/// Handshakes and calls take what was loaded last. They read no file, nor do they wait for a read.
#[derive(Clone)]
pub(crate) struct Tls(Arc<Shared>);

struct Shared {
    files: Files,
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
}

/// The version of each file; `None` for one that is not there.
type Stamps = Vec<Option<Stamp>>;

/// What the files come to.
#[derive(Clone)]
struct Config {
    server: Arc<ServerConfig>,
    /// What finds the certificates of clients good, if these may have some.
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

impl Tls {
    /// Reads the files; `None` if TLS is not asked for.
    ///
    /// # Errors
    ///
    /// If they cannot be read or do not fit together, or one is missing.
    pub(crate) fn load(arguments: &TlsArguments) -> Result<Option<Tls>> {
        let Some(files) = Files::of(arguments)? else {
            return Ok(None);
        };
        // Looked at before they are read: what changes meanwhile is read again.
        let settled = files.stamps();
        let config = Mutex::new(files.read()?);
        let seen = Mutex::new(Seen {
            settled,
            doubtful: None,
        });
        let shared = Shared {
            files,
            config,
            seen,
        };
        Ok(Some(Tls(Arc::new(shared))))
    }

    /// Takes files that have changed, within a few seconds, until the result is dropped.
    ///
    /// # Errors
    ///
    /// If a thread for it cannot be started.
    pub(crate) fn watch(&self) -> io::Result<Watch> {
        let tls = self.clone();
        Watch::start("certificates", LOOK_EVERY, move || tls.look())
    }

    /// Shakes hands with a client. Gives its connection, and its certificate, if it has shown one. There is no time limit here. Dropping the future closes the connection.
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

    /// Takes the files if they have changed and fit together. If they do not, they are read once more
    /// before the log reports it, for they are not all replaced in one moment.
    fn look(&self) {
        let Shared {
            files,
            config,
            seen,
        } = &*self.0;
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
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
pub(crate) struct Certificate {
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

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is still good, by the authorities that are in force: it has not expired, and its authority
    /// is still there. What is told may be two seconds old, and the files that much older.
    pub(crate) fn is_good(&self) -> bool {
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

/// Where certificates and keys are.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    clients: Option<(PathBuf, ClientCertificates)>,
}

impl Files {
    /// Which they are, if there are any.
    ///
    /// # Errors
    ///
    /// If only a part of what is needed was given.
    fn of(arguments: &TlsArguments) -> Result<Option<Files>> {
        let TlsArguments {
            tls_certificate,
            tls_key,
            tls_client_ca,
            tls_client_certificates,
        } = arguments;
        let (certificate, key) = match (tls_certificate, tls_key) {
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
            (Some(_), None) => bail!("--tls-certificate needs its key: give --tls-key too"),
            (None, Some(_)) => bail!("--tls-key needs its certificate: give --tls-certificate too"),
            (None, None) if tls_client_ca.is_some() => bail!(
                "--tls-client-ca is of use with TLS alone: give --tls-certificate and --tls-key too"
            ),
            (None, None) => return Ok(None),
        };
        let authorities = tls_client_ca.clone();
        Ok(Some(Files {
            certificate,
            key,
            clients: authorities.map(|path| (path, *tls_client_certificates)),
        }))
    }

    fn stamps(&self) -> Stamps {
        let clients = self.clients.iter().map(|(path, _)| path);
        let all = [&self.certificate, &self.key].into_iter().chain(clients);
        let stamp = |path: &PathBuf| Some(Stamp::of(&fs::metadata(path).ok()?));
        all.map(stamp).collect()
    }

    fn read(&self) -> Result<Config> {
        let provider = Arc::new(ring::default_provider());
        let identity = pem::identity(&self.certificate, &self.key, &provider)?;
        self.warn(&identity);
        // TLS 1.2 and 1.3.
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let (builder, clients) = match &self.clients {
            None => (builder.with_no_client_auth(), None),
            Some((path, whether)) => {
                let authorities = Arc::new(pem::authorities(path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(authorities, provider);
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
        })
    }

    /// Tells the log what works and is wrong all the same.
    fn warn(&self, identity: &CertifiedKey) {
        let certificate = self.certificate.display();
        let validity = identity.cert.first().map(validity);
        match validity {
            Some(Err(webpki::Error::CertExpired { not_after, .. })) => {
                let since = humantime::format_rfc3339_seconds(time_of(not_after));
                tracing::warn!(%certificate, %since, "the certificate has expired; clients refuse it");
            }
            Some(Err(webpki::Error::CertNotValidYet { not_before, .. })) => {
                let until = humantime::format_rfc3339_seconds(time_of(not_before));
                tracing::warn!(%certificate, %until, "the certificate is not valid yet; clients refuse it");
            }
            _ => {}
        }
        const OTHERS: u32 = 0o007;
        let key = fs::metadata(&self.key);
        if key.is_ok_and(|key| key.mode() & OTHERS != 0) {
            let key = self.key.display();
            tracing::warn!(%key, "everybody on this machine can read the private key; chmod o= keeps them out");
        }
    }
}

/// Whether a certificate is valid now: only then an error is about something else, for nobody is trusted
/// here.
fn validity(certificate: &CertificateDer<'_>) -> Result<(), webpki::Error> {
    let certificate = EndEntityCert::try_from(certificate)?;
    let (now, usage) = (UnixTime::now(), KeyUsage::server_auth());
    let path = certificate.verify_for_usage(&[], &[], &[], now, usage, None, None);
    path.map(|_| ())
}

fn time_of(time: UnixTime) -> std::time::SystemTime {
    std::time::UNIX_EPOCH + Duration::from_secs(time.as_secs())
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
