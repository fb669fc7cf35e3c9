//! The client's half: handles of calls that are under way.

/// What the handles of unary and of streaming calls have in common, as methods of each.
macro_rules! handle {
    ($name:ident) => {
        impl<T> $name<T> {
            /// Cancels the call; see [`Canceller::cancel`].
            pub fn cancel(&self) -> bool {
                self.canceller().cancel()
            }

            /// What cancels the call from elsewhere.
            #[must_use]
            pub fn canceller(&self) -> Canceller {
                Canceller {
                    shared: Arc::clone(&self.shared),
                }
            }

            /// Registers what is to be done when the call is done with, and says whether that is
            /// still to come. It runs exactly once: at once, on this thread, if the call is done
            /// (then this returns `false`), and otherwise on the task that carries the call. One
            /// that panics harms no other.
            pub fn add_done_callback(&self, callback: impl FnOnce(Done) + Send + 'static) -> bool {
                self.shared.add_done_callback(Box::new(callback))
            }

            /// Whether the call is over.
            #[must_use]
            pub fn done(&self) -> bool {
                self.shared.done().is_some()
            }

            /// Whether the call is over because this side cancelled it.
            #[must_use]
            pub fn cancelled(&self) -> bool {
                self.shared.done().is_some_and(|done| done.cancelled)
            }

            /// The code of its status, once it is over.
            #[must_use]
            pub fn code(&self) -> Option<Code> {
                self.shared.done().map(|done| done.code)
            }

            /// Lets the call go on without its handle; what it answers is thrown away.
            pub fn detach(mut self) {
                self.detached = true;
            }
        }

        impl<T> Drop for $name<T> {
            fn drop(&mut self) {
                if !self.detached {
                    self.cancel();
                }
            }
        }

        impl<T> std::fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("done", &self.shared.done())
                    .finish()
            }
        }
    };
}
use handle;

mod call;
mod streaming;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tonic::{Code, Request, Status};

use crate::link::Parent;

pub use call::{Call, StillRunning};
pub use streaming::StreamingCall;

/// The longest timeout that can be written into a request: eight digits of hours (gRPC over HTTP/2,
/// "Timeout"). A longer one is no deadline: it lies 11,000 years ahead.
const MAX_TIMEOUT: Duration = Duration::from_secs(99_999_999 * 60 * 60);

/// What a call is started with.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallOptions {
    timeout: Option<Duration>,
}

impl CallOptions {
    /// No deadline.
    #[must_use]
    pub const fn new() -> CallOptions {
        CallOptions { timeout: None }
    }

    /// The call must be over within `timeout` of its start, connecting and a stream's last message
    /// included. The server is told, and when the time is up the call ends with DEADLINE_EXCEEDED,
    /// whatever the server says. A timeout of over 99,999,999 hours is none.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> CallOptions {
        self.timeout = Some(timeout);
        self
    }
}

/// How a call was done with, as its callbacks are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Done {
    /// The code of its status.
    pub code: Code,
    /// Whether it was this side that cancelled it.
    pub cancelled: bool,
}

/// Cancels a call from elsewhere; clones cancel the same call.
#[derive(Clone)]
pub struct Canceller {
    shared: Arc<Shared>,
}

impl Canceller {
    /// Cancels the call: it ends with CANCELLED here, and the server is told. Says whether the call
    /// was not done and not cancelled yet.
    pub fn cancel(&self) -> bool {
        self.cancel_because(None)
    }

    /// Like [`cancel`](Self::cancel), with a reason that the call's status tells. It stays on this
    /// side, for HTTP/2 has no words for it.
    pub fn cancel_with_reason(&self, reason: impl Into<String>) -> bool {
        self.cancel_because(Some(reason.into()))
    }

    fn cancel_because(&self, reason: Option<String>) -> bool {
        self.shared.cancel("the caller cancelled the call", reason)
    }
}

impl fmt::Debug for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Canceller")
            .field("done", &self.shared.lock().done)
            .finish()
    }
}

type Callback = Box<dyn FnOnce(Done) + Send>;

/// What the handle of a call and the task that carries the call have in common.
struct Shared {
    deadline: Option<Instant>,
    /// The call on whose behalf this one is made.
    parent: Option<Parent>,
    cancelled: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The status of a call that was cancelled here.
    cancelled: Option<Status>,
    done: Option<Done>,
    callbacks: Vec<Callback>,
}

impl Shared {
    /// Also writes the timeout into the request, for the server to keep to.
    fn new<R>(request: &mut Request<R>, options: CallOptions) -> Arc<Shared> {
        let now = Instant::now();
        let parent = request.extensions_mut().remove::<Parent>();
        // A timeout beyond what the clock can show is no deadline.
        let own = options.timeout.and_then(|timeout| now.checked_add(timeout));
        let inherited = parent.as_ref().and_then(|parent| parent.deadline);
        let deadline = own
            .into_iter()
            .chain(inherited.map(Instant::from_std))
            .min();
        let deadline = deadline.filter(|deadline| *deadline - now <= MAX_TIMEOUT);
        if let Some(deadline) = deadline {
            request.set_timeout(deadline - now);
        }
        Arc::new(Shared {
            deadline,
            parent,
            cancelled: Notify::new(),
            state: Mutex::default(),
        })
    }

