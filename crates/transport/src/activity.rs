//! Activity on a connection that determines how long the connection may last.

use std::{
    any::Any,
    fmt,
    io::IoSlice,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::counts::Closed;

/// Activity on a connection. The code that serves the connection records it here, and the
/// connection's task reads it.
#[derive(Debug)]
pub(crate) struct Activity {
    began: Instant,
    /// Time of the client's first frame, in milliseconds since the start; [`NEVER`] until then.
    greeted: AtomicU64,
    requested: AtomicBool,
    /// Whether a request was rejected as malformed and that has not been reported yet.
    rejected: AtomicBool,
    /// Number of calls whose response has not been written completely.
    open: AtomicUsize,
    /// Number of open calls whose latest response frame waits: the HTTP/2 library has not polled
    /// for the next one.
    unread: AtomicUsize,
    /// Time of the last change of `open` or `unread`, in milliseconds since the start.
    changed: AtomicU64,
    /// Time at which the socket became full, in milliseconds since the start; [`NEVER`] if it has
    /// room.
    blocked_since: AtomicU64,
    /// Reason for closing the connection, if the meter decided to close it.
    closed: OnceLock<Closed>,
}

/// State of a connection at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Time from the connection's start to the client's first frame, if there was one.
    pub(crate) greeted: Option<Duration>,
    /// Whether the client has sent a request.
    pub(crate) requested: bool,
    /// Number of calls whose response has not been written completely.
    pub(crate) open: usize,
    /// Number of open calls that wait for their reader.
    pub(crate) unread: usize,
    /// Time from the connection's start to the last change of `open` or `unread`.
    pub(crate) changed: Duration,
    /// When the socket became full, as time from the connection's start; `None` if it has room.
    pub(crate) blocked: Option<Duration>,
}

impl Activity {
    pub(crate) fn new(began: Instant) -> Arc<Activity> {
        Arc::new(Activity {
            began,
            greeted: AtomicU64::new(NEVER),
            requested: AtomicBool::new(false),
            rejected: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            unread: AtomicUsize::new(0),
            changed: AtomicU64::new(0),
            blocked_since: AtomicU64::new(NEVER),
            closed: OnceLock::new(),
        })
    }

