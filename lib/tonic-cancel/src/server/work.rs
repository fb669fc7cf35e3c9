//! Work for a call that goes on elsewhere: where it runs, how it is told to stop, and how much of it
//! there may be.

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

/// A piece of work as a pool of threads takes it: run it once, or drop it.
pub type Job = Box<dyn FnOnce() + Send>;

impl CallContext {
    /// Runs work that would block the runtime on the threads that tokio has for it, and waits for
    /// its result. The work is handed a flag to look at, and told by it when the call is told to
    /// stop or ends, or when this future is dropped.
    ///
    /// Dropping the future, as happens to a handler whose call ends, stops the waiting and tells
    /// the work to stop. Nothing can end it but itself; until it has, a [`Drain`](crate::Drain)
    /// knows of it.
    ///
    /// tokio has 512 of these threads for a whole process; for work that keeps a core busy see
    /// [`run_on`](Self::run_on).
    ///
    /// # Errors
    ///
    /// UNKNOWN if the work panics. If the call was told to stop before the work began it does not
    /// begin, and the error says why: CANCELLED, DEADLINE_EXCEEDED or UNAVAILABLE. UNAVAILABLE also
    /// if the runtime shuts down before it begins.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
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
        #[expect(
            clippy::disallowed_methods,
            reason = "the work is told to stop, by its flag"
        )]
        self.run_on(|job| drop(tokio::task::spawn_blocking(job)), work)
            .await
    }

    /// Like [`run_blocking`](Self::run_blocking), on threads of the caller's: `pool` takes the job,
    /// at once, and sees to it that some thread runs it.
    ///
    /// Dropping the future tells the work to stop; its result is thrown away.
    ///
    /// # Errors
    ///
    /// As there; UNAVAILABLE if the pool drops the job, for then nothing was done and the client may
    /// try elsewhere.
    ///
    /// ```
    /// # use std::sync::mpsc::Sender;
    /// # use tonic::Status;
    /// # use tonic_cancel::{CallContext, Job};
    /// async fn answer(context: &CallContext, pool: &Sender<Job>) -> Result<u64, Status> {
    ///     // A pool that is gone drops the job.
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
            // Dropped after everything of the work's own, however it ends, and before the result can
            // be seen.
            let result = {
                let _working = working;
                if flag.is_requested() {
                    // Its captures go like those of work that runs.
                    drop(work);
                    Err(context.stopped())
                } else {
                    catch_unwind(AssertUnwindSafe(|| work(flag)))
                        .map_err(|_| Status::unknown("the work for this call panicked"))
                }
            };
            // Nobody need be waiting for it any more.
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

    /// Makes the call's drain count the call's work until the result is dropped.
    fn working(&self) -> Working {
        if let Some(membership) = self.membership() {
            membership.begin_work();
        }
        Working(self.clone())
    }
}

/// A piece of work that a drain knows of.
struct Working(CallContext);

impl Drop for Working {
    fn drop(&mut self) {
        if let Some(membership) = self.0.membership() {
            membership.end_work();
        }
    }
}

/// The flag of one piece of work. It is requested with the call's, and when this is dropped.
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

/// How many pieces of work may be under way at a time; clones are the same limit.
///
/// A permit that lives as long as a handler's future goes back when the client leaves, while the
/// work still runs, so that clients who leave in a hurry fill the machine. A [`WorkGuard`] is moved
/// into the work and goes back with it.
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
    /// A limit of `most` pieces of work at a time.
    #[must_use]
    pub fn new(most: usize) -> WorkLimit {
        WorkLimit {
            // As many as a semaphore can count are as good as no limit.
            room: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))),
            most,
        }
    }

    /// How many pieces of work are under way.
    #[must_use]
    pub fn active_work(&self) -> usize {
        self.most.min(Semaphore::MAX_PERMITS) - self.room.available_permits()
    }

    /// Waits until there is room, in order of arrival, for as long as the call may wait.
    ///
    /// Dropping the future gives its place up.
    ///
    /// # Errors
    ///
    /// If the call is told to stop or ends before there is room, the error says why: CANCELLED,
    /// DEADLINE_EXCEEDED or UNAVAILABLE.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with a timer, if there is no room at once.
    pub async fn begin(&self, context: &CallContext) -> Result<WorkGuard, Status> {
        self.begin_within(context, Duration::MAX).await
    }

    /// Like [`begin`](Self::begin), but waits for `patience` at most; with none it does not wait.
    ///
    /// Dropping the future gives its place up.
    ///
    /// # Errors
    ///
    /// As there, and RESOURCE_EXHAUSTED if there is still no room.
    ///
    /// # Panics
    ///
    /// As there.
    pub async fn begin_within(
        &self,
        context: &CallContext,
        patience: Duration,
    ) -> Result<WorkGuard, Status> {
        let guard = |permit| WorkGuard {
            _permit: permit,
            _working: context.working(),
        };
        // Nearly always there is, and then nothing need be waited for.
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
        // The semaphore is never closed.
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

/// Room for one piece of work, until it is dropped. Move it into the work: it says that the work is
/// there, to its [`WorkLimit`] and to the call's [`Drain`](crate::Drain).
#[must_use = "the work counts as over when this is dropped"]
pub struct WorkGuard {
    _permit: OwnedSemaphorePermit,
    _working: Working,
}

impl fmt::Debug for WorkGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkGuard").finish_non_exhaustive()
    }
}
