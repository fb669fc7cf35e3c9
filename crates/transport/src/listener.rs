//! Listening sockets and accepted connections.

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

/// Maximum number of connections that wait to be accepted. The system may allow fewer.
const BACKLOG: i32 = 1024;

/// Pause after an accept that failed, usually for lack of file descriptors. The system reports a
/// waiting connection again at once, so without a pause the server would retry in a busy loop.
const PAUSE: Duration = Duration::from_millis(50);

/// Maximum time for the connection attempt that checks whether a server listens on an existing
/// socket.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// A listening socket.
pub struct Listener {
    socket: ListeningSocket,
    /// Set while accepting is paused.
    pause: Option<Pin<Box<Sleep>>>,
    has_failed: bool,
}

enum ListeningSocket {
    Tcp(TcpListener),
    // The file is dropped before the socket. Otherwise the drop could remove the file of another
    // server that has taken over the path.
    Unix(SocketFile, UnixListener),
}

impl Listener {
    /// Listens on the first address that can be bound. Port 0 selects a free port. With
    /// `reuse_port`, other processes can listen on the same port (SO_REUSEPORT).
    ///
    /// # Errors
    ///
    /// If no address can be bound.
    pub fn tcp(addresses: &[SocketAddr], reuse_port: bool) -> Result<Listener> {
        let bind = |address: SocketAddr| -> io::Result<TcpListener> {
            let socket = Socket::new(
                Domain::for_address(address),
                Type::STREAM,
                Some(Protocol::TCP),
            )?;
            // Allows a server to restart immediately after it was stopped.
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
                        anyhow::anyhow!("{error:#}; use another port, or port 0 for any free port")
                    } else {
                        error
                    });
                }
            }
        }
        Err(failure.unwrap_or_else(|| anyhow!("no address to listen on")))
    }

    /// Listens on a Unix socket. Dropping the listener removes the file. A socket file that a
    /// stopped server left behind is replaced.
    ///
    /// # Errors
    ///
    /// If another server listens on the socket, the path is not a socket, or binding fails.
    pub fn unix(path: &Path) -> Result<Listener> {
        let shown = path.display();
        let is_socket = fs::symlink_metadata(path).map(|file| file.file_type().is_socket());
        match is_socket {
            Ok(true) => match probe(path) {
                Ok(()) => bail!("cannot listen on {shown}: another server is listening there"),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).with_context(|| format!("cannot replace {shown}"))?;
                }
                Err(error) => return Err(error).with_context(|| format!("cannot use {shown}")),
            },
            Ok(false) => bail!("cannot listen on {shown}: the file exists and is not a socket"),
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

    /// Returns the id of the user that runs this server, if clients are identified by user id (Unix
    /// sockets).
    ///
    /// # Errors
    ///
    /// If the system call fails.
    pub fn owner(&self) -> io::Result<Option<u32>> {
        match &self.socket {
            ListeningSocket::Tcp(_) => Ok(None),
            ListeningSocket::Unix(..) => {
                // Determined as for clients, and not by the owner of the socket's file, which other
                // users may be able to change.
                let (one, _other) = UnixStream::pair()?;
                Ok(Some(one.peer_cred()?.uid()))
            }
        }
    }

    /// Returns the address as users and clients write it: `IP:PORT` or `unix:PATH`.
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

/// Returns the addresses of a host to listen on, in order of preference. This may query a name
/// server, and blocks until it answers.
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

/// Connects to a Unix socket, to check whether a server listens on it.
fn probe(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.connect_timeout(&SockAddr::unix(path)?, PROBE_TIMEOUT)
}

/// The file of a Unix socket on which this server listens. Dropping this removes the file, unless
/// another file has replaced it.
struct SocketFile {
    path: PathBuf,
    /// Device and inode of the file. They show whether another file has replaced it.
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
            // An error is ignored: another process may have removed the file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Stream for Listener {
    type Item = io::Result<Connection>;

    /// Never returns an error: a failed accept is retried after a pause.
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
                        // If this fails, the connection still works.
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
                        tracing::info!("accepting connections again");
                    }
                    return Poll::Ready(Some(Ok(Connection::new(stream))));
                }
                // The client gave up before the accept. The next connection may be fine.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.has_failed, true) {
                        tracing::error!(%error, "cannot accept connections");
                    }
                    self.pause = Some(Box::pin(sleep(PAUSE)));
                }
            }
        }
    }
}

/// Returns a number for a new connection, unique in this process.
pub(crate) fn next_number() -> u64 {
    static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
    CONNECTIONS.fetch_add(1, Ordering::Relaxed)
}

/// An accepted connection.
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
        let address = |stream: &TcpStream| stream.peer_addr().map_or(Who::Unknown, Who::Address);
        let who = match &stream {
            // A client that has already disconnected has no address, and will send no request.
            Socketed::Tcp(stream) => address(stream),
            Socketed::Tls(stream) => address(stream.get_ref().0),
            Socketed::Unix(stream) => {
                let credentials = stream.peer_cred();
                credentials.map_or(Who::Unknown, |peer| Who::User(peer.uid()))
            }
        };
        let peer = Peer::new(who, next_number());
        Connection { stream, peer }
    }

    /// Performs the TLS handshake if `tls` is given and this is a TCP connection. Dropping the
    /// future closes the connection.
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

    /// Returns the client at the other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Waits until data arrives or the client disconnects. Dropping the future has no effect.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match &self.stream {
            // Readiness may be a false alarm, so this peeks at the data.
            Socketed::Tcp(stream) => stream.peek(&mut [0]).await.map(drop),
            // The client has completed its handshake, so it has sent something.
            Socketed::Tls(_) => Ok(()),
            Socketed::Unix(stream) => stream.readable().await,
        }
    }
}

/// Forwards a call to the stream, whichever of the three kinds it is.
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
        // All three kinds of stream support vectored writes.
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }
}
