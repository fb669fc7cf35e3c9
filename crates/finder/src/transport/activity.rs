//! What happens on a connection, as far as it decides how long the connection may last.

use std::{
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::counts::Closed;

/// What happens on a connection. Everybody on it writes here, and its own task reads.
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    greeted: AtomicBool,
    requested: AtomicBool,
    /// Calls whose response has not been taken to its end.
    open: AtomicUsize,
    /// Those among them whose last frame has not been taken, so that the next is not asked for.
    unread: AtomicUsize,
    /// When either of these changed last, in milliseconds from the beginning.
    changed: AtomicU64,
    /// Why it is closed, if that was decided elsewhere.
    closed: OnceLock<Closed>,
}

/// How things stand on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// The client has sent a frame.
    pub(super) greeted: bool,
    /// The client has sent a request.
    pub(super) requested: bool,
    /// Calls whose response has not been taken to its end.
    pub(super) open: usize,
    /// Those among them that wait for their reader.
    pub(super) unread: usize,
    /// How long after the connection's beginning either of these changed last.
    pub(super) changed: Duration,
}

impl Activity {
    pub(super) fn new(began: Instant) -> Arc<Activity> {
        Arc::new(Activity {
            began,
            greeted: AtomicBool::new(false),
            requested: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            unread: AtomicUsize::new(0),
            changed: AtomicU64::new(0),
            closed: OnceLock::new(),
        })
    }

    pub(super) fn greeted(&self) {
        self.greeted.store(true, Ordering::Relaxed);
    }

    /// The first reason counts.
    pub(super) fn close(&self, why: Closed) {
        let _ = self.closed.set(why);
    }

    pub(super) fn closed(&self) -> Option<Closed> {
        self.closed.get().copied()
    }

    pub(super) fn standing(&self) -> Standing {
        Standing {
            greeted: self.greeted.load(Ordering::Relaxed),
            requested: self.requested.load(Ordering::Relaxed),
            open: self.open.load(Ordering::Relaxed),
            unread: self.unread.load(Ordering::Relaxed),
            changed: Duration::from_millis(self.changed.load(Ordering::Relaxed)),
        }
    }

    /// A call begins; it is open until the result, and every body that was made of it, is dropped.
    pub(super) fn open(self: &Arc<Activity>) -> OpenCall {
        self.requested.store(true, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        self.change();
        OpenCall(Arc::new(Open {
            activity: Arc::clone(self),
            unread_since: AtomicU64::new(READ),
        }))
    }

    fn change(&self) -> u64 {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(READ - 1);
        self.changed.store(now, Ordering::Relaxed);
        now
    }
}

/// A call whose response has not been taken to its end; requests carry it as an extension. It keeps the
/// call from being over for as long as the response does, and no longer.
#[derive(Clone, Debug)]
pub(crate) struct OpenCall(Arc<Open>);

#[derive(Debug)]
struct Open {
    activity: Arc<Activity>,
    /// Since when the last frame waits to be taken, in milliseconds from the connection's beginning.
    unread_since: AtomicU64,
}

/// That no frame waits.
const READ: u64 = u64::MAX;

impl OpenCall {
    /// For how long the last frame of its response has been waiting to be taken, if it is.
    pub(crate) fn unread_for(&self) -> Option<Duration> {
        let since = self.0.unread_since.load(Ordering::Relaxed);
        let unread = || {
            let activity = &self.0.activity;
            let elapsed = activity.began.elapsed();
            elapsed.saturating_sub(Duration::from_millis(since))
        };
        (since != READ).then(unread)
    }

    fn asked(&self) {
        let activity = &self.0.activity;
        if self.0.unread_since.swap(READ, Ordering::Relaxed) != READ {
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
    }
}

/// Ends a call when it is dropped.
pub(super) struct Closing(pub(super) OpenCall);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

pin_project! {
    /// A response's body, which knows whether it is being read.
    pub(crate) struct WatchedBody<B> {
        #[pin]
        inner: B,
        call: Closing,
    }
}

impl<B> WatchedBody<B> {
    pub(super) fn new(inner: B, call: Closing) -> WatchedBody<B> {
        WatchedBody { inner, call }
    }
}

impl<B: Body> Body for WatchedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    /// HTTP/2 asks for a frame when there is room for one, so that a frame was taken when the next one is
    /// asked for.
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let call = &this.call.0;
        call.asked();
        let frame = this.inner.poll_frame(cx);
        if let Poll::Ready(Some(Ok(_))) = frame {
            call.handed_over();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
