//! Makes connections to a server, and records failures that would recur.

use std::{
    io::{self, IoSlice},
    net::{SocketAddr, ToSocketAddrs},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use hashfinder_system::threads::aside;
use http::{Uri, uri::Authority};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{Error, pki_types::ServerName},
};
use tower_service::Service;

use crate::address::{ServerAddress, bare_host};

/// ALPN protocol ID of HTTP/2.
pub(crate) const ALPN: &[u8] = b"h2";

/// TCP keepalive: idle time before the first probe, interval between probes, and number of
/// unanswered probes that close the connection. HTTP/2 has its own pings, but some servers close a
/// connection because of them.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// First two bytes of a TLS alert record (content type 21, major version 3).
const ALERT: [u8; 2] = [21, 3];

/// Why a connection failed, if the next one would fail for the same reason.
#[derive(Clone, Debug)]
pub(crate) enum ConnectFailure {
    /// The TLS handshake failed.
    Tls(Error),
    /// The server speaks TLS, but this connection does not.
    SpeaksTls,
}

/// Makes connections to a server. Clones share the last failure.
///
/// The HTTP/2 library reports to a call at most that the connection has failed, and often not even
/// that, so the reason is kept here.
#[derive(Clone)]
pub(crate) struct Connector {
    server: ServerAddress,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    failure: Arc<Mutex<Option<ConnectFailure>>>,
}

impl Connector {
    /// Creates a connector. `tls` is required if `server` is an address with TLS.
    pub(crate) fn new(
        server: ServerAddress,
        tls: Option<(TlsConnector, ServerName<'static>)>,
    ) -> Connector {
        Connector {
            server,
            tls,
            failure: Arc::default(),
        }
    }

    /// Returns the last failure.
    pub(crate) fn failure(&self) -> Option<ConnectFailure> {
        self.last().clone()
    }

    fn last(&self) -> MutexGuard<'_, Option<ConnectFailure>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(self) -> io::Result<Box<dyn Stream>> {
        let authority = match &self.server {
            ServerAddress::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
            ServerAddress::Tcp(authority) | ServerAddress::Tls(authority) => authority,
        };
        let tcp = tcp(authority).await?;
        let Some((tls, name)) = &self.tls else {
            let connector = self.clone();
            return Ok(Box::new(Watched::new(tcp, connector)));
        };
        let stream = tls.connect(name.clone(), tcp).await;
        let stream = stream.inspect_err(|error| self.note(error))?;
        let stream = Watched::new(stream, self.clone());
        if stream.stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            let error = io::Error::other(Error::NoApplicationProtocol);
            self.note(&error);
            return Err(error);
        }
        Ok(Box::new(stream))
    }

    fn note(&self, error: &io::Error) {
        let inner = error.get_ref();
        if let Some(tls) = inner.and_then(|inner| inner.downcast_ref::<Error>()) {
            *self.last() = Some(ConnectFailure::Tls(tls.clone()));
        }
    }
}

async fn tcp(authority: &Authority) -> io::Result<TcpStream> {
    let port = authority.port_u16().unwrap_or_default();
    let tcp = TcpStream::connect(&*resolved(bare_host(authority), port).await?).await?;
    tcp.set_nodelay(true)?;
    let (after, interval, retries) = KEEPALIVE;
    let keepalive = TcpKeepalive::new().with_time(after);
    let keepalive = keepalive.with_interval(interval).with_retries(retries);
    SockRef::from(&tcp).set_tcp_keepalive(&keepalive)?;
    Ok(tcp)
}

/// Returns the addresses of a host. Dropping the future abandons the thread that resolves the host.
async fn resolved(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    // tokio's own lookup panics if no thread can be started.
    let host = host.to_owned();
    let addresses = aside("resolve", move || (host, port).to_socket_addrs());
    Ok(addresses.await??.collect())
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ignores the URI: the connector has the server's address.
    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect().await.map(TokioIo::new) })
    }
}

/// A byte stream for HTTP/2.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection that records its failure in the connector.
struct Watched<S> {
    stream: S,
    connector: Connector,
    has_begun: bool,
}

impl<S> Watched<S> {
    fn new(stream: S, connector: Connector) -> Watched<S> {
        Watched {
            stream,
            connector,
            has_begun: false,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        match &read {
            // In TLS 1.3 a server checks the client's certificate after the handshake has ended for
            // the client, so a rejection arrives as a read error.
            Err(error) => self.connector.note(error),
            Ok(()) if !self.has_begun => {
                self.has_begun = true;
                // An HTTP/2 frame that begins with these bytes would be longer than any that the
                // client accepts.
                if self.connector.tls.is_none() && buffer.filled()[before..].starts_with(&ALERT) {
                    *self.connector.last() = Some(ConnectFailure::SpeaksTls);
                }
            }
            Ok(()) => {}
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
