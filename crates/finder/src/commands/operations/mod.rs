//! `hashfinder operations`: watches, awaits, cancels and backs up the operations of a server.

mod arguments;
mod folder;
mod rows;

use std::{
    collections::HashSet,
    io::{self, IsTerminal},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, Result, bail};
use hashfinder_proto::{
    Details, Reason,
    google::longrunning::{
        CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
        operations_client::OperationsClient,
    },
    v1::{ListCandidatesRequest, finder_client::FinderClient},
};
use hashfinder_system::threads::aside;
use tonic::{Code, Request, Response, Status};
use tonic_cancel::{Call, CallOptions};

pub(crate) use self::arguments::OperationsArguments;
use self::{
    arguments::{
        CandidatesArguments, DeleteArguments, FollowArguments, ListArguments, NamesArguments,
        OperationsCommand, QuickCommand, ShowArguments, WaitArguments,
    },
    rows::{Listed, candidate_line, table},
};
use crate::{
    arguments::{ANSWER_TIMEOUT, ServerArguments},
    commands::{
        find::{Finding, WatchRequest, watch_operation},
        searches::rows::word,
    },
    exit::Exit,
    signals::exit_at_once,
    terminal::{as_text, json, print, say},
};

/// Number of operations or candidates in a page: the maximum that a server allows.
const PAGE_SIZE: i32 = 1000;

/// Runs the command. Dropping the future cancels the call that is under way, and no operation.
pub(crate) async fn run(arguments: OperationsArguments) -> Result<Exit> {
    let command = match arguments.command {
        OperationsCommand::Watch(arguments) => {
            return Ok(watch_operation(request(arguments.follow, true)).await?.exit);
        }
        OperationsCommand::Wait(arguments) => return wait(arguments).await,
        OperationsCommand::Quick(command) => command,
    };
    exit_at_once().context("cannot receive signals")?;
    match command {
        QuickCommand::List(arguments) => list(&arguments).await,
        QuickCommand::Show(arguments) => show(&arguments).await,
        QuickCommand::Candidates(arguments) => candidates(&arguments).await,
        QuickCommand::Cancel(arguments) => cancel(&arguments).await,
        QuickCommand::Delete(arguments) => delete(&arguments).await,
        // Files can block, but a signal must still end the process.
        QuickCommand::Export(arguments) => {
            aside("export", move || folder::export(&arguments)).await?
        }
        QuickCommand::Backup(arguments) => {
            aside("backup", move || folder::backup(&arguments)).await?
        }
        QuickCommand::Recover(arguments) => {
            aside("recover", move || folder::recover(&arguments)).await?
        }
    }
}

fn request(arguments: FollowArguments, shows_candidates: bool) -> WatchRequest {
    WatchRequest {
        name: arguments.name,
        server: arguments.server,
        connection: arguments.connection,
        connect_timeout: arguments.connect_timeout,
        shows_candidates,
        json: arguments.json,
        quiet: arguments.quiet,
        color: arguments.color,
    }
}

async fn wait(arguments: WaitArguments) -> Result<Exit> {
    let name = arguments.follow.name.clone();
    let watched = watch_operation(request(arguments.follow, false)).await?;
    let (Some(command), Some(reason)) = (arguments.exec, watched.reason) else {
        return Ok(watched.exit);
    };
    let found = watched.found.as_ref();
    let status = Command::new("sh")
        .arg("-c")
        .arg(&command)
        .env("HASHFINDER_NAME", name)
        .env(
            "HASHFINDER_STATE",
            word(reason.as_str_name(), "END_REASON_"),
        )
        .env(
            "HASHFINDER_SECRET_HEX",
            found.map(Finding::hex).unwrap_or_default(),
        )
        .env(
            "HASHFINDER_HASHED_NAME",
            found.map_or("", |found| found.hashed_name.as_str()),
        )
        .status()
        .context("cannot run the command of --exec")?;
    if !status.success() {
        bail!("the command of --exec failed: {status}");
    }
    Ok(watched.exit)
}