    /// Runs the call until it ends, is cancelled, or its time is up, whichever comes first.
    async fn carry<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let cancelled = async {
            self.cancelled.notified().await;
            let status = self.lock().cancelled.clone();
            status.unwrap_or_else(|| Status::cancelled(""))
        };
        let expired = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let parent_ended = async {
            match &self.parent {
                Some(parent) => parent.ended().await,
                None => std::future::pending().await,
            }
        };
        let result = tokio::select! {
            biased;
            status = cancelled => Err(status),
            () = expired => Err(deadline_exceeded()),
            reason = parent_ended => Err(self.end_with_parent(reason)),
            result = call => result,
        };
        // A server that saw the deadline pass first may have said so in words of its own.
        match self.deadline {
            Some(deadline) if result.is_err() && deadline <= Instant::now() => {
                let cancelled = self.lock().cancelled.clone();
                Err(cancelled.unwrap_or_else(deadline_exceeded))
            }
            _ => result,
        }
    }

    /// Cancels the call, unless it is done or cancelled already.
    fn cancel(&self, message: &str, reason: Option<String>) -> bool {
        let mut state = self.lock();
        if state.done.is_some() || state.cancelled.is_some() {
            return false;
        }
        let message = match reason {
            Some(reason) => format!("{message}: {reason}"),
            None => message.to_owned(),
        };
        state.cancelled = Some(Status::cancelled(message));
        drop(state);
        self.cancelled.notify_one();
        true
    }

    /// What the call ends with whose parent has ended. A deadline that passed for both is the child's
    /// own end, whoever saw it first.
    fn end_with_parent(&self, reason: Option<String>) -> Status {
        if self
            .deadline
            .is_some_and(|deadline| deadline <= Instant::now())
        {
            return deadline_exceeded();
        }
        self.cancel("the call that it was made for has ended", reason);
        let cancelled = self.lock().cancelled.clone();
        cancelled.unwrap_or_else(|| Status::cancelled(""))
    }

    /// Records the end, before anybody can be told of it, then `tell`s the one who waits, then runs
    /// the callbacks, outside of the lock. The first end counts.
    fn finish(&self, code: Code, tell: impl FnOnce()) {
        let mut state = self.lock();
        if state.done.is_some() {
            return;
        }
        let cancelled = state.cancelled.is_some() && code == Code::Cancelled;
        let done = *state.done.insert(Done { code, cancelled });
        let callbacks = std::mem::take(&mut state.callbacks);
        drop(state);
        tell();
        for callback in callbacks {
            run(callback, done);
        }
    }

    fn add_done_callback(&self, callback: Callback) -> bool {
        let mut state = self.lock();
        if let Some(done) = state.done {
            drop(state);
            run(callback, done);
            return false;
        }
        state.callbacks.push(callback);
        true
    }

    fn done(&self) -> Option<Done> {
        self.lock().done
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under the lock, so there is nothing to poison it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the call whose task goes down without having ended it: the call of the client panicked, or
/// the runtime was shut down.
struct Carrier(Arc<Shared>);

impl Drop for Carrier {
    fn drop(&mut self) {
        self.0.finish(Code::Unknown, || ());
    }
}

/// What a call ends with whose task went down.
fn carrier_lost() -> Status {
    Status::unknown("the task that carried the call went down")
}

fn deadline_exceeded() -> Status {
    Status::deadline_exceeded("the call's deadline passed")
}

fn run(callback: Callback, done: Done) {
    if catch_unwind(AssertUnwindSafe(|| callback(done))).is_err() {
        tracing::error!("a done callback of a call panicked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call made for another, whose parent ends when `parent` does.
    fn child<F>(
        deadline: Option<std::time::Instant>,
        parent: impl Fn() -> F + Send + Sync + 'static,
    ) -> Call<()>
    where
        F: Future<Output = Option<String>> + Send + 'static,
    {
        let mut request = Request::new(());
        request
            .extensions_mut()
            .insert(Parent::new(deadline, parent));
        Call::start(request, CallOptions::new(), |_| std::future::pending())
    }

    #[tokio::test]
    async fn a_child_is_cancelled_with_its_parent() {
        let (end, ended) = tokio::sync::watch::channel(false);
        let call = child(None, move || {
            let mut ended = ended.clone();
            async move {
                ended.wait_for(|ended| *ended).await.unwrap();
                Some("its client is gone".to_owned())
            }
        });
        let canceller = call.canceller();
        end.send(true).unwrap();
        let status = call.await.unwrap_err();
        assert_eq!(status.code(), Code::Cancelled);
        assert!(status.message().ends_with("its client is gone"), "{status}");
        assert!(canceller.shared.done().unwrap().cancelled);
    }

    #[tokio::test]
    async fn a_child_has_its_parents_deadline() {
        let now = std::time::Instant::now();
        // A parent whose deadline has passed has ended as well; that is still the child's deadline.
        let call = child(Some(now), || std::future::ready(None));
        assert_eq!(call.await.unwrap_err().code(), Code::DeadlineExceeded);

        let hour = Duration::from_secs(3600);
        let mut request = Request::new(());
        let parent = Parent::new(Some(now + hour), std::future::pending);
        request.extensions_mut().insert(parent);
        let shared = Shared::new(&mut request, CallOptions::new().timeout(2 * hour));
        assert_eq!(shared.deadline, Some(Instant::from_std(now + hour)));
        assert!(request.metadata().contains_key("grpc-timeout"));
        assert!(request.extensions().get::<Parent>().is_none());
    }
}
