//! A connection that sends hand-written frames and reads the server's responses.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use bytes::{Buf, BytesMut};
use httlib_hpack::Decoder;
use tokio::{
    io::Interest,
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::{
    seen::{CLOSED, CONNECTIONS, REFUSED, STREAMS, Seen},
    wire::{FRAME_HEAD, Frames, PREFACE, WINDOW_MAX, error_name, flag, kind, setting},
};

/// Maximum number of bytes to read at a time.
const READ: usize = 65_536;

/// Initial flow-control window of a connection.
const FIRST_WINDOW: u32 = 65_535;

/// The source addresses of attackers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Source {
    /// One hostile host, 127.0.0.2
    One,
    /// One host for each connection, up to 62,500
    Many,
}

impl Source {
    fn of(self, connection: usize) -> Ipv4Addr {
        match self {
            Source::One => Ipv4Addr::new(127, 0, 0, 2),
            Source::Many => {
                let third = u8::try_from(connection / 250 % 250).unwrap_or_default();
                let fourth = u8::try_from(connection % 250).unwrap_or_default();
                Ipv4Addr::new(127, 1, third, fourth + 1)
            }
        }
    }
}

/// What the server sent.
#[derive(Debug)]
pub(crate) enum Event {
    Headers {
        stream: u32,
        fields: Vec<(String, String)>,
        end: bool,
    },
    Data {
        stream: u32,
        end: bool,
    },
    Reset {
        stream: u32,
        code: u32,
    },
    PingAnswered,
    GoAway,
    Other,
}

/// The server's response on a stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) http: Option<u16>,
    /// gRPC status.
    pub(crate) grpc: Option<u16>,
    /// Error code of the RST_STREAM that ended the stream.
    pub(crate) reset: Option<u32>,
    /// Details of the gRPC status, decoded as UTF-8 with replacement characters.
    pub(crate) details: String,
    has_ended: bool,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer {
                grpc: Some(code), ..
            } => write!(f, "grpc-status {code}"),
            Answer {
                http: Some(status), ..
            } => write!(f, "HTTP {status}"),
            Answer {
                reset: Some(code), ..
            } => write!(f, "reset over {}", error_name(*code)),
            _ => f.write_str("no answer"),
        }
    }
}

/// Connects to the server from an attacker's address, with a receive buffer of `room` bytes, if
/// given. Counts the attempt in `seen`.
///
/// Dropping the future abandons the attempt.
pub(crate) async fn dial(
    target: SocketAddr,
    source: Source,
    number: usize,
    room: Option<u32>,
    seen: &RefCell<Seen>,
) -> io::Result<TcpStream> {
    let connected = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind((IpAddr::from(source.of(number)), 0).into())?;
        // Closing the socket sends a reset, so that its port is free at once.
        socket.set_zero_linger()?;
        socket.set_nodelay(true)?;
        if let Some(room) = room {
            socket.set_recv_buffer_size(room)?;
        }
        socket.connect(target).await
    };
    let connected = connected.await;
    seen.borrow_mut().add(
        if connected.is_ok() {
            CONNECTIONS
        } else {
            REFUSED
        },
        1,
    );
    connected
}

/// A connection that begins with the preface and the settings.
pub(crate) struct Connection {
    socket: TcpStream,
    /// Bytes to send.
    pub(crate) out: Vec<u8>,
    sent: usize,
    input: BytesMut,
    decoder: Decoder<'static>,
    /// Header block that continues in the next frame: its stream, whether it ends the stream, and
    /// its bytes.
    block: Option<(u32, bool, Vec<u8>)>,
    events: VecDeque<Event>,
    next_stream: u32,
    pub(crate) seen: Rc<RefCell<Seen>>,
}