async fn list(arguments: &ListArguments) -> Result<Exit> {
    let ListArguments {
        at,
        state,
        client: owner,
        json: as_json,
    } = arguments;
    let client = OperationsClient::new(at.connect().await?.channel());
    let on_terminal = io::stdout().is_terminal() && !as_json;
    let mut terms = Vec::new();
    terms.extend(state.map(|state| format!("state = {}", state.name())));
    terms.extend((!owner.is_empty()).then(|| format!("client = \"{owner}\"")));
    let mut listed = Vec::new();
    let mut page_token = String::new();
    let mut tokens = HashSet::new();
    loop {
        let request = Request::new(ListOperationsRequest {
            filter: terms.join(" AND "),
            page_size: PAGE_SIZE,
            page_token: page_token.clone(),
            ..ListOperationsRequest::default()
        });
        let mut client = client.clone();
        let call = Call::start(request, options(), |request| async move {
            client.list_operations(request).await
        });
        let page = call
            .await
            .map_err(|status| failure(at, &status))?
            .into_inner();
        let operations = page.operations.iter().map(Listed::of);
        if on_terminal {
            listed.extend(operations);
        } else {
            let lines = operations.map(|operation| match as_json {
                true => json(&operation.as_json()) + "\n",
                false => operation.in_columns() + "\n",
            });
            if !print(lines.collect::<String>())? {
                return Ok(Exit::Success);
            }
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        if !tokens.insert(page_token.clone()) {
            bail!(
                "the server at {} returns the same page repeatedly",
                at.server
            );
        }
    }
    if on_terminal && listed.is_empty() {
        say(format_args!("no operations at {}", at.server));
    } else if on_terminal {
        let rows = table(&listed, SystemTime::now()).join("\n");
        print(format!("{rows}\n"))?;
    }
    Ok(Exit::Success)
}

async fn show(arguments: &ShowArguments) -> Result<Exit> {
    let at = &arguments.at;
    let mut client = OperationsClient::new(at.connect().await?.channel());
    let request = Request::new(GetOperationRequest {
        name: arguments.name.clone(),
    });
    let call = Call::start(request, options(), |request| async move {
        client.get_operation(request).await
    });
    let operation = match call.await {
        Ok(response) => Listed::of(response.get_ref()),
        Err(status) => return missing(at, &arguments.name, &status),
    };
    print(match arguments.json {
        true => json(&operation.as_json()) + "\n",
        false => operation.in_lines(),
    })?;
    Ok(Exit::Success)
}

async fn candidates(arguments: &CandidatesArguments) -> Result<Exit> {
    let at = &arguments.at;
    let client = FinderClient::new(at.connect().await?.channel());
    let mut page_token = String::new();
    let mut tokens = HashSet::new();
    loop {
        let request = Request::new(ListCandidatesRequest {
            name: arguments.name.clone(),
            page_size: PAGE_SIZE,
            page_token: page_token.clone(),
        });
        let mut client = client.clone();
        let call = Call::start(request, options(), |request| async move {
            client.list_candidates(request).await
        });
        let page = match call.await {
            Ok(page) => page.into_inner(),
            Err(status) => return missing(at, &arguments.name, &status),
        };
        let lines = page.candidates.iter();
        let lines = lines.map(|candidate| candidate_line(candidate, arguments.json));
        if !print(lines.collect::<String>())? {
            return Ok(Exit::Success);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(Exit::Success);
        }
        if !tokens.insert(page_token.clone()) {
            bail!(
                "the server at {} returns the same page repeatedly",
                at.server
            );
        }
    }
}

async fn cancel(arguments: &NamesArguments) -> Result<Exit> {
    let at = &arguments.at;
    let client = OperationsClient::new(at.connect().await?.channel());
    let mut exit = Exit::Success;
    for name in &arguments.names {
        let request = Request::new(CancelOperationRequest { name: name.clone() });
        let mut of_cancel = client.clone();
        let call = Call::start(request, options(), |request| async move {
            of_cancel.cancel_operation(request).await
        });
        let mut what = "cancelled".to_owned();
        let mut done = call.await.map(Response::into_inner);
        if done.is_ok() {
            // It may have ended before.
            let request = Request::new(GetOperationRequest { name: name.clone() });
            let mut of_get = client.clone();
            let call = Call::start(request, options(), |request| async move {
                of_get.get_operation(request).await
            });
            done = call.await.map(|operation| {
                what = Listed::of(operation.get_ref()).after_cancellation();
            });
        }
        exit = report(at, name, &what, done, exit)?;
    }
    Ok(exit)
}

async fn delete(arguments: &DeleteArguments) -> Result<Exit> {
    let at = &arguments.at;
    let client = OperationsClient::new(at.connect().await?.channel());
    let mut exit = Exit::Success;
    for name in &arguments.names {
        let request = Request::new(DeleteOperationRequest { name: name.clone() });
        let mut client = client.clone();
        let call = Call::start(request, options(), |request| async move {
            client.delete_operation(request).await
        });
        let done = call.await.map(Response::into_inner);
        exit = report(at, name, "deleted", done, exit)?;
    }
    Ok(exit)
}

/// Prints what became of an operation. Returns the exit code of the command so far.
fn report(
    at: &ServerArguments,
    name: &str,
    what: &str,
    done: Result<(), Status>,
    exit: Exit,
) -> Result<Exit> {
    match done {
        Ok(()) => {
            // Even if the output is closed, the remaining operations are processed.
            print(format!("{}\t{what}\n", as_text(name)))?;
            Ok(exit)
        }
        Err(status) if Details::of(&status).has(Reason::OperationRunning) => {
            say(format_args!(
                "{}: {}",
                as_text(name),
                as_text(status.message())
            ));
            Ok(Exit::No)
        }
        Err(status) => missing(at, name, &status),
    }
}

/// Reports an operation that does not exist. All other statuses are errors.
fn missing(at: &ServerArguments, name: &str, status: &Status) -> Result<Exit> {
    if status.code() != Code::NotFound {
        return Err(failure(at, status));
    }
    say(format_args!(
        "{} has no operation {}, or it belongs to another client; see `hashfinder operations list`",
        at.server,
        as_text(name)
    ));
    Ok(Exit::No)
}

fn failure(at: &ServerArguments, status: &Status) -> anyhow::Error {
    match status.code() {
        Code::FailedPrecondition | Code::Unavailable => {
            let message = as_text(status.message());
            anyhow::anyhow!(
                "the server at {} rejected the request: {message}",
                at.server
            )
        }
        _ => at.failure(status),
    }
}

fn options() -> CallOptions {
    CallOptions::new().timeout(ANSWER_TIMEOUT)
}
