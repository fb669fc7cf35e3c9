//! Where a server listens.

use std::{
    fs,
    io::{self, ErrorKind, IoSlice},
    net::{SocketAddr, ToSocketAddrs},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::{Sleep, sleep},
};
use tokio_stream::Stream;

use crate::{
    peer::{Peer, Who},
    tls::Tls,
};

/// How many connections may wait to be accepted; the system may allow fewer.
const BACKLOG: i32 = 1024;

/// How long nothing is accepted after it has failed, for want of file descriptors above all. A connection
/// that waits is there at once again, and would be tried without a pause.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a socket that is there already may take to say whether somebody listens on it.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// A socket that connections come from.
pub struct Listener {
    socket: ListeningSocket,
    /// There while accepting pauses.
    pause: Option<Pin<Box<Sleep>>>,
    has_failed: bool,
}

enum ListeningSocket {
    Tcp(TcpListener),
    // The file goes before the socket, so that no file of a server that takes its place can go.
    Unix(SocketFile, UnixListener),
}

impl Listener {
    /// Listens on the first of the addresses that can be bound. Port 0 takes a free one. With `reuse_port`, other processes
    /// can listen on the same port (SO_REUSEPORT).
    ///
    /// # Errors
    ///
    /// If none can be bound.
    pub fn tcp(addresses: &[SocketAddr], reuse_port: bool) -> Result<Listener> {
        let bind = |address: SocketAddr| -> io::Result<TcpListener> {
            let socket = Socket::new(
                Domain::for_address(address),
                Type::STREAM,
                Some(Protocol::TCP),
            )?;
            // So that a server that was just stopped can be started again at once.
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(reuse_port)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            TcpListener::from_std(socket.into())
        };
        let mut failure = None;
        for address in addresses {
            match bind(*address) {
                Ok(listener) => return Ok(Listener::new(ListeningSocket::Tcp(listener))),
                Err(error) => {
                    let in_use = error.kind() == io::ErrorKind::AddrInUse;
                    let error = anyhow::Error::new(error);
                    let error = error.context(format!("cannot listen on {address}"));
                    failure = Some(if in_use {
                        anyhow::anyhow!(
                            "{error:#}; give another port, or port 0 to take a free one"
                        )
                    } else {
                        error
                    });
                }
            }
        }
        Err(failure.unwrap_or_else(|| anyhow!("there is no address to listen on")))
    }

    /// Listens on a Unix socket, which is removed when the listener is dropped. One that a server left
    /// behind that is not there any more is replaced.
    ///
    /// # Errors
    ///
    /// If another server listens there, there is something else than a socket, or it cannot be bound.
    pub fn unix(path: &Path) -> Result<Listener> {
        let shown = path.display();
        let is_socket = fs::symlink_metadata(path).map(|file| file.file_type().is_socket());
        match is_socket {
            Ok(true) => match probe(path) {
                Ok(()) => bail!("a server is listening on {shown} already"),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).with_context(|| format!("cannot replace {shown}"))?;
                }
                Err(error) => return Err(error).with_context(|| format!("cannot use {shown}")),
            },
            Ok(false) => bail!("{shown} is there already and is no socket"),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot use {shown}")),
        }
        let listener =
            UnixListener::bind(path).with_context(|| format!("cannot listen on {shown}"))?;
        let file = SocketFile::new(path).with_context(|| format!("cannot use {shown}"))?;
        Ok(Listener::new(ListeningSocket::Unix(file, listener)))
    }

    fn new(socket: ListeningSocket) -> Listener {
        Listener {
            socket,
            pause: None,
            has_failed: false,
        }
    }

    /// Returns the user who runs this server, where clients are users.
    ///
    /// # Errors
    ///
    /// If the system call fails.
    pub fn owner(&self) -> io::Result<Option<u32>> {
        match &self.socket {
            ListeningSocket::Tcp(_) => Ok(None),
            ListeningSocket::Unix(..) => {
                // As clients are recognised; whose the socket's file is, others may be able to change.
                let (one, _other) = UnixStream::pair()?;
                Ok(Some(one.peer_cred()?.uid()))
            }
        }
    }

    /// Returns the address to tell people and clients: `HOST:PORT` or `unix:PATH`.
    ///
    /// # Errors
    ///
    /// If the system call fails.
    pub fn address(&self) -> io::Result<String> {
        Ok(match &self.socket {
            ListeningSocket::Tcp(listener) => listener.local_addr()?.to_string(),
            ListeningSocket::Unix(file, _) => format!("unix:{}", file.path.display()),
        })
    }
}

