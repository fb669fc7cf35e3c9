//! Meters a connection: counts the frames that cost the server much and the client little, before
//! the HTTP/2 library sees them. A connection with too many of them is read more slowly. If it has
//! too many resets or control frames for too long, it is closed.
//!
//! The library itself limits streams that were reset before they were accepted, streams that it had
//! to reset, and CONTINUATION and small DATA frames. It sets no limit on streams that are reset a
//! little later, or on other frames that need only an answer: it handles those as fast as the
//! processor can (CVE-2023-44487, CVE-2019-9512 to 9518).

use std::{
    collections::BTreeSet,
    io::{self, IoSlice},
    num::NonZeroU32,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use crate::{
    activity::Activity,
    counts::{Closed, Counts},
    frames::{Frames, Head, Kind, PREFACE_LEN, PROTOCOL_ERROR},
    rate::{Bucket, Rate},
};

/// How long a connection with too many resets or control frames is read more slowly before it is
/// closed. This is longer than any honest burst: an honest client stops when it receives no
/// answers.
const PATIENCE: Duration = Duration::from_secs(10);

/// Factor by which the limits of an address exceed those of a connection. It leaves room for a few
/// busy programs behind one address, and keeps a client from multiplying its limits by opening more
/// connections.
const OF_ADDRESS: f64 = 4.0;

/// Maximum number of streams that a connection may begin at once: as many as an honest client has
/// waiting. Without this limit, twenty connections that each began a thousand streams at once
/// delayed all other clients by a tenth of a second. Nearly all of those streams were rejected, and
/// each took 4 KB until then.
const STREAMS_AT_ONCE: f64 = 100.0;

/// Number of header bytes that cost as much as another stream. Each full 512 bytes of a HEADERS or
/// CONTINUATION frame count; most streams begin with fewer. 512 bytes can hold hundreds of fields,
/// which take as long to read as it takes to reject a call.
const HEADERS_OF_STREAM: usize = 512;

/// Rate at which a connection may always begin streams, even if other connections of its address
/// have used up the address's limit. So a client's neighbours cannot lock it out.
const GUARANTEED: Rate = Rate {
    per_second: 10.0,
    burst: 20.0,
};

/// Maximum number of answers without data, such as errors, that wait for room in the socket of a
/// client that does not read. Their calls have ended, and each answer takes 2 to 4 KB in the HTTP/2
/// library. The calls that were open when the socket filled up, or that began in the last portion
/// read, can still add their answers.
const UNSENT_ANSWERS: usize = 100;

/// Number of control frames that are free with each stream that the client begins: window updates
/// for the stream and the connection, and pings with which clients measure a busy connection.
const WITH_STREAM: f64 = 8.0;

/// Number of control frames that are free with each DATA frame that the server sends, for the same
/// reasons.
const WITH_DATA: f64 = 4.0;

/// Number of control frames of a new connection that do not count for its address: those of the
/// connection setup, so that a client's neighbours cannot keep it from connecting. With the default
/// limits, the allowances for all new connections of an address in one second add up to less than
/// its limit on control frames.
const INITIAL_ALLOWANCE: f64 = 16.0;

/// Maximum number of bytes read at once: about twenty calls, or a hundred of the shortest frames.
/// So frames are counted, and reading can pause, after each small portion, and other connections
/// wait for at most one portion's work.
const MOST_AT_ONCE: usize = 1024;

/// Limits on the frames of a connection, per second. All connections of an address together may
/// have four times as many. A second's resets and control frames may come all at once, streams only
/// 100 at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloodLimits {
    /// Maximum number of streams that the client begins. A stream counts once more for each 512
    /// bytes of its headers. Default: 2,000. At 30 us per rejected call, the calls of an address
    /// take at most a quarter of a core.
    pub streams: NonZeroU32,
    /// Maximum number of streams that the client resets, or makes the server reset. Default: 500,
    /// far more than people and programs cancel. At 20 us each, they take a hundredth of a core.
    pub resets: NonZeroU32,
    /// Maximum number of other frames that the client sends, beyond those that are free with
    /// streams and DATA. Default: 1,000. At 2 us each, they take a five-hundredth of a core.
    pub control_frames: NonZeroU32,
}

