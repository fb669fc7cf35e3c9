//! `hashfinder serve`: the server process, from its flags to its exit code.

mod arguments;

use std::{
    fmt::Display,
    io::{self, Write},
};

use anyhow::{Context, Result};
use hashfinder_server::{Server, Settings, StartError, log};
use hashfinder_system::threads::NO_THREAD;
use tokio::sync::oneshot;

pub(crate) use self::arguments::{LimitsArguments, ServeArguments};
use crate::{
    exit::Exit,
    signals::Signals,
    terminal::{as_text, say},
};

/// Serves until a signal asks it to stop, then drains. Dropping the future closes the socket and
/// leaves connections to the runtime.
pub(crate) async fn run(arguments: ServeArguments) -> Result<Exit> {
    // Signals are received before the server prints that it listens: a process that waits for that
    // line may send a signal at once.
    let mut signals = Signals::new()?;
    let filter = match log::filter() {
        Ok(filter) => filter,
        Err(wrong) => return Ok(usage_error(wrong)),
    };
    let log = log::to_stderr(filter, arguments.log_format.into()).context(NO_THREAD)?;
    let settings = match arguments.settings() {
        Ok(settings) => settings,
        Err(wrong) => return Ok(usage_error(format_args!("{wrong:#}"))),
    };
    // Reading files and resolving names can block, but a signal must still end the process.
    let started = tokio::select! {
        started = Server::new(settings) => started,
        signal = signals.next() => {
            tracing::info!(%signal, "stopped before it was listening");
            return Ok(Exit::Success);
        }
    };
    let server = match started {
        Ok(server) => server.with_log(&log),
        Err(wrong @ StartError::Settings(_)) => return Ok(usage_error(wrong)),
        Err(StartError::System(error)) => return Err(error),
    };
    // Without this thread, the allocator returns unused memory to the system a little later.
    #[cfg(feature = "jemalloc")]
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        tracing::warn!(%error, "cannot start the allocator's background thread");
    }
    announce(server.address().unwrap_or_default())?;
    let (hand_over, handed_over) = oneshot::channel();
    let shutdown = async {
        let signal = signals.next().await;
        // The receiver exists for as long as this future, so sending cannot fail.
        let _ = hand_over.send(signals);
        signal
    };
    let second_signal = async {
        match handed_over.await {
            Ok(mut signals) => signals.next().await,
            // The server stopped by itself.
            Err(_) => std::future::pending().await,
        }
    };
    server.serve(shutdown, second_signal).await?;
    Ok(Exit::Success)
}

/// Checks the settings, as far as that is possible without listening. Prints where the server would
/// listen, or what is wrong.
pub(crate) fn check(arguments: ServeArguments) -> Result<Exit> {
    let checked = log::filter()
        .and_then(|_| arguments.settings())
        .and_then(Settings::check);
    match checked {
        Ok(checked) => {
            for warning in checked.warnings() {
                say(format_args!("warning: {warning}"));
            }
            let place = as_text(&checked.to_string());
            writeln!(io::stdout(), "hashfinder would listen on {place}")?;
            Ok(Exit::Success)
        }
        Err(wrong) => Ok(usage_error(format_args!("{wrong:#}"))),
    }
}

fn usage_error(what: impl Display) -> Exit {
    say(what);
    Exit::Usage
}

/// Prints where the server listens, for people and scripts.
fn announce(address: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let written = writeln!(stdout, "hashfinder listening on {}", as_text(address));
    let written = written.and_then(|()| stdout.flush());
    // This is an error, because the process that started the server may wait for the line.
    written.with_context(|| format!("cannot print on stdout that the server listens on {address}"))
}
