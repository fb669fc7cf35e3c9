//! The signals that ask the program to stop: SIGHUP, SIGINT, SIGQUIT and SIGTERM.

use std::{
    fmt, fs, io,
    sync::{Arc, atomic::AtomicBool},
    task::Poll,
    time::Duration,
};

use tokio::{
    signal::unix::{self, SignalKind},
    time::{Instant, sleep_until},
};

use crate::exit::Exit;

/// Time after a request to stop within which further signals belong to the same request.
///
/// `timeout`, sudo, npm, `cargo run` and CI runners send a signal to the process and then to its
/// process group, or pass on a ctrl-C that the process has also received directly. A user who wants
/// to exit at once first reads the response to the first ctrl-C. This takes longer than that.
const SAME_STOP: Duration = Duration::from_millis(300);

/// File in which Linux lists the signals that this process ignores.
const STATUS: &str = "/proc/self/status";

/// A signal that asks the program to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Hangup,
    Interrupt,
    Quit,
    Terminate,
}

impl Signal {
    const ALL: [Signal; 4] = [
        Signal::Hangup,
        Signal::Interrupt,
        Signal::Quit,
        Signal::Terminate,
    ];

    fn kind(self) -> SignalKind {
        match self {
            Signal::Hangup => SignalKind::hangup(),
            Signal::Interrupt => SignalKind::interrupt(),
            Signal::Quit => SignalKind::quit(),
            Signal::Terminate => SignalKind::terminate(),
        }
    }

    /// Returns the exit code of a program that was stopped by this signal.
    pub(crate) fn exit(self) -> Exit {
        match self {
            Signal::Hangup => Exit::HungUp,
            Signal::Interrupt => Exit::Interrupted,
            Signal::Quit => Exit::Quit,
            Signal::Terminate => Exit::Terminated,
        }
    }

    /// Returns the signals that this process does not ignore.
    ///
    /// A signal that was ignored when the process started stays ignored: SIGHUP under nohup, for
    /// example, and SIGINT and SIGQUIT in a script's background process.
    fn not_ignored() -> impl Iterator<Item = Signal> {
        let ignored = fs::read_to_string(STATUS).map_or(0, |status| ignored(&status));
        let is_not_ignored = move |signal: &Signal| {
            let bit = signal.kind().as_raw_value() - 1;
            ignored >> bit & 1 == 0
        };
        Signal::ALL.into_iter().filter(is_not_ignored)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Signal::Hangup => "SIGHUP",
            Signal::Interrupt => "SIGINT",
            Signal::Quit => "SIGQUIT",
            Signal::Terminate => "SIGTERM",
        })
    }
}

/// Reads the set of ignored signals from the text of `/proc/self/status`: bit 0 is signal 1.
/// Returns the empty set if the text has none.
fn ignored(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let set = line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    set.unwrap_or(0)
}

/// Receives the signals that ask the program to stop. Once a `Signals` was created, these signals
/// no longer end the process by themselves.
pub(crate) struct Signals {
    streams: Vec<(Signal, unix::Signal)>,
    /// End of the time in which a signal belongs to the request that was returned last.
    same_until: Option<Instant>,
}

impl Signals {
    /// Begins to receive the signals that the process does not ignore.
    ///
    /// # Errors
    ///
    /// If a signal handler cannot be installed.
    pub(crate) fn new() -> io::Result<Signals> {
        let streams =
            Signal::not_ignored().map(|signal| Ok((signal, unix::signal(signal.kind())?)));
        Ok(Signals {
            streams: streams.collect::<io::Result<_>>()?,
            same_until: None,
        })
    }

    /// Waits for the next request to stop. Signals that arrive within [`SAME_STOP`] after a request
    /// belong to it. Dropping the future loses no request.
    pub(crate) async fn next(&mut self) -> Signal {
        if let Some(until) = self.same_until {
            loop {
                tokio::select! {
                    // Signals come first: if this task runs late, a signal that arrived in time
                    // still belongs to the last request.
                    biased;
                    _ = self.receive() => {}
                    () = sleep_until(until) => break,
                }
            }
            self.same_until = None;
        }
        let signal = self.receive().await;
        self.same_until = Some(Instant::now() + SAME_STOP);
        signal
    }

    /// Waits for any of the signals.
    async fn receive(&mut self) -> Signal {
        std::future::poll_fn(|cx| {
            for (signal, stream) in &mut self.streams {
                if stream.poll_recv(cx).is_ready() {
                    return Poll::Ready(*signal);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Makes each signal that is not ignored end the process at once, with the signal's exit code. For
/// commands that have nothing to finish.
///
/// # Errors
///
/// If a signal handler cannot be installed.
pub(crate) fn exit_at_once() -> io::Result<()> {
    for signal in Signal::not_ignored() {
        let (number, code) = (signal.kind().as_raw_value(), signal.exit() as i32);
        let always = Arc::new(AtomicBool::new(true));
        signal_hook::flag::register_conditional_shutdown(number, code, always)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status() {
        let status = "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001003\nSigCgt:\t0\n";
        assert_eq!(ignored(status), 0x1003);
        for without in ["", "SigIgn:\t", "SigIgn:\tnone\n"] {
            assert_eq!(ignored(without), 0);
        }
    }
}
