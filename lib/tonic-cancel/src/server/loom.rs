//! Checks a call's state under every interleaving of threads: the first end counts, every listener
//! is notified once, no waiter hangs, no listener is left behind.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p tonic-cancel --lib --release --no-default-features
//! --features server`

use std::{
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use loom::{
    sync::{Condvar, Mutex},
    thread,
};
use tonic::{Code, Status};

use super::{
    context::CallContext,
    state::{CallEnd, CancelReason, StopFlag},
};

/// Records callback invocations. Its mutex is not loom's, so it adds no interleavings.
#[derive(Clone, Default)]
struct Calls(Arc<std::sync::Mutex<Vec<(u32, CallEnd)>>>);

impl Calls {
    fn callback(&self, name: u32) -> impl FnOnce(CallEnd) + Send + 'static {
        let calls = self.clone();
        move |end| calls.0.lock().unwrap().push((name, end))
    }

    fn all(&self) -> Vec<(u32, CallEnd)> {
        self.0.lock().unwrap().clone()
    }
}

/// Wakes a loom thread, and reads the call's state while doing so. If a waker were called under the
/// call's lock, that would hang.
struct Parked {
    call: CallContext,
    is_woken: Mutex<bool>,
    woken: Condvar,
}

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        assert!(self.call.is_cancelled() || !self.call.is_active());
        *self.is_woken.lock().unwrap() = true;
        self.woken.notify_one();
    }
}

fn wait<F: Future>(call: &CallContext, future: F) -> F::Output {
    let mut future = pin!(future);
    let parked = Arc::new(Parked {
        call: call.clone(),
        is_woken: Mutex::new(false),
        woken: Condvar::new(),
    });
    let waker = Waker::from(Arc::clone(&parked));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        let mut is_woken = parked.is_woken.lock().unwrap();
        while !*is_woken {
            is_woken = parked.woken.wait(is_woken).unwrap();
        }
        *is_woken = false;
    }
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

const DONE: CallEnd = CallEnd {
    code: Code::Ok,
    cancelled: None,
};

const CANCELLED: CallEnd = CallEnd {
    code: Code::Cancelled,
    cancelled: Some(CancelReason::Server),
};

#[test]
fn the_first_end_counts_and_callbacks_run_once_in_order() {
    loom::model(|| {
        let (call, calls) = (CallContext::alone(), Calls::default());
        assert!(call.add_callback(calls.callback(1)));
        assert!(call.add_callback(calls.callback(2)));
        let other = call.clone();
        let cancelled = thread::spawn(move || other.cancel());
        let other = call.clone();
        let gone = thread::spawn(move || other.end_with(CancelReason::ClientGone, None));
        let done = call.complete(Code::Ok);
        let ends = [done, cancelled.join().unwrap(), gone.join().unwrap()];
        assert_eq!(ends.iter().filter(|ended| **ended).count(), 1);
        let end = call.end().unwrap();
        assert_eq!(calls.all(), [(1, end), (2, end)]);
        assert_eq!((end == DONE, end == CANCELLED), (ends[0], ends[1]));
        assert!(call.stop_flag().is_requested());
    });
}

#[test]
fn a_callback_that_is_registered_as_the_call_ends_runs_once() {
    loom::model(|| {
        let (call, calls) = (CallContext::alone(), Calls::default());
        let other = call.clone();
        let ending = thread::spawn(move || other.complete(Code::Ok));
        let is_to_come = call.add_callback(calls.callback(1));
        if !is_to_come {
            assert_eq!(calls.all(), [(1, DONE)]);
        }
        assert!(ending.join().unwrap());
        assert_eq!(calls.all(), [(1, DONE)]);
    });
}

#[test]
fn a_callback_that_panics_or_reenters_does_not_affect_others() {
    loom::model(|| {
        let (call, calls) = (CallContext::alone(), Calls::default());
        call.add_callback(|_| std::panic::resume_unwind(Box::new("wanted")));
        let (again, within) = (call.clone(), calls.clone());
        call.add_callback(move |_| {
            assert!(!again.cancel());
            again.add_callback(within.callback(1));
        });
        call.add_callback(calls.callback(2));
        let other = call.clone();
        let ending = thread::spawn(move || other.cancel());
        call.complete(Code::Ok);
        ending.join().unwrap();
        let end = call.end().unwrap();
        assert_eq!(calls.all(), [(1, end), (2, end)]);
    });
}