impl Default for FloodLimits {
    fn default() -> FloodLimits {
        const STREAMS: NonZeroU32 = NonZeroU32::new(2000).unwrap();
        const RESETS: NonZeroU32 = NonZeroU32::new(500).unwrap();
        const CONTROL_FRAMES: NonZeroU32 = NonZeroU32::new(1000).unwrap();
        FloodLimits {
            streams: STREAMS,
            resets: RESETS,
            control_frames: CONTROL_FRAMES,
        }
    }
}

fn rate(per_second: NonZeroU32) -> Rate {
    let per_second = f64::from(per_second.get());
    Rate {
        per_second,
        burst: per_second,
    }
}

/// Returns the rate at which streams may begin.
fn begun(per_second: NonZeroU32) -> Rate {
    let Rate { per_second, burst } = rate(per_second);
    Rate {
        per_second,
        burst: burst.min(STREAMS_AT_ONCE),
    }
}

fn of_address(Rate { per_second, burst }: Rate) -> Rate {
    Rate {
        per_second: OF_ADDRESS * per_second,
        burst: OF_ADDRESS * burst,
    }
}

/// Token buckets that all connections of one address share.
#[derive(Debug)]
pub(crate) struct Shared {
    limits: FloodLimits,
    streams: Bucket,
    resets: Bucket,
    control: Bucket,
}

impl Shared {
    pub(crate) fn new(limits: FloodLimits, now: Instant) -> Shared {
        Shared {
            limits,
            streams: Bucket::new(of_address(begun(limits.streams)), now),
            resets: Bucket::new(of_address(rate(limits.resets)), now),
            control: Bucket::new(of_address(rate(limits.control_frames)), now),
        }
    }

    /// Whether all buckets are full. Then this equals a new one, so it can be dropped.
    pub(crate) fn is_full(&mut self, now: Instant) -> bool {
        let limits = self.limits;
        self.streams.is_full(of_address(begun(limits.streams)), now)
            && self.resets.is_full(of_address(rate(limits.resets)), now)
            && self
                .control
                .is_full(of_address(rate(limits.control_frames)), now)
    }
}

/// Cost of a number of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Cost {
    streams: f64,
    resets: f64,
    control: f64,
}

/// Counts the frames of one connection.
#[derive(Debug)]
struct Meter {
    limits: FloodLimits,
    received: Frames,
    sent: Frames,
    /// Highest number of a stream that the client has begun.
    last_stream: u32,
    /// Cost that has not been charged yet.
    cost: Cost,
    streams: Bucket,
    resets: Bucket,
    control: Bucket,
    /// Streams that the connection may still begin even if its neighbours have used up the
    /// address's limit.
    guaranteed: Bucket,
    of_address: Arc<Mutex<Shared>>,
    /// What is left of [`INITIAL_ALLOWANCE`].
    initial_allowance: f64,
    /// Start of the current flood, if there is one. A rest that refills the buckets for resets and
    /// control frames ends it.
    too_much_since: Option<Instant>,
    /// Streams that the client began and whose response has not been written completely.
    unanswered: BTreeSet<u32>,
    /// Number of GOAWAY frames sent.
    goaways: u32,
}

impl Meter {
    fn new(limits: FloodLimits, of_address: Arc<Mutex<Shared>>, now: Instant) -> Meter {
        Meter {
            limits,
            received: Frames::after(PREFACE_LEN),
            sent: Frames::after(0),
            last_stream: 0,
            cost: Cost::default(),
            streams: Bucket::new(begun(limits.streams), now),
            resets: Bucket::new(rate(limits.resets), now),
            control: Bucket::new(rate(limits.control_frames), now),
            guaranteed: Bucket::new(GUARANTEED, now),
            of_address,
            initial_allowance: INITIAL_ALLOWANCE,
            too_much_since: None,
            unanswered: BTreeSet::new(),
            goaways: 0,
        }
    }