/// Where a host can be listened on, the first choice first. This may ask a name server.
///
/// # Errors
///
/// If the host is unknown or has no address.
pub fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    let addresses = (host.trim_matches(['[', ']']), port).to_socket_addrs();
    let addresses = addresses.with_context(|| format!("cannot resolve the host {host:?}"))?;
    let addresses: Vec<SocketAddr> = addresses.collect();
    ensure!(!addresses.is_empty(), "the host {host:?} has no address");
    Ok(addresses)
}

/// Whether somebody listens on a Unix socket.
fn probe(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.connect_timeout(&SockAddr::unix(path)?, PROBE_TIMEOUT)
}

/// A socket's file, for as long as somebody listens on it.
struct SocketFile {
    path: PathBuf,
    /// Which file it is: somebody may put another one in its place.
    inode: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile {
            path: path.to_owned(),
            inode: SocketFile::inode(path)?,
        })
    }

    fn inode(path: &Path) -> io::Result<(u64, u64)> {
        let file = fs::symlink_metadata(path)?;
        Ok((file.dev(), file.ino()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if SocketFile::inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            // If somebody else removes it first, so much the better.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Stream for Listener {
    type Item = io::Result<Connection>;

    /// Never gives an error: what cannot be accepted now is tried again after a pause.
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let stream = match &self.socket {
                ListeningSocket::Tcp(listener) => {
                    let accepted = ready!(listener.poll_accept(cx));
                    accepted.map(|(stream, _)| {
                        // A socket that cannot do it is of use all the same.
                        let _ = stream.set_nodelay(true);
                        Socketed::Tcp(stream)
                    })
                }
                ListeningSocket::Unix(_, listener) => {
                    let accepted = ready!(listener.poll_accept(cx));
                    accepted.map(|(stream, _)| Socketed::Unix(stream))
                }
            };
            match stream {
                Ok(stream) => {
                    if std::mem::take(&mut self.has_failed) {
                        tracing::info!("connections are accepted again");
                    }
                    return Poll::Ready(Some(Ok(Connection::new(stream))));
                }
                // One that was given up before it was accepted says nothing of the next one.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.has_failed, true) {
                        tracing::error!(%error, "connections cannot be accepted");
                    }
                    self.pause = Some(Box::pin(sleep(PAUSE)));
                }
            }
        }
    }
}

/// Returns the number of a new connection, which no other one of this process has.
pub(crate) fn next_number() -> u64 {
    static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
    CONNECTIONS.fetch_add(1, Ordering::Relaxed)
}

/// A connection that was accepted.
pub struct Connection {
    stream: Socketed,
    peer: Peer,
}

enum Socketed {
    Tcp(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    Unix(UnixStream),
}

impl Connection {
    fn new(stream: Socketed) -> Connection {
        let address = |stream: &TcpStream| stream.peer_addr().map_or(Who::Nobody, Who::Address);
        let who = match &stream {
            // Whoever is gone already has none, and will not ask for anything either.
            Socketed::Tcp(stream) => address(stream),
            Socketed::Tls(stream) => address(stream.get_ref().0),
            Socketed::Unix(stream) => {
                let credentials = stream.peer_cred();
                credentials.map_or(Who::Nobody, |peer| Who::User(peer.uid()))
            }
        };
        let peer = Peer::new(who, next_number());
        Connection { stream, peer }
    }

    /// Shakes hands, where there is TLS and the connection may come from elsewhere. Dropping the future
    /// closes it.
    ///
    /// # Errors
    ///
    /// If the handshake fails.
    pub(crate) async fn secured(self, tls: Option<&Tls>) -> io::Result<Connection> {
        let (tls, tcp) = match (tls, self.stream) {
            (Some(tls), Socketed::Tcp(tcp)) => (tls, tcp),
            (_, stream) => return Ok(Connection { stream, ..self }),
        };
        let (stream, certificate) = tls.accept(tcp).await?;
        let mut peer = self.peer;
        peer.certificate = certificate;
        Ok(Connection {
            stream: Socketed::Tls(Box::new(stream)),
            peer,
        })
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Waits until something has come, or the other end is gone. Dropping the future changes nothing.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match &self.stream {
            // Readiness alone may be a false alarm.
            Socketed::Tcp(stream) => stream.peek(&mut [0]).await.map(drop),
            // It has shaken hands.
            Socketed::Tls(_) => Ok(()),
            Socketed::Unix(stream) => stream.readable().await,
        }
    }
}

/// Passes a call on to whichever stream there is.
macro_rules! either {
    ($self:ident, $stream:ident => $call:expr) => {
        match &mut $self.get_mut().stream {
            Socketed::Tcp(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Socketed::Tls(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Socketed::Unix(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        // Both kinds of socket do.
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }
}
