//! Work for a call on other threads.

mod stage;

use std::{
    sync::mpsc::{Sender, channel},
    time::Duration,
};

use stage::{Either, Scene, Stage, next, player, request, soon};
use tokio::sync::mpsc::unbounded_channel;
use tonic::{Code, Request, Status};
use tonic_cancel::{CallContext, CallOptions, CancelReason, Job, StopFlag, WorkLimit};

/// A pool of one thread.
fn pool() -> Sender<Job> {
    let (jobs, queue) = channel::<Job>();
    std::thread::spawn(move || queue.iter().for_each(|job| job()));
    jobs
}

/// Works until the flag is set.
fn until_stopped(stop: &StopFlag) {
    while !stop.is_requested() {
        std::thread::yield_now();
    }
}

fn alone() -> CallContext {
    CallContext::of(&Request::new(()))
}

#[tokio::test]
async fn work_returns_its_result() {
    let (context, pool) = (alone(), pool());
    assert_eq!(soon(context.run_blocking(|_| 6 * 7)).await.unwrap(), 42);
    let on_pool = context.run_on(|job| pool.send(job).unwrap(), |stop| stop.is_requested());
    assert!(!soon(on_pool).await.unwrap());
}

#[tokio::test]
async fn a_panic_is_unknown_and_spares_the_pool() {
    let (context, pool) = (alone(), pool());
    for _ in 0..2 {
        let work = |_| -> () { panic!("a panic that this test wants") };
        let status = context.run_on(|job| pool.send(job).unwrap(), work).await;
        assert_eq!(status.unwrap_err().code(), Code::Unknown);
    }
}

#[tokio::test]
async fn a_pool_that_drops_the_job_is_unavailable() {
    let status = soon(alone().run_on(drop, |_| ())).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("pool"), "{status}");
}

/// Dropping the future stops this work, but no other work of the same call.
#[tokio::test]
async fn dropping_the_future_stops_the_work() {
    let context = alone();
    let (sender, mut seen) = unbounded_channel();
    let (first, second) = (pool(), pool());
    let work = |name: &'static str| {
        let sender = sender.clone();
        move |stop: StopFlag| {
            sender.send("began").unwrap();
            until_stopped(&stop);
            sender.send(name).unwrap();
        }
    };
    let on = |pool: Sender<Job>, name| {
        let (context, work) = (context.clone(), work(name));
        Box::pin(async move { context.run_on(|job| pool.send(job).unwrap(), work).await })
    };
    let (mut dropped, mut kept) = (on(first, "dropped"), on(second, "kept"));
    for run in [&mut dropped, &mut kept] {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(run.as_mut().poll(&mut cx).is_pending());
        assert_eq!(next(&mut seen).await, "began");
    }
    drop(dropped);
    assert_eq!(next(&mut seen).await, "dropped");
    assert!(!context.is_cancelled() && !context.stop_flag().is_requested());
    assert!(seen.try_recv().is_err());
    context.cancel();
    assert_eq!(next(&mut seen).await, "kept");
    assert!(soon(kept).await.is_ok());
}

#[tokio::test]
async fn work_whose_call_was_asked_to_stop_does_not_begin() {
    let context = alone();
    let pool = pool();
    let (release, held) = channel::<()>();
    pool.send(Box::new(move || held.recv().unwrap())).unwrap();
    let work = |_| -> () { panic!("it began") };
    let run = context.run_on(|job| pool.send(job).unwrap(), work);
    context.cancel();
    release.send(()).unwrap();
    assert_eq!(soon(run).await.unwrap_err().code(), Code::Cancelled);
}

/// Clients that call and cancel quickly must not start more work than the limit allows.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_for_work_that_outlives_its_call() {
    let limit = WorkLimit::new(1);
    let (let_go, holding) = channel::<()>();
    let holding = std::sync::Arc::new(std::sync::Mutex::new(Some(holding)));
    let (sender, mut began) = unbounded_channel();
    let stage = Stage::start({
        let limit = limit.clone();
        player(move |scene: Scene| {
            let (limit, holding, sender) = (limit.clone(), holding.clone(), sender.clone());
            async move {
                let guard = limit.begin_within(&scene.context, Duration::ZERO).await?;
                let held = holding.lock().unwrap().take();
                let work = move |_| {
                    let _guard = guard;
                    sender.send(()).unwrap();
                    // Ignores its flag.
                    if let Some(held) = held {
                        held.recv().unwrap();
                    }
                };
                scene.context.run_blocking(work).await
            }
        })
    })
    .await;
    let client = stage.client().await;
    let call = || Either::start(false, &client, request(""), CallOptions::new());
    let mut first = call();
    next(&mut began).await;
    first.cancel();
    assert_eq!(first.end().await.unwrap_err().code(), Code::Cancelled);
    soon(async {
        while stage.drain.active_calls() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // The call has ended, but its work has not.
    assert_eq!((stage.drain.active_calls(), limit.active_work()), (0, 1));
    assert_eq!(stage.drain.active_work(), 1);
    let status = call().end().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let_go.send(()).unwrap();
    soon(async {
        while limit.active_work() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(call().end().await.is_ok());
    assert_eq!((limit.active_work(), stage.drain.active_work()), (0, 0));
}

#[tokio::test]
async fn waiting_for_room_ends_with_the_call() {
    let (limit, context) = (WorkLimit::new(1), alone());
    let guard = limit.begin(&context).await.unwrap();
    let waiting = tokio::spawn({
        let (limit, context) = (limit.clone(), alone());
        let stopped = context.clone();
        let begin = async move { limit.begin(&context).await.map(drop) };
        async move { (tokio::join!(begin, async { stopped.cancel() }).0, stopped) }
    });
    let (result, context) = soon(waiting).await.unwrap();
    assert_eq!(result.unwrap_err().code(), Code::Cancelled);
    assert_eq!(context.cancel_reason(), Some(CancelReason::Server));

    let third = alone();
    let refused: Result<_, Status> = limit.begin_within(&third, Duration::ZERO).await;
    assert_eq!(refused.unwrap_err().code(), Code::ResourceExhausted);
    let waits = limit.begin(&third);
    let (begun, ()) = soon(async { tokio::join!(waits, async { drop(guard) }) }).await;
    assert_eq!(limit.active_work(), 1);
    drop(begun.unwrap());
    assert_eq!(limit.active_work(), 0);
}

#[tokio::test]
async fn tokens_are_cancelled_with_their_call_and_not_the_other_way_round() {
    let context = alone();
    let (token, other) = (context.child_token(), context.child_token());
    other.cancel();
    assert!(!token.is_cancelled() && context.is_active() && !context.is_cancelled());
    let waiting = tokio::spawn({
        let token = token.clone();
        async move { token.cancelled().await }
    });
    context.cancel();
    soon(waiting).await.unwrap();
    assert!(token.is_cancelled() && context.child_token().is_cancelled());
}