    /// Counts the frames in received bytes. Returns whether the bytes completed the header of a
    /// frame.
    fn receive(&mut self, bytes: &[u8]) -> bool {
        let (cost, last_stream) = (&mut self.cost, &mut self.last_stream);
        // A graceful shutdown sends two GOAWAY frames. A client may begin streams until it receives
        // the first one, so the server answers streams that arrive before it sends the second. It
        // ignores later streams (RFC 9113, section 6.8).
        let is_answered = self.goaways < 2;
        let unanswered = &mut self.unanswered;
        let mut any = false;
        self.received.read(bytes, |head| {
            any = true;
            let Head { kind, stream, .. } = head;
            if matches!(kind, Kind::Headers | Kind::Continuation) {
                cost.streams += (head.length / HEADERS_OF_STREAM) as f64;
            }
            match kind {
                Kind::Headers if stream > *last_stream => {
                    *last_stream = stream;
                    cost.streams += 1.0;
                    cost.control -= WITH_STREAM;
                    if is_answered {
                        unanswered.insert(stream);
                    }
                }
                Kind::Reset => {
                    cost.resets += 1.0;
                    unanswered.remove(&stream);
                }
                _ => cost.control += 1.0,
            }
        });
        any
    }

    /// Counts the frames in sent bytes: resets, which the client caused, and frames that the client
    /// may answer with control frames. Returns whether the HTTP/2 library rejected a malformed
    /// request with one of the resets.
    fn send(&mut self, bytes: &[u8]) -> bool {
        let mut has_rejected = false;
        let (cost, unanswered, goaways) = (&mut self.cost, &mut self.unanswered, &mut self.goaways);
        self.sent.read(bytes, |head| {
            match head.kind {
                Kind::Reset => {
                    cost.resets += 1.0;
                    has_rejected |= head.code == Some(PROTOCOL_ERROR);
                }
                Kind::Data => cost.control -= WITH_DATA,
                // Acknowledgements earn no credit; otherwise each ping of a client would pay for
                // its next one.
                Kind::Ping | Kind::Settings if !head.is_last => cost.control -= 1.0,
                Kind::GoAway => *goaways += 1,
                _ => {}
            }
            let ends = match head.kind {
                Kind::Reset => true,
                Kind::Data | Kind::Headers => head.is_last,
                _ => false,
            };
            if ends {
                unanswered.remove(&head.stream);
            }
        });
        has_rejected
    }

    /// Whether too many answers wait to be written, given the number of open calls.
    fn has_too_many_unsent(&self, open: usize) -> bool {
        self.unanswered.len() > open.saturating_add(UNSENT_ANSWERS)
    }

