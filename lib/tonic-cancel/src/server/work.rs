//! Work for a call on other threads: where it runs, how it is stopped, and how much of it may run.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tonic::Status;

use super::{
    context::{CallContext, Waiting},
    state::{Moment, StopFlag},
};

/// A piece of work for a thread pool: run it once, or drop it.
pub type Job = Box<dyn FnOnce() + Send>;

impl CallContext {
    /// Runs blocking work on tokio's threads for blocking work, and waits for the result. The work
    /// receives a flag to check, which is set when the call is asked to stop or ends, or when this
    /// future is dropped.
    ///
    /// Dropping the future stops the waiting and sets the flag. That also happens when the call
    /// ends, because its handler is dropped. The work continues until it checks the flag and
    /// returns. Until then, the call's [`Drain`](crate::Drain) counts it.
    ///
    /// By default, a tokio runtime has up to 512 of these threads. For work that keeps a core busy,
    /// use [`run_on`](Self::run_on).
    ///
    /// # Errors
    ///
    /// - UNKNOWN if the work panics
    /// - CANCELLED, DEADLINE_EXCEEDED or UNAVAILABLE if the call was asked to stop or ended before
    ///   the work began. The work then does not begin, and the status says why.
    /// - UNAVAILABLE if the runtime shuts down before the work begins
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime.
    ///
    /// ```
    /// use tonic::{Request, Response, Status};
    /// use tonic_cancel::CallContext;
    ///
    /// async fn sum(request: Request<u64>) -> Result<Response<u64>, Status> {
    ///     let context = CallContext::of(&request);
    ///     let most = request.into_inner();
    ///     let sum = context.run_blocking(move |stop| {
    ///         (0..most).take_while(|_| !stop.is_requested()).fold(0, u64::wrapping_add)
    ///     });
    ///     Ok(Response::new(sum.await?))
    /// }
    /// ```
    pub async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(StopFlag) -> T + Send + 'static,
    ) -> Result<T, Status> {
        #[expect(clippy::disallowed_methods, reason = "the flag asks the work to stop")]
        self.run_on(|job| drop(tokio::task::spawn_blocking(job)), work)
            .await
    }

    /// Like [`run_blocking`](Self::run_blocking), but on your threads. When the future is first
    /// polled, it calls `pool` with the job, which `pool` must pass to a thread.
    ///
    /// Dropping the future asks the work to stop. The result of the work is discarded.
    ///
    /// # Errors
    ///
    /// The same as for [`run_blocking`](Self::run_blocking), and UNAVAILABLE if the pool drops the
    /// job. The work has then not started, so the client may try another server.
    ///
    /// ```
    /// # use std::sync::mpsc::Sender;
    /// # use tonic::Status;
    /// # use tonic_cancel::{CallContext, Job};
    /// async fn answer(context: &CallContext, pool: &Sender<Job>) -> Result<u64, Status> {
    ///     // If the pool is gone, this drops the job.
    ///     let pool = |job| drop(pool.send(job));
    ///     context.run_on(pool, |_stop| 6 * 7).await
    /// }
    /// ```
    pub async fn run_on<T: Send + 'static>(
        &self,
        pool: impl FnOnce(Job),
        work: impl FnOnce(StopFlag) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let (sender, result) = oneshot::channel();
        let stop = Stop::of(self);
        let flag = stop.flag.clone();
        let (context, working) = (self.clone(), self.working());
        pool(Box::new(move || {
            // `_working` is dropped after the captures of `work`, however `work` ends, and before
            // the result is visible.
            let result = {
                let _working = working;
                if flag.is_requested() {
                    // Drop the captures of `work` here, as if it had run.
                    drop(work);
                    Err(context.stopped())
                } else {
                    catch_unwind(AssertUnwindSafe(|| work(flag)))
                        .map_err(|_| Status::unknown("the work for this call panicked"))
                }
            };
            // The receiver may be gone.
            drop(sender.send(result));
        }));
        let result = result.await;
        drop(stop);
        result.unwrap_or_else(|_| {
            Err(Status::unavailable(
                "the pool dropped the work for this call before it began",
            ))
        })
    }

    /// Makes the call's drain count this work until the returned value is dropped.
    fn working(&self) -> Working {
        if let Some(membership) = self.membership() {
            membership.begin_work();
        }
        Working(self.clone())
    }
}

/// A piece of work that the drain counts.
struct Working(CallContext);

impl Drop for Working {
    fn drop(&mut self) {
        if let Some(membership) = self.0.membership() {
            membership.end_work();
        }
    }
}

/// The flag of one piece of work. It is set together with the call's flag, and when this value is
/// dropped.
struct Stop {
    context: CallContext,
    flag: StopFlag,
    key: Option<usize>,
}

