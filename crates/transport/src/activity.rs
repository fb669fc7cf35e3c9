//! What happens on a connection, as far as it decides how long the connection may last.

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

/// What happens on a connection. Everybody on it writes here, and its own task reads.
#[derive(Debug)]
pub(crate) struct Activity {
    began: Instant,
    /// When the client's first frame arrived, in milliseconds from the beginning; [`NEVER`] until then.
    greeted: AtomicU64,
    requested: AtomicBool,
    /// Whether a request was rejected as malformed, until that is reported.
    rejected: AtomicBool,
    /// Calls whose response has not been written to its end.
    open: AtomicUsize,
    /// Those among them whose last frame has not been taken, so that the next is not asked for.
    unread: AtomicUsize,
    /// When either of these changed last, in milliseconds from the beginning.
    changed: AtomicU64,
    /// Since when the socket has no room, in milliseconds from the beginning; [`NEVER`] if it has.
    blocked_since: AtomicU64,
    /// Why it is closed, if that was decided elsewhere.
    closed: OnceLock<Closed>,
}

/// How things stand on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// How long after the connection's beginning the client's first frame arrived, if it has.
    pub(crate) greeted: Option<Duration>,
    /// The client has sent a request.
    pub(crate) requested: bool,
    /// Calls whose response has not been written to its end.
    pub(crate) open: usize,
    /// Those among them that wait for their reader.
    pub(crate) unread: usize,
    /// How long after the connection's beginning either of these changed last.
    pub(crate) changed: Duration,
    /// Since when the socket has had no room for what is to be written, if it has none.
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

    /// A frame of the client has arrived.
    pub(crate) fn greeted(&self) {
        if self.greeted.load(Ordering::Relaxed) == NEVER {
            self.greeted.store(self.now(), Ordering::Relaxed);
        }
    }

    /// The HTTP/2 library has rejected a request as malformed.
    pub(crate) fn reject(&self) {
        self.rejected.store(true, Ordering::Relaxed);
    }

    /// Whether a request was rejected as malformed since this was asked last.
    pub(crate) fn take_rejected(&self) -> bool {
        self.rejected.load(Ordering::Relaxed) && self.rejected.swap(false, Ordering::Relaxed)
    }

    /// The first reason counts.
    pub(crate) fn close(&self, why: Closed) {
        let _ = self.closed.set(why);
    }

    pub(crate) fn closed(&self) -> Option<Closed> {
        self.closed.get().copied()
    }

    /// The socket has no room.
    pub(crate) fn blocked(&self) {
        if self.blocked_since.load(Ordering::Relaxed) == NEVER {
            self.blocked_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// It has taken something.
    pub(crate) fn unblocked(&self) {
        if self.blocked_since.load(Ordering::Relaxed) != NEVER {
            self.blocked_since.store(NEVER, Ordering::Relaxed);
        }
    }

    /// How many calls have a response that has not been written to its end.
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

    /// A call begins; it is open until its [`Closing`] is dropped.
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

/// A call whose response has not been written to its end; requests carry it as an extension. It does not
/// keep the call open.
#[derive(Clone, Debug)]
pub struct OpenCall(Arc<Open>);

struct Open {
    activity: Arc<Activity>,
    /// Since when the last frame waits to be taken, in milliseconds from the connection's beginning.
    unread_since: AtomicU64,
    /// What goes back when the call is over.
    kept: Mutex<Option<Box<dyn Any + Send>>>,
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open").finish_non_exhaustive()
    }
}

/// The time of an event that has not happened: no frame waits, or the socket has room.
const NEVER: u64 = u64::MAX;

impl OpenCall {
    /// For how long the last frame of its response has been waiting to be taken, if it is.
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

    /// Keeps something until the call's response was written to its end, or nobody takes the rest of it. That
    /// is later than the response's body is dropped, for the HTTP/2 library may still have what a client's
    /// window has no room for. It takes the place of what was kept before.
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

    /// The call's response is over, or nobody will take the rest of it.
    fn close(&self) {
        self.asked();
        self.0.activity.open.fetch_sub(1, Ordering::Relaxed);
        self.0.activity.change();
        let kept = self.kept().take();
        // What that does is others'.
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

/// Data of a response, which keeps the call open until it was written: the HTTP/2 library takes it long
/// before, if the client's window has room for a single byte of it.
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
    /// A response's body, which knows whether it is being read.
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

    /// HTTP/2 asks for a frame when there is room for one, so that a frame was taken when the next one is
    /// asked for.
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
        // That there are no more frames does not mean that these were written.
        drop(body);
        let open = |of: &Activity| (of.snapshot().open, of.snapshot().unread);
        assert_eq!(open(&activity), (1, 1));
        assert!(call.unread_for().is_some());
        data.advance(6);
        assert_eq!(Arc::strong_count(&kept), 2);
        drop(data);
        assert_eq!(open(&activity), (0, 0));
        assert_eq!(call.unread_for(), None);
        // Whoever still knows of the call keeps nothing.
        assert_eq!(Arc::strong_count(&kept), 1);
    }
}