    /// Charges the cost of the frames counted since the last charge. Returns how long to pause
    /// reading, if at all.
    ///
    /// # Errors
    ///
    /// If a flood has lasted so long that the connection must be closed.
    fn charge(&mut self, now: Instant) -> Result<Option<Duration>, Closed> {
        let cost = std::mem::take(&mut self.cost);
        let (streams, resets) = (begun(self.limits.streams), rate(self.limits.resets));
        let control = rate(self.limits.control_frames);
        // A rest that refills both buckets ends the flood, even if this portion starts a new one.
        if self.resets.is_full(resets, now) && self.control.is_full(control, now) {
            self.too_much_since = None;
        }
        self.streams.take(streams, cost.streams, now);
        self.resets.take(resets, cost.resets, now);
        self.control.take(control, cost.control, now);
        let too_many_resets = self.resets.wait(resets, now);
        let too_much_control = self.control.wait(control, now);
        let own = too_many_resets.max(too_much_control);
        if own.is_some() {
            let since = *self.too_much_since.get_or_insert(now);
            if now.saturating_duration_since(since) >= PATIENCE {
                return Err(match too_many_resets {
                    Some(_) => Closed::TooManyResets,
                    None => Closed::TooManyControlFrames,
                });
            }
        }
        let introduced = cost.control.clamp(0.0, self.initial_allowance);
        self.initial_allowance -= introduced;
        // The credit that comes with streams and data pays for control frames of the same portion.
        // The rest of it goes to this connection only, so it pays for no neighbour's frames.
        let control_cost = (cost.control - introduced).max(0.0);
        let mut shared = self
            .of_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let share = |bucket: &mut Bucket, rate, cost| {
            let rate = of_address(rate);
            bucket.take(rate, cost, now);
            bucket.wait(rate, now)
        };
        let too_many_streams = share(&mut shared.streams, streams, cost.streams);
        let too_many_resets = share(&mut shared.resets, resets, cost.resets);
        let too_much_control = share(&mut shared.control, control, control_cost);
        // A connection that begins few streams does not wait for the streams of its neighbours. One
        // without resets and charged control frames in this portion does not wait for its
        // neighbours' resets and control frames. One that has either waits for both, because
        // control frames may have caused the resets.
        if self.guaranteed.wait(GUARANTEED, now).is_none() {
            self.guaranteed.take(GUARANTEED, cost.streams, now);
        }
        let has_begun = cost.streams > 0.0 && self.guaranteed.wait(GUARANTEED, now).is_some();
        let is_costly = cost.resets > 0.0 || control_cost > 0.0;
        let of_address = [
            too_many_streams.filter(|_| has_begun),
            too_many_resets.filter(|_| is_costly),
            too_much_control.filter(|_| is_costly),
        ];
        let of_address = of_address.into_iter().max().flatten();
        Ok(own.max(of_address).max(self.streams.wait(streams, now)))
    }
}

/// A byte stream with a meter.
pub(crate) struct Metered<S> {
    stream: S,
    meter: Meter,
    activity: Arc<Activity>,
    counts: Counts,
    /// Set while reading is paused.
    pause: Option<Pin<Box<Sleep>>>,
    /// Whether the last read returned bytes.
    has_read: bool,
    /// Whether reading waits until something is written.
    is_held: bool,
}

impl<S> Metered<S> {
    pub(crate) fn new(
        stream: S,
        limits: FloodLimits,
        of_address: Arc<Mutex<Shared>>,
        activity: Arc<Activity>,
        counts: Counts,
    ) -> Metered<S> {
        Metered {
            stream,
            meter: Meter::new(limits, of_address, Instant::now()),
            activity,
            counts,
            pause: None,
            has_read: false,
            is_held: false,
        }
    }

    fn sent(&mut self, bytes: &[u8]) {
        if self.meter.send(bytes) {
            self.activity.reject();
        }
    }