impl Stop {
    fn of(context: &CallContext) -> Stop {
        let flag = StopFlag::default();
        let key = context.state().stop_also(&flag);
        Stop {
            context: context.clone(),
            flag,
            key,
        }
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.context.state().forget(Moment::Stop, self.key);
        self.flag.request();
    }
}

/// Limits the number of pieces of work under way at a time. Clones share the limit.
///
/// If a permit lived only as long as the handler's future, it would be released when the client
/// leaves, although the work still runs. Clients that call and cancel quickly could then overload
/// the server. A [`WorkGuard`] is moved into the work instead, and released together with it.
///
/// ```
/// use tonic::{Request, Response, Status};
/// use tonic_cancel::{CallContext, WorkLimit};
///
/// async fn sum(limit: &WorkLimit, request: Request<u64>) -> Result<Response<u64>, Status> {
///     let context = CallContext::of(&request);
///     let guard = limit.begin(&context).await?;
///     let sum = context.run_blocking(move |stop| {
///         let _guard = guard;
///         (0..request.into_inner()).take_while(|_| !stop.is_requested()).count() as u64
///     });
///     Ok(Response::new(sum.await?))
/// }
/// ```
#[derive(Clone)]
pub struct WorkLimit {
    room: Arc<Semaphore>,
    most: usize,
}

impl WorkLimit {
    /// Creates a limit of `most` pieces of work at a time.
    #[must_use]
    pub fn new(most: usize) -> WorkLimit {
        WorkLimit {
            // A semaphore's maximum is as good as no limit.
            room: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))),
            most,
        }
    }

    /// Returns the number of pieces of work under way.
    #[must_use]
    pub fn active_work(&self) -> usize {
        self.most.min(Semaphore::MAX_PERMITS) - self.room.available_permits()
    }

    /// Takes room for work that belongs to no call, such as a long-running operation. Returns
    /// `None` if there is none. No [`Drain`](crate::Drain) counts the work.
    ///
    /// Calls that wait for room come first.
    #[must_use]
    pub fn try_begin(&self) -> Option<WorkGuard> {
        let permit = Arc::clone(&self.room).try_acquire_owned().ok()?;
        Some(WorkGuard {
            _permit: permit,
            _working: None,
        })
    }

    /// Waits for room, in order of arrival, at most until the call is asked to stop or ends.
    ///
    /// Dropping the future gives up its place in the queue.
    ///
    /// # Errors
    ///
    /// Returns an error if the call is asked to stop or ends before there is room. The status says
    /// why: CANCELLED, DEADLINE_EXCEEDED or UNAVAILABLE.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime with a timer, if the call has to wait for room or was
    /// already asked to stop.
    pub async fn begin(&self, context: &CallContext) -> Result<WorkGuard, Status> {
        self.begin_within(context, Duration::MAX).await
    }

    /// Like [`begin`](Self::begin), but waits for at most `patience`. With zero it does not wait.
    ///
    /// Dropping the future gives up its place in the queue.
    ///
    /// # Errors
    ///
    /// The same as for [`begin`](Self::begin), and RESOURCE_EXHAUSTED if all room is still taken
    /// after `patience`.
    ///
    /// # Panics
    ///
    /// The same as for [`begin`](Self::begin).
    pub async fn begin_within(
        &self,
        context: &CallContext,
        patience: Duration,
    ) -> Result<WorkGuard, Status> {
        let guard = |permit| WorkGuard {
            _permit: permit,
            _working: Some(context.working()),
        };
        // Usually there is room, and no wait is needed.
        if !context.state().stop_flag().is_requested()
            && let Ok(permit) = Arc::clone(&self.room).try_acquire_owned()
        {
            return Ok(guard(permit));
        }
        let mut stopped = pin!(Waiting::new(context.clone(), Moment::Stop));
        let room = tokio::time::timeout(patience, Arc::clone(&self.room).acquire_owned());
        let permit = tokio::select! {
            biased;
            () = &mut stopped => return Err(context.stopped()),
            permit = room => permit,
        };
        // The semaphore is never closed, so the time is up.
        let Ok(Ok(permit)) = permit else {
            let most = self.most;
            return Err(Status::resource_exhausted(format!(
                "no room for the work of this call beside {most} others"
            )));
        };
        Ok(guard(permit))
    }
}

impl fmt::Debug for WorkLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkLimit")
            .field("most", &self.most)
            .field("active_work", &self.active_work())
            .finish()
    }
}

/// Permit for one piece of work, held until it is dropped. Move it into the work: while the guard
/// lives, its [`WorkLimit`] counts the work, and so does the [`Drain`](crate::Drain) of its call.
#[must_use = "the work counts as over when this is dropped"]
pub struct WorkGuard {
    _permit: OwnedSemaphorePermit,
    /// `None` for work without a call.
    _working: Option<Working>,
}

impl fmt::Debug for WorkGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkGuard").finish_non_exhaustive()
    }
}
