//! State shared by a call's handle and the task that carries the call.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tonic::{CancellationHandle, Code, Request, Status, metadata::MetadataMap};

use super::{
    options::CallOptions,
    ready::{self, Mark},
};
use crate::{link::Parent, timeout};

/// How a call ended, as passed to its callbacks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Done {
    /// Code of the call's status.
    pub code: Code,
    /// Whether this side cancelled the call.
    pub cancelled: bool,
    /// Why this side cancelled the call, if it did and gave a reason.
    pub reason: Option<String>,
}

type Callback = Box<dyn FnOnce(Done) + Send>;

/// The state of a call.
pub(super) struct Shared {
    deadline: Option<Instant>,
    /// The handler's incoming call, if this call is made for one.
    parent: Option<Parent>,
    /// Cancels the request. Dropping the call is not enough once the response has begun: the sender
    /// of a request stream would continue until the end of the stream, and keep the call open at
    /// the server.
    request: CancellationHandle,
    /// Set if the call may wait for its channel; reports the error because of which it waits.
    mark: Option<Mark>,
    cancelled: Notify,
    /// Notified when the initial metadata has arrived, and when the call has ended.
    changed: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    cancelled: Option<Cancelled>,
    initial: Option<MetadataMap>,
    trailing: Option<MetadataMap>,
    done: Option<Done>,
    callbacks: Vec<Callback>,
}

/// This side's cancellation of the call.
struct Cancelled {
    status: Status,
    reason: Option<String>,
}

/// The task's side of a call. If the task dies before it has ended its call (the client's code
/// panicked, or the runtime was shut down), dropping this ends the call.
pub(super) struct Carrier<M> {
    pub(super) shared: Arc<Shared>,
    // Dropped after the end is recorded, so that a reader woken by the drop sees the end.
    pub(super) sender: mpsc::Sender<M>,
}

/// Starts the task that carries a call to its end. Messages from the task arrive at the receiver.
///
/// # Panics
///
/// Panics outside of a tokio runtime.
pub(super) fn start<R, C, M, F>(
    mut request: Request<R>,
    options: CallOptions,
    queue: usize,
    rpc: impl FnOnce(Request<R>) -> C,
    carry: impl FnOnce(Carrier<M>, C) -> F,
) -> (Arc<Shared>, mpsc::Receiver<M>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let shared = Arc::new(Shared::new(&mut request, options));
    let (sender, receiver) = mpsc::channel(queue);
    let carrier = Carrier {
        shared: Arc::clone(&shared),
        sender,
    };
    tokio::spawn(carry(carrier, rpc(request)));
    (shared, receiver)
}

/// The code and the trailing metadata of a call.
pub(super) struct End {
    code: Code,
    /// The trailing metadata.
    metadata: MetadataMap,
}

impl End {
    /// Creates the end of a call from its trailing metadata or from its error.
    pub(super) fn of(result: Result<&MetadataMap, &Status>) -> End {
        match result {
            Ok(metadata) => End {
                code: Code::Ok,
                metadata: without_status(metadata),
            },
            Err(status) => End {
                code: status.code(),
                metadata: status.metadata().clone(),
            },
        }
    }
}

impl Shared {
    /// Creates the state, and writes the remaining time into the request as a timeout for the
    /// server.
    pub(super) fn new<R>(request: &mut Request<R>, options: CallOptions) -> Shared {
        let now = Instant::now();
        let parent = request.extensions_mut().remove::<Parent>();
        // A malformed timeout is ignored here. The server rejects it, unless it is replaced below.
        let own = timeout::parse(request.metadata().as_ref()).ok().flatten();
        let own = own.and_then(|timeout| now.checked_add(timeout));
        let given = options.ends_at(parent.as_ref(), now);
        let deadline = own.into_iter().chain(given).min();
        if let Some(deadline) = deadline {
            let left = deadline.duration_since(now);
            timeout::write(request.metadata_mut().as_mut(), left);
        }
        let mark = options.wait_for_ready.then(|| Mark::new(deadline));
        if let Some(mark) = &mark {
            request.extensions_mut().insert(mark.clone());
        }
        Shared {
            deadline,
            parent,
            request: request.cancellation_handle(),
            mark,
            cancelled: Notify::new(),
            changed: Notify::new(),
            state: Mutex::default(),
        }
    }

    /// Runs the call until it ends, is cancelled or exceeds its deadline, or until its parent ends.
    pub(super) async fn carry<T>(
        &self,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        // The timer has a resolution of 1 ms, so without this check an expired request could be
        // sent.
        if self.is_expired() && self.lock().cancelled.is_none() {
            return Err(self.deadline_exceeded());
        }
        let expired = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
            // Create the status here, while the call still exists and can report why it is waiting.
            self.deadline_exceeded()
        };
        let parent_ended = async {
            match &self.parent {
                Some(parent) => parent.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.cancelled.notified() => Err(self.cancelled_status()),
            status = expired => Err(status),
            reason = parent_ended => Err(self.end_with_parent(reason)),
            result = call => result.map_err(|status| self.in_own_words(status)),
        }
    }