    /// Records whether the socket has room, and resumes reading that waited for room.
    fn written(&mut self, cx: &Context<'_>, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Pending => self.activity.blocked(),
            Poll::Ready(_) => {
                self.activity.unblocked();
                if std::mem::take(&mut self.is_held) {
                    cx.waker().wake_by_ref();
                }
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(cx));
            this.pause = None;
        }
        // After each read, return to the HTTP/2 library once. Otherwise it would read as long as
        // data arrives, and write only afterwards. But the resets that it writes have to be counted
        // in time, and other connections have to be read, too.
        if std::mem::take(&mut this.has_read) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // Otherwise, answers that the client does not read would pile up in the library.
        if this.meter.has_too_many_unsent(this.activity.open_calls()) {
            this.is_held = true;
            return Poll::Pending;
        }
        let length = buffer.remaining().min(MOST_AT_ONCE);
        let mut read = ReadBuf::new(buffer.initialize_unfilled_to(length));
        ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
        if this.meter.receive(read.filled()) {
            this.activity.greeted();
        }
        let length = read.filled().len();
        buffer.advance(length);
        this.has_read = length > 0;
        match this.meter.charge(Instant::now()) {
            Ok(None) => {}
            Ok(Some(wait)) => {
                this.counts.throttled(wait);
                this.pause = Some(Box::pin(sleep(wait)));
            }
            Err(closed) => {
                this.activity.close(closed);
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.written(cx, &written);
        let written = ready!(written)?;
        this.sent(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.written(cx, &written);
        let written = ready!(written)?;
        let mut left = written;
        for slice in slices {
            let of_slice = left.min(slice.len());
            this.sent(&slice[..of_slice]);
            left -= of_slice;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    const LIMITS: FloodLimits = FloodLimits {
        streams: NonZeroU32::new(200).unwrap(),
        resets: NonZeroU32::new(20).unwrap(),
        control_frames: NonZeroU32::new(20).unwrap(),
    };

    fn frame(kind: u8, stream: u32) -> Vec<u8> {
        let mut frame = vec![0, 0, 0, kind, 0];
        frame.extend(stream.to_be_bytes());
        frame
    }

    fn frames(kind: u8, count: u32) -> Vec<u8> {
        (0..count).flat_map(|n| frame(kind, 2 * n + 1)).collect()
    }

    struct Connection {
        meter: Meter,
        now: Instant,
    }

    impl Connection {
        fn new() -> Connection {
            let now = Instant::now();
            let shared = Arc::new(Mutex::new(Shared::new(LIMITS, now)));
            Connection::beside(shared, now)
        }

        fn beside(shared: Arc<Mutex<Shared>>, now: Instant) -> Connection {
            let mut meter = Meter::new(LIMITS, shared, now);
            assert!(!meter.receive(&[0; PREFACE_LEN]));
            Connection { meter, now }
        }

        /// Returns how many seconds reading pauses after these frames.
        fn gets(&mut self, bytes: &[u8]) -> Result<f64, Closed> {
            self.meter.receive(bytes);
            let wait = self.meter.charge(self.now)?;
            Ok(wait.map_or(0.0, |wait| wait.as_secs_f64()))
        }

        fn later(&mut self, seconds: f64) {
            self.now += Duration::from_secs_f64(seconds);
        }
    }

    fn near(wait: f64, expected: f64) -> bool {
        (wait - expected).abs() < 0.01
    }

    #[test]
    fn input_is_read_in_portions_with_time_to_write_between_them() {
        let now = Instant::now();
        let limits = FloodLimits {
            control_frames: NonZeroU32::new(100_000).unwrap(),
            ..LIMITS
        };
        let shared = Arc::new(Mutex::new(Shared::new(limits, now)));
        let (client, server) = tokio::io::duplex(64 << 10);
        let mut context = Context::from_waker(std::task::Waker::noop());
        let sent = vec![0; 3 * MOST_AT_ONCE];
        assert!(pin!(client).poll_write(&mut context, &sent).is_ready());
        let counts = Counts::default();
        let mut server = Metered::new(server, limits, shared, Activity::new(now), counts);
        let mut buffer = vec![0; 64 << 10];
        let mut read = ReadBuf::new(&mut buffer);
        for portion in 1..=3 {
            let polled = Pin::new(&mut server).poll_read(&mut context, &mut read);
            assert!(polled.is_ready());
            assert_eq!(read.filled().len(), portion * MOST_AT_ONCE);
            let polled = Pin::new(&mut server).poll_read(&mut context, &mut read);
            assert!(polled.is_pending());
        }
    }

    #[test]
    fn bursts_pass_and_floods_are_slowed_down_and_cut_off() {
        for (kind, closed) in [
            (3, Closed::TooManyResets),
            (6, Closed::TooManyControlFrames),
            (2, Closed::TooManyControlFrames),
            (0, Closed::TooManyControlFrames),
        ] {
            let mut connection = Connection::new();
            assert_eq!(connection.gets(&frames(kind, 20)), Ok(0.0));
            let wait = connection.gets(&frames(kind, 10)).unwrap();
            assert!(near(wait, 0.5), "{wait}");
            // A connection that pauses is forgiven,
            connection.later(3.1);
            assert_eq!(connection.gets(&frames(kind, 1)), Ok(0.0));
            connection.later(20.0);
            assert_eq!(connection.gets(&frames(kind, 20)), Ok(0.0));
            // no matter how often that happens.
            for _ in 0..20 {
                connection.later(20.0);
                assert!(connection.gets(&frames(kind, 30)).unwrap() > 0.4);
            }
            connection.later(20.0);
            // A connection that always continues as soon as it may is closed eventually.
            let mut cut = None;
            for _ in 0..16 {
                match connection.gets(&frames(kind, 20)) {
                    Ok(wait) => connection.later(wait),
                    Err(closed) => cut = Some(closed),
                }
            }
            assert_eq!(cut, Some(closed));
        }
    }

    #[test]
    fn streams_are_slowed_down_and_never_cut_off() {
        let mut connection = Connection::new();
        let mut next = 1;
        let mut begin = |count: u32| {
            let bytes = (0..count).flat_map(|n| frame(1, next + 2 * n));
            let bytes: Vec<u8> = bytes.collect();
            next += 2 * count;
            bytes
        };
        assert_eq!(connection.gets(&begin(100)), Ok(0.0));
        for _ in 0..100 {
            let wait = connection.gets(&begin(50)).unwrap();
            assert!(near(wait, 0.25), "{wait}");
            connection.later(wait);
        }
        // HEADERS of a stream that has already begun count as control frames.
        let again: Vec<u8> = (0..30).flat_map(|n| frame(1, 2 * n + 1)).collect();
        connection.later(100.0);
        assert!(connection.gets(&again).unwrap() > 0.4);
    }

    #[test]
    fn long_headers_count_as_several_streams() {
        let mut connection = Connection::new();
        let long = |kind, stream| {
            let mut frame = frame(kind, stream);
            frame[1] = 8;
            frame.resize(frame.len() + 2048, 0);
            frame
        };
        // The limit is 100 streams at once, and 200 per second after that.
        for number in 0..10 {
            let mut block = long(1, 2 * number + 1);
            block.extend(long(9, 2 * number + 1));
            assert_eq!(connection.gets(&block), Ok(0.0));
        }
        let wait = connection.gets(&long(1, 21)).unwrap();
        // 10 * (1 + 4 + 4) + 1 + 4
        assert_eq!(wait, 0.0);
        let wait = connection.gets(&long(1, 23).repeat(3)).unwrap();
        assert!(near(wait, 8.0 / 200.0), "{wait}");
    }

    #[test]
    fn control_frames_are_free_with_calls_and_data() {
        let mut connection = Connection::new();
        connection.gets(&frames(8, 20)).unwrap();
        let mut call = frame(1, 1);
        call.extend(frame(0, 1));
        call.extend(frames(8, 7));
        assert_eq!(connection.gets(&call), Ok(0.0));
        connection.meter.send(&frames(0, 5));
        assert_eq!(connection.gets(&frames(8, 20)), Ok(0.0));
        assert!(connection.gets(&frames(8, 1)).unwrap() > 0.0);
        // An acknowledgement earns no credit; a ping that the server sends does.
        let mut ack = frame(6, 0);
        ack[4] = 1;
        connection.meter.send(&ack.repeat(20));
        assert!(connection.gets(&[]).unwrap() > 0.0);
        connection.meter.send(&frame(6, 0).repeat(20));
        assert_eq!(connection.gets(&[]), Ok(0.0));
        // A reset by the server counts like a reset by the client.
        let mut connection = Connection::new();
        assert!(!connection.meter.send(&frames(3, 30)));
        assert!(near(connection.gets(&[]).unwrap(), 0.5));
    }

    /// Regression test: a client whose requests were all rejected did not appear in the log.
    #[test]
    fn malformed_requests_are_noticed() {
        let mut connection = Connection::new();
        let reset = |code: u32| [&[0, 0, 4, 3, 0, 0, 0, 0, 1][..], &code.to_be_bytes()].concat();
        // The server also sends NO_ERROR, REFUSED_STREAM and CANCEL for well-formed requests.
        for code in [0, 7, 8] {
            assert!(!connection.meter.send(&reset(code)));
        }
        assert!(connection.meter.send(&reset(1)));
    }

    #[test]
    fn connections_of_one_address_share_its_limits() {
        let now = Instant::now();
        let shared = Arc::new(Mutex::new(Shared::new(LIMITS, now)));
        let mut waits = Vec::new();
        for _ in 0..6 {
            let mut connection = Connection::beside(Arc::clone(&shared), now);
            waits.push(connection.gets(&frames(3, 20)).unwrap());
        }
        assert_eq!(waits[..4], [0.0; 4]);
        assert!(near(waits[4], 0.25) && near(waits[5], 0.5), "{waits:?}");
        let mut talkative = Connection::beside(Arc::clone(&shared), now);
        assert!(talkative.gets(&frames(6, 20)).unwrap() > 0.0);
        // The first control frames of a new connection do not wait for its neighbours.
        let mut quiet = Connection::beside(Arc::clone(&shared), now);
        assert_eq!(quiet.gets(&frames(4, 3)), Ok(0.0));
        let forgotten = now + Duration::from_secs(10);
        let mut shared = shared.lock().unwrap();
        assert!(!shared.is_full(now) && shared.is_full(forgotten));
    }

    #[test]
    fn answers_are_unsent_until_their_end_was_written() {
        const END: u8 = 1;
        let ended = |kind, stream| {
            let mut frame = frame(kind, stream);
            frame[4] = END;
            frame
        };
        let mut connection = Connection::new();
        let Connection { meter, .. } = &mut connection;
        let begun: Vec<u8> = (0..103).flat_map(|n| frame(1, 2 * n + 1)).collect();
        meter.receive(&begun);
        assert!(meter.has_too_many_unsent(0));
        // Calls without a response are not unsent answers.
        assert!(!meter.has_too_many_unsent(3));
        // HEADERS and DATA end a stream only with END_STREAM.
        meter.send(&[frame(1, 1), frame(0, 1)].concat());
        assert!(meter.has_too_many_unsent(2));
        meter.send(&ended(1, 1));
        assert!(!meter.has_too_many_unsent(2));
        meter.send(&[frame(1, 3), ended(0, 3), frame(3, 5)].concat());
        assert!(!meter.has_too_many_unsent(0));
        // A client may begin streams before it receives the first GOAWAY.
        meter.send(&frame(7, 0));
        meter.receive(&frame(1, 301));
        assert!(meter.has_too_many_unsent(0));
        // A stream that the client resets waits for no answer.
        meter.receive(&frame(3, 301));
        meter.send(&frame(7, 0));
        meter.receive(&frame(1, 303));
        assert!(!meter.has_too_many_unsent(0));
    }

    #[test]
    fn bursts_of_streams_are_limited() {
        let now = Instant::now();
        let shared = Arc::new(Mutex::new(Shared::new(LIMITS, now)));
        let begun: Vec<u8> = (0..100).flat_map(|n| frame(1, 2 * n + 1)).collect();
        let mut connections: Vec<Connection> = (0..6)
            .map(|_| Connection::beside(Arc::clone(&shared), now))
            .collect();
        let waits: Vec<f64> = (connections.iter_mut())
            .map(|connection| connection.gets(&begun).unwrap())
            .collect();
        // At once, each connection may begin 100 streams, and all connections together 400.
        assert_eq!(waits[..4], [0.0; 4]);
        assert!(near(waits[4], 0.125) && near(waits[5], 0.25), "{waits:?}");
        // A connection that begins few or no streams does not wait for its neighbours.
        let mut quiet = Connection::beside(Arc::clone(&shared), now);
        assert_eq!(quiet.gets(&frames(4, 3)), Ok(0.0));
        let few: Vec<u8> = (0..20).flat_map(|n| frame(1, 2 * n + 1)).collect();
        assert_eq!(quiet.gets(&few), Ok(0.0));
        assert!(near(quiet.gets(&frame(1, 41)).unwrap(), 0.276));
        let rested = now + Duration::from_secs(1);
        let mut shared = shared.lock().unwrap();
        assert!(!shared.is_full(now) && shared.is_full(rested));
    }
}