    /// Records that a frame of the client arrived.
    pub(crate) fn greeted(&self) {
        if self.greeted.load(Ordering::Relaxed) == NEVER {
            self.greeted.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Records that the HTTP/2 library rejected a request as malformed.
    pub(crate) fn reject(&self) {
        self.rejected.store(true, Ordering::Relaxed);
    }

    /// Returns whether a request was rejected as malformed since the last check.
    pub(crate) fn take_rejected(&self) -> bool {
        self.rejected.load(Ordering::Relaxed) && self.rejected.swap(false, Ordering::Relaxed)
    }

    /// Sets the reason for closing the connection. Only the first one counts.
    pub(crate) fn close(&self, why: Closed) {
        let _ = self.closed.set(why);
    }

    pub(crate) fn closed(&self) -> Option<Closed> {
        self.closed.get().copied()
    }

    /// Records that the socket has no room.
    pub(crate) fn blocked(&self) {
        if self.blocked_since.load(Ordering::Relaxed) == NEVER {
            self.blocked_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Records that the socket accepted data.
    pub(crate) fn unblocked(&self) {
        if self.blocked_since.load(Ordering::Relaxed) != NEVER {
            self.blocked_since.store(NEVER, Ordering::Relaxed);
        }
    }

    /// Returns the number of calls whose response has not been written completely.
    pub(crate) fn open_calls(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let at = |time: &AtomicU64| {
            let time = time.load(Ordering::Relaxed);
            (time != NEVER).then(|| Duration::from_millis(time))
        };
        Snapshot {
            greeted: at(&self.greeted),
            requested: self.requested.load(Ordering::Relaxed),
            open: self.open.load(Ordering::Relaxed),
            unread: self.unread.load(Ordering::Relaxed),
            changed: Duration::from_millis(self.changed.load(Ordering::Relaxed)),
            blocked: at(&self.blocked_since),
        }
    }

    /// Begins a call. The call is open until the [`Closing`] made from it is dropped.
    pub(crate) fn open(self: &Arc<Activity>) -> OpenCall {
        self.requested.store(true, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        self.change();
        OpenCall(Arc::new(Open {
            activity: Arc::clone(self),
            unread_since: AtomicU64::new(NEVER),
            kept: Mutex::new(None),
        }))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(NEVER - 1)
    }

    fn change(&self) -> u64 {
        let now = self.now();
        self.changed.store(now, Ordering::Relaxed);
        now
    }
}

/// Handle of a call. Requests carry it as an extension. It does not keep the call open.
#[derive(Clone, Debug)]
pub struct OpenCall(Arc<Open>);

struct Open {
    activity: Arc<Activity>,
    /// Time since which the latest frame waits, in milliseconds since the connection's start;
    /// [`NEVER`] if none waits.
    unread_since: AtomicU64,
    /// Value that is dropped when the call ends.
    kept: Mutex<Option<Box<dyn Any + Send>>>,
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open").finish_non_exhaustive()
    }
}

/// Value of a time that is not set: no frame has arrived, no frame waits, or the socket has room.
const NEVER: u64 = u64::MAX;

impl OpenCall {
    /// Returns how long the latest frame of the response has waited for its reader, or `None` if no
    /// frame waits.
    #[must_use]
    pub fn unread_for(&self) -> Option<Duration> {
        let since = self.0.unread_since.load(Ordering::Relaxed);
        let unread = || {
            let activity = &self.0.activity;
            let elapsed = activity.began.elapsed();
            elapsed.saturating_sub(Duration::from_millis(since))
        };
        (since != NEVER).then(unread)
    }

    /// Keeps a value until the call's response has been written completely, or the rest of it has
    /// been discarded. This is later than the drop of the response's body: the HTTP/2 library may
    /// still hold data for which the client's window has no room. The value replaces the one kept
    /// before.
    pub fn keep(&self, what: impl Send + 'static) {
        let before = self.kept().replace(Box::new(what));
        drop(before);
    }

    fn kept(&self) -> MutexGuard<'_, Option<Box<dyn Any + Send>>> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) {
        let activity = &self.0.activity;
        if self.0.unread_since.swap(NEVER, Ordering::Relaxed) != NEVER {
            activity.unread.fetch_sub(1, Ordering::Relaxed);
            activity.change();
        }
    }

    fn handed_over(&self) {
        let activity = &self.0.activity;
        activity.unread.fetch_add(1, Ordering::Relaxed);
        let now = activity.change();
        self.0.unread_since.store(now, Ordering::Relaxed);
    }

    /// Ends the call: its response has been written completely, or the rest will be discarded.
    fn close(&self) {
        self.asked();
        self.0.activity.open.fetch_sub(1, Ordering::Relaxed);
        self.0.activity.change();
        let kept = self.kept().take();
        // Dropped outside the lock: its destructor is foreign code.
        drop(kept);
    }
}

/// Ends a call when it is dropped.
pub(crate) struct Closing(pub(crate) OpenCall);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Response data that keeps its call open until the data has been written. The HTTP/2 library takes
/// the data as soon as the client's window has room for one byte of it, long before it writes the
/// last byte.
pub(crate) struct Unwritten<D> {
    data: D,
    _call: Arc<Closing>,
}

impl<D: Buf> Buf for Unwritten<D> {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.data.chunks_vectored(slices)
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
    }
}

pin_project! {
    /// A response body that records whether it is being read.
    pub(crate) struct WatchedBody<B> {
        #[pin]
        inner: B,
        call: Arc<Closing>,
    }
}

impl<B> WatchedBody<B> {
    pub(crate) fn new(inner: B, call: Closing) -> WatchedBody<B> {
        WatchedBody {
            inner,
            call: Arc::new(call),
        }
    }
}

impl<B: Body> Body for WatchedBody<B> {
    type Data = Unwritten<B::Data>;
    type Error = B::Error;

    /// The HTTP/2 library polls for a frame when it has room for one, so each poll shows that it
    /// has taken the previous frame.
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, B::Error>>> {
        let this = self.project();
        let call = &this.call.0;
        call.asked();
        let frame = this.inner.poll_frame(cx);
        if let Poll::Ready(Some(Ok(_))) = frame {
            call.handed_over();
        }
        frame.map_ok(|frame| {
            frame.map_data(|data| Unwritten {
                data,
                _call: Arc::clone(this.call),
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::HeaderMap;
    use std::{convert::Infallible, task::Waker, vec};

    struct Frames(vec::IntoIter<Frame<Bytes>>);

    impl Body for Frames {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.next().map(Ok))
        }
    }

    #[test]
    fn a_call_is_open_until_the_last_of_its_data_was_written() {
        let activity = Activity::new(Instant::now());
        let call = activity.open();
        let kept = Arc::new(());
        call.keep(Arc::clone(&kept));
        let frames = vec![
            Frame::data(Bytes::from_static(b"answer")),
            Frame::trailers(HeaderMap::new()),
        ];
        let frames = Frames(frames.into_iter());
        let mut body = WatchedBody::new(frames, Closing(call.clone()));
        let mut context = Context::from_waker(Waker::noop());
        let mut next = || Pin::new(&mut body).poll_frame(&mut context);
        let Poll::Ready(Some(Ok(frame))) = next() else {
            panic!("no data");
        };
        let mut data = frame.into_data().ok().unwrap();
        assert!(matches!(next(), Poll::Ready(Some(Ok(_)))));
        // The last frame was taken, but not all data was written.
        drop(body);
        let open = |of: &Activity| (of.snapshot().open, of.snapshot().unread);
        assert_eq!(open(&activity), (1, 1));
        assert!(call.unread_for().is_some());
        data.advance(6);
        assert_eq!(Arc::strong_count(&kept), 2);
        drop(data);
        assert_eq!(open(&activity), (0, 0));
        assert_eq!(call.unread_for(), None);
        // An `OpenCall` that outlives the call keeps nothing.
        assert_eq!(Arc::strong_count(&kept), 1);
    }
}