    /// Returns the status to report for a call that failed with `status`.
    fn in_own_words(&self, status: Status) -> Status {
        // A server that noticed the deadline first may have used another status.
        if self.is_expired() && self.lock().cancelled.is_none() {
            return self.deadline_exceeded();
        }
        // A call that should have waited, but whose channel does not support it, must not look like
        // a call that has waited.
        if let Some(mark) = &self.mark
            && !mark.is_taken()
            && ready::is_connect_failure(&status)
        {
            return Status::failed_precondition(format!(
                "wait_for_ready needs a client that is built over tonic_cancel::ReadyChannel; \
                 without it the call failed at once: {}",
                status.message()
            ));
        }
        status
    }

    fn deadline_exceeded(&self) -> Status {
        let mut message = "the call's deadline passed".to_owned();
        if let Some(problem) = self.mark.as_ref().and_then(Mark::waits_for) {
            message = format!("{message} before there was a connection: {problem}");
        }
        Status::deadline_exceeded(message)
    }

    /// Cancels the call; returns `false` if it is already done or cancelled.
    pub(super) fn cancel(&self, message: &str, reason: Option<String>) -> bool {
        let mut state = self.lock();
        if state.done.is_some() || state.cancelled.is_some() {
            return false;
        }
        let message = match &reason {
            Some(reason) => format!("{message}: {reason}"),
            None => message.to_owned(),
        };
        let status = Status::cancelled(message);
        state.cancelled = Some(Cancelled { status, reason });
        drop(state);
        self.cancelled.notify_one();
        true
    }

    fn cancelled_status(&self) -> Status {
        let state = self.lock();
        let status = state.cancelled.as_ref().map(|by| by.status.clone());
        status.unwrap_or_else(|| Status::cancelled(""))
    }

    /// Cancels a call whose parent was asked to stop or has ended, and returns the status. If the
    /// call's own deadline has passed, too, the status is DEADLINE_EXCEEDED instead.
    fn end_with_parent(&self, reason: Option<String>) -> Status {
        if self.is_expired() {
            return self.deadline_exceeded();
        }
        self.cancel("the call that it was made for has ended", reason);
        self.cancelled_status()
    }

    fn is_expired(&self) -> bool {
        self.deadline.is_some_and(|time| time <= Instant::now())
    }

    pub(super) fn initial_metadata_arrived(&self, metadata: &MetadataMap) {
        self.lock().initial = Some(without_status(metadata));
        self.changed.notify_waiters();
    }

    /// Waits for the initial metadata or the end. Dropping the future has no effect.
    pub(super) async fn initial_metadata(&self) -> Option<MetadataMap> {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.lock();
                if state.initial.is_some() || state.done.is_some() {
                    return state.initial.clone();
                }
            }
            changed.await;
        }
    }

    pub(super) fn trailing_metadata(&self) -> Option<MetadataMap> {
        self.lock().trailing.clone()
    }

    /// Records the end and cancels the request. Then it runs, outside of the lock, `deliver`, which
    /// passes the result of a unary call to its reader, and the callbacks. Only the first end
    /// counts.
    pub(super) fn finish(&self, end: End, deliver: impl FnOnce()) {
        let mut state = self.lock();
        if state.done.is_some() {
            return;
        }
        state.trailing = Some(end.metadata);
        let cancelled = state.cancelled.take();
        let by_us = cancelled.filter(|_| end.code == Code::Cancelled);
        let done = Done {
            code: end.code,
            cancelled: by_us.is_some(),
            reason: by_us.and_then(|by| by.reason),
        };
        state.done = Some(done.clone());
        let callbacks = std::mem::take(&mut state.callbacks);
        drop(state);
        self.request.clone().cancel();
        deliver();
        self.changed.notify_waiters();
        for callback in callbacks {
            run(callback, done.clone());
        }
    }

    pub(super) fn add_done_callback(&self, callback: Callback) -> bool {
        let mut state = self.lock();
        if let Some(done) = state.done.clone() {
            drop(state);
            run(callback, done);
            return false;
        }
        state.callbacks.push(callback);
        true
    }

    pub(super) fn done(&self) -> Option<Done> {
        self.lock().done.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under the lock, so nothing can poison it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M> Drop for Carrier<M> {
    fn drop(&mut self) {
        self.shared.finish(End::of(Err(&carrier_lost())), || ());
    }
}

/// Returns the status of a call whose task died.
pub(super) fn carrier_lost() -> Status {
    Status::unknown("the task that carried the call went down")
}

/// Returns the metadata without the status, which arrives with it but is not part of it. tonic
/// removes the status only for failed calls.
fn without_status(metadata: &MetadataMap) -> MetadataMap {
    let mut metadata = metadata.clone();
    for name in ["grpc-status", "grpc-message"] {
        metadata.remove(name);
    }
    metadata.remove_bin("grpc-status-details-bin");
    metadata
}

fn run(callback: Callback, done: Done) {
    if catch_unwind(AssertUnwindSafe(|| callback(done))).is_err() {
        tracing::error!("a done callback of a call panicked");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Call;

    /// Starts a call with a parent that ends when a future from `parent` completes.
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
        // The parent has ended because its deadline has passed. The child reports the deadline,
        // too.
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
