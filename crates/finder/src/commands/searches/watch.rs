//! `hashfinder searches watch`: shows searches as they change.

use std::{
    io::{self, IsTerminal},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use hashfinder_client::Connection;
use hashfinder_proto::{
    Details, Reason,
    v1::{WatchSearchesRequest, finder_client::FinderClient},
};
use tokio::time::{MissedTickBehavior, interval};
use tonic::Request;
use tonic_cancel::{CallOptions, StreamingCall};

use super::{
    arguments::WatchArguments,
    rows::{Form, lines},
    screen::Screen,
};
use crate::{
    exit::Exit,
    signals::Signals,
    terminal::{
        live::{height, show},
        say, takes_escapes,
    },
};

/// Interval at which a table is redrawn even if no search has changed, because it shows ages.
const REDRAW_EVERY: Duration = Duration::from_secs(1);

/// Runs the command. Dropping the future ends the call.
pub(super) async fn watch(arguments: &WatchArguments) -> Result<Exit> {
    let at = &arguments.at;
    let mut signals = Signals::new().context("cannot receive signals")?;
    let form = match arguments.json {
        true => Form::Json,
        false if io::stdout().is_terminal() && takes_escapes() => Form::Table,
        false => Form::Tabs,
    };
    let mut screen = Screen::new(&arguments.which.states);
    let watching = async {
        let connection = at.connect().await?;
        follow(&connection, arguments, form, &mut screen).await
    };
    let ended = tokio::select! {
        ended = watching => ended,
        _ = signals.next() => Ok(None),
    };
    screen.live.end().await;
    if let Some(why) = ended? {
        say(why);
    }
    Ok(Exit::Success)
}

/// Shows changes until the server ends the call or the output is closed. Returns a message for the
/// user if the server shuts down. Dropping the future ends the call.
async fn follow(
    connection: &Connection,
    arguments: &WatchArguments,
    form: Form,
    screen: &mut Screen,
) -> Result<Option<String>> {
    let WatchArguments { at, which, .. } = arguments;
    let pause = prost_types::Duration::try_from(*arguments.interval);
    let request = Request::new(WatchSearchesRequest {
        states: which.states(),
        client: which.client.clone(),
        interval: Some(pause.context("the interval is too long")?),
    });
    let mut client = FinderClient::new(connection.channel());
    let mut call = StreamingCall::start(request, CallOptions::new(), |request| async move {
        client.watch_searches(request).await
    });
    let mut ticks = interval(REDRAW_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            changes = call.message() => match changes {
                Ok(Some(changes)) if form == Form::Table => screen.take(changes.searches),
                Ok(Some(changes)) => {
                    if !show(lines(&changes.searches, form)).await? {
                        return Ok(None);
                    }
                    continue;
                }
                Ok(None) => return Ok(None),
                Err(status) if Details::of(&status).has(Reason::Draining) => {
                    return Ok(Some(format!("the server at {} is shutting down", at.server)));
                }
                Err(status) => return Err(at.failure(&status)),
            },
            _ = ticks.tick(), if screen.live.is_drawn() => {}
        }
        if !show(screen.draw(height(), SystemTime::now())).await? {
            return Ok(None);
        }
    }
}