impl Connection {
    /// Creates a connection on `socket`. `window` is the initial flow-control window of each
    /// stream.
    pub(crate) fn begin(socket: TcpStream, window: u32, seen: Rc<RefCell<Seen>>) -> Connection {
        let mut out = PREFACE.to_vec();
        out.settings(&[
            (setting::HEADER_TABLE_SIZE, 0),
            (setting::INITIAL_WINDOW_SIZE, window),
        ]);
        // Enlarge the connection's window, so that it is enough for the whole attack.
        out.window_update(0, WINDOW_MAX - FIRST_WINDOW);
        Connection {
            socket,
            out,
            sent: 0,
            input: BytesMut::new(),
            decoder: Decoder::default(),
            block: None,
            events: VecDeque::new(),
            next_stream: 1,
            seen,
        }
    }

    /// Returns the ID of a new stream.
    pub(crate) fn next_stream(&mut self) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        self.seen.borrow_mut().add(STREAMS, 1);
        stream
    }

    /// Opens a stream with its headers and, if given, a message. Returns the stream's ID.
    pub(crate) fn open(&mut self, block: &[u8], message: Option<&[u8]>, end: bool) -> u32 {
        let stream = self.next_stream();
        self.out.headers(stream, block, end && message.is_none());
        if let Some(message) = message {
            self.out.data(stream, message, end);
        }
        stream
    }

    /// Whether nearly all stream IDs are used up.
    pub(crate) fn is_used_up(&self) -> bool {
        self.next_stream > WINDOW_MAX - 4096
    }

    /// Sends `out`, and reads meanwhile. Dropping the future leaves the rest for the next call.
    ///
    /// # Errors
    ///
    /// Returns an error if the server has ended the connection.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            self.turn().await?;
        }
        Ok(())
    }

    /// Sends `out`, discards the events received so far, and yields to the other tasks. Dropping
    /// the future leaves the rest for the next call.
    pub(crate) async fn flood(&mut self) -> io::Result<()> {
        self.flush().await?;
        self.events.clear();
        tokio::task::yield_now().await;
        Ok(())
    }

    /// Returns the next event from the server. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> io::Result<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            self.turn().await?;
        }
    }

    /// Waits until the server has read everything that was sent, which its response to a PING
    /// shows.
    pub(crate) async fn until_read(&mut self) -> io::Result<()> {
        self.out.ping(7);
        while !matches!(self.next().await?, Event::PingAnswered) {}
        self.events.clear();
        Ok(())
    }

    /// Returns the response on a stream, as far as it arrives `within` this time. Dropping the
    /// future loses the part that was read.
    pub(crate) async fn answer(&mut self, stream: u32, within: Duration) -> io::Result<Answer> {
        let answers = self.answers(&[stream], within).await?;
        Ok(answers.into_iter().next().unwrap_or_default())
    }

    /// Returns the responses on streams, in ascending order of the streams, as far as they arrive
    /// `within` this time. Dropping the future loses the parts that were read.
    pub(crate) async fn answers(
        &mut self,
        streams: &[u32],
        within: Duration,
    ) -> io::Result<Vec<Answer>> {
        let mut answers: BTreeMap<u32, Answer> = BTreeMap::new();
        answers.extend(streams.iter().map(|stream| (*stream, Answer::default())));
        let mut missing = answers.len();
        let read = async {
            while missing > 0 {
                let (stream, ended) = match self.next().await? {
                    Event::Headers {
                        stream,
                        fields,
                        end,
                    } => {
                        if let Some(answer) = answers.get_mut(&stream) {
                            answer.take(&fields);
                        }
                        (stream, end)
                    }
                    Event::Data { stream, end } => (stream, end),
                    Event::Reset { stream, code } => {
                        let answer = answers.get_mut(&stream);
                        // The server may also reset a stream that it has ended, so that the client
                        // sends no more.
                        let Some(answer) = answer.filter(|answer| !answer.has_ended) else {
                            continue;
                        };
                        answer.reset = Some(code);
                        (stream, true)
                    }
                    _ => continue,
                };
                if let Some(answer) = answers.get_mut(&stream)
                    && ended
                    && !answer.has_ended
                {
                    answer.has_ended = true;
                    missing -= 1;
                }
            }
            Ok(())
        };
        match timeout(within, read).await {
            Ok(Err(error)) => Err(error),
            _ => Ok(answers.into_values().collect()),
        }
    }

    /// Sends `out` without reading. Dropping the future leaves the rest for the next call.
    pub(crate) async fn write_only(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            self.socket.writable().await?;
            self.write()?;
        }
        tokio::task::yield_now().await;
        Ok(())
    }

    /// Waits until the socket is ready, then reads and writes once.
    async fn turn(&mut self) -> io::Result<()> {
        let interest = if self.out.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        let ready = self.socket.ready(interest).await?;
        if ready.is_readable() {
            self.input.reserve(READ);
            match self.socket.try_read_buf(&mut self.input) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => self.parse()?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        if ready.is_writable() && !self.out.is_empty() {
            self.write()?;
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        match self.socket.try_write(&self.out[self.sent..]) {
            Ok(written) => self.sent += written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
        Ok(())
    }

    fn parse(&mut self) -> io::Result<()> {
        while let Some([a, b, c, kind, flags, stream @ ..]) = self.input.first_chunk::<FRAME_HEAD>()
        {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            let (kind, flags) = (*kind, *flags);
            let stream = u32::from_be_bytes(*stream) & WINDOW_MAX;
            if self.input.len() < FRAME_HEAD + length {
                break;
            }
            self.input.advance(FRAME_HEAD);
            let payload = self.input.split_to(length);
            let event = self.event(kind, flags, stream, &payload)?;
            self.events.extend(event);
        }
        Ok(())
    }

    fn event(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> io::Result<Option<Event>> {
        let end = flags & flag::END_STREAM != 0;
        let code = |at: usize| {
            let bytes = payload.get(at..at + 4)?;
            Some(u32::from_be_bytes(bytes.try_into().ok()?))
        };
        Ok(Some(match kind {
            kind::HEADERS | kind::CONTINUATION => {
                let begun = self.block.take();
                let (stream, end, mut block) = begun.unwrap_or((stream, end, Vec::new()));
                block.extend(payload);
                if flags & flag::END_HEADERS == 0 {
                    self.block = Some((stream, end, block));
                    return Ok(None);
                }
                let mut fields = Vec::new();
                let read = self.decoder.decode(&mut block, &mut fields);
                read.map_err(|error| {
                    let error = format!("the server's headers cannot be read: {error:?}");
                    io::Error::new(io::ErrorKind::InvalidData, error)
                })?;
                let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                let fields = fields.into_iter();
                let fields = fields.map(|(name, value, _)| (text(name), text(value)));
                Event::Headers {
                    stream,
                    fields: fields.collect(),
                    end,
                }
            }
            kind::DATA => Event::Data { stream, end },
            kind::RST_STREAM => {
                let code = code(0).unwrap_or_default();
                let what = format!("reset {}", error_name(code));
                self.seen.borrow_mut().add(&what, 1);
                Event::Reset { stream, code }
            }
            kind::SETTINGS if flags & flag::ACK == 0 => {
                self.out.frame(kind::SETTINGS, flag::ACK, 0, &[]);
                Event::Other
            }
            kind::PING if flags & flag::ACK == 0 => {
                self.out.frame(kind::PING, flag::ACK, 0, payload);
                Event::Other
            }
            kind::PING => Event::PingAnswered,
            kind::GOAWAY => {
                let code = code(4).unwrap_or_default();
                let why = String::from_utf8_lossy(payload.get(8..).unwrap_or_default());
                let what = format!("goaway {} {why}", error_name(code));
                self.seen.borrow_mut().add(what.trim_end(), 1);
                Event::GoAway
            }
            _ => Event::Other,
        }))
    }
}

impl Answer {
    pub(crate) fn take(&mut self, fields: &[(String, String)]) {
        for (name, value) in fields {
            match name.as_str() {
                ":status" => self.http = value.parse().ok(),
                "grpc-status" => self.grpc = value.parse().ok(),
                "grpc-status-details-bin" => {
                    let bytes = BASE64_STANDARD_NO_PAD.decode(value.trim_end_matches('='));
                    self.details = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
                }
                _ => {}
            }
        }
    }
}

/// Counts a connection that the server closed.
pub(crate) fn closed(seen: &RefCell<Seen>) {
    seen.borrow_mut().add(CLOSED, 1);
}