#[test]
fn a_waiter_is_woken() {
    loom::model(|| {
        let call = CallContext::alone();
        let other = call.clone();
        let waiting = thread::spawn(move || wait(&other, other.cancelled()));
        call.announce(CancelReason::Drain);
        assert_eq!(waiting.join().unwrap(), Some(CancelReason::Drain));
        call.complete(Code::Ok);
        assert_eq!(call.end().unwrap().cancelled, Some(CancelReason::Drain));
        assert_eq!(call.state().listening(), 0);
    });
}

#[test]
fn an_end_wakes_a_waiter_for_a_stop() {
    loom::model(|| {
        let call = CallContext::alone();
        let other = call.clone();
        let waiting = thread::spawn(move || wait(&other, other.cancelled()));
        call.complete(Code::Ok);
        assert_eq!(waiting.join().unwrap(), None);
    });
}

#[test]
fn a_dropped_waiter_leaves_nothing_behind() {
    loom::model(|| {
        let call = CallContext::alone();
        let other = call.clone();
        let leaving = thread::spawn(move || {
            let mut first = Box::pin(other.cancelled());
            let _ = poll_once(first.as_mut());
            let mut second = Box::pin(other.cancelled());
            if let Poll::Ready(reason) = poll_once(second.as_mut()) {
                return reason;
            }
            drop(first);
            // The second waiter is still notified, although the first was dropped.
            wait(&other, second)
        });
        let flag = StopFlag::default();
        let key = call.state().stop_also(&flag);
        call.state().forget(super::state::Moment::Stop, key);
        call.announce(CancelReason::Drain);
        assert_eq!(leaving.join().unwrap(), Some(CancelReason::Drain));
        assert_eq!(call.state().listening(), 0);
    });
}

#[test]
fn flags_and_tokens_are_never_missed() {
    loom::model(|| {
        let call = CallContext::alone();
        let (flag, own) = (StopFlag::default(), call.stop_flag());
        let other = call.clone();
        let stopping = thread::spawn(move || other.announce(CancelReason::Drain));
        call.state().stop_also(&flag);
        let token = call.child_token();
        stopping.join().unwrap();
        assert!(flag.is_requested() && own.is_requested() && token.is_cancelled());
    });
}

#[test]
fn the_carrier_of_the_response_gets_the_status_once() {
    loom::model(|| {
        let call = CallContext::alone();
        let other = call.clone();
        let carrying = thread::spawn(move || {
            let status = std::future::poll_fn(|cx| other.state().poll_status(cx));
            let status = wait(&other, status);
            let again = std::future::poll_fn(|cx| other.state().poll_status(cx));
            assert!(poll_once(pin!(again)).is_pending());
            status.code()
        });
        let other = call.clone();
        let second = thread::spawn(move || other.cancel_with_status(Status::aborted("")));
        let first = call.cancel();
        let second = second.join().unwrap();
        assert!(first != second);
        let code = carrying.join().unwrap();
        assert_eq!(code == Code::Cancelled, first);
        assert_eq!(call.end().unwrap().code, code);
    });
}

#[test]
fn a_late_answer_is_replaced_by_the_status() {
    loom::model(|| {
        let call = CallContext::alone();
        let other = call.clone();
        let cancelling = thread::spawn(move || other.cancel());
        let answered = call.complete(Code::Ok);
        let status = std::future::poll_fn(|cx| call.state().poll_status(cx));
        assert_eq!(poll_once(pin!(status)).is_ready(), !answered);
        assert_eq!(cancelling.join().unwrap(), !answered);
    });
}

#[test]
fn a_stop_during_the_end_is_reported_fully_or_not_at_all() {
    loom::model(|| {
        let (call, calls) = (CallContext::alone(), Calls::default());
        call.add_callback(calls.callback(1));
        let wakes = Arc::new(AtomicUsize::new(0));
        let other = call.clone();
        let stopping = thread::spawn(move || other.announce(CancelReason::Drain));
        let (other, woken) = (call.clone(), Arc::clone(&wakes));
        let waiting = thread::spawn(move || {
            let reason = wait(&other, other.cancelled());
            woken.fetch_add(1, Ordering::Relaxed);
            reason
        });
        call.complete(Code::Ok);
        stopping.join().unwrap();
        let end = call.end().unwrap();
        assert_eq!(waiting.join().unwrap(), end.cancelled);
        assert_eq!(
            (calls.all(), wakes.load(Ordering::Relaxed)),
            (vec![(1, end)], 1)
        );
    });
}
