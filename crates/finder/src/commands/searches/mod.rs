//! `hashfinder searches`: lists, watches and cancels the searches of a server.

mod arguments;
pub(crate) mod rows;
mod screen;
mod watch;

use std::{
    collections::HashSet,
    io::{self, IsTerminal},
    time::SystemTime,
};

use anyhow::{Context, Result, bail};
use hashfinder_proto::v1::{CancelSearchRequest, ListSearchesRequest, finder_client::FinderClient};
use tonic::{Code, Request, Response};
use tonic_cancel::{Call, CallOptions};

pub(crate) use self::arguments::SearchesArguments;
use self::{
    arguments::{CancelArguments, ListArguments, SearchesCommand},
    rows::{Form, aligned, ending, lines},
    watch::watch,
};
use crate::{
    arguments::ANSWER_TIMEOUT,
    exit::Exit,
    signals::exit_at_once,
    terminal::{as_text, print, say},
};

/// Number of searches in a page: the maximum that a server allows.
const PAGE_SIZE: i32 = 1000;

/// Runs the command. Dropping the future cancels the call that is under way.
pub(crate) async fn run(arguments: SearchesArguments) -> Result<Exit> {
    match arguments.command {
        SearchesCommand::List(arguments) => list(&arguments).await,
        SearchesCommand::Watch(arguments) => watch(&arguments).await,
        SearchesCommand::Cancel(arguments) => cancel(&arguments).await,
    }
}

async fn list(arguments: &ListArguments) -> Result<Exit> {
    exit_at_once().context("cannot receive signals")?;
    let ListArguments { at, which, json } = arguments;
    let client = FinderClient::new(at.connect().await?.channel());
    let form = match (json, io::stdout().is_terminal()) {
        (true, _) => Form::Json,
        (false, true) => Form::Table,
        (false, false) => Form::Tabs,
    };
    let mut table = Vec::new();
    let mut page_token = String::new();
    let mut tokens = HashSet::new();
    loop {
        let request = Request::new(ListSearchesRequest {
            page_size: PAGE_SIZE,
            page_token: page_token.clone(),
            states: which.states(),
            client: which.client.clone(),
        });
        let mut client = client.clone();
        let options = CallOptions::new().timeout(ANSWER_TIMEOUT);
        let call = Call::start(request, options, |request| async move {
            client.list_searches(request).await
        });
        let page = call.await.map_err(|status| at.failure(&status))?;
        let page = page.into_inner();
        if form == Form::Table {
            table.extend(page.searches);
        } else if !print(lines(&page.searches, form))? {
            return Ok(Exit::Success);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        if !tokens.insert(page_token.clone()) {
            bail!(
                "the server at {} returns the same page of searches repeatedly",
                at.server
            );
        }
    }
    if form == Form::Table && table.is_empty() {
        say(format_args!("no searches at {}", at.server));
    } else if form == Form::Table {
        let rows = aligned(table.iter(), SystemTime::now()).join("\n");
        print(format!("{rows}\n"))?;
    }
    Ok(Exit::Success)
}

async fn cancel(arguments: &CancelArguments) -> Result<Exit> {
    exit_at_once().context("cannot receive signals")?;
    let CancelArguments { ids, at, reason } = arguments;
    let client = FinderClient::new(at.connect().await?.channel());
    let mut exit = Exit::Success;
    for search_id in ids {
        let request = Request::new(CancelSearchRequest {
            search_id: search_id.clone(),
            reason: reason.clone(),
        });
        let mut client = client.clone();
        let options = CallOptions::new().timeout(ANSWER_TIMEOUT);
        let call = Call::start(request, options, |request| async move {
            client.cancel_search(request).await
        });
        match call.await.map(Response::into_inner) {
            Ok(response) => {
                let end = match response.search.filter(|_| response.had_ended) {
                    Some(search) => format!("had ended: {}", ending(&search)),
                    None => "cancelled".to_owned(),
                };
                // Even if the output is closed, the remaining searches are cancelled.
                print(format!("{}\t{end}\n", as_text(search_id)))?;
            }
            Err(status) if status.code() == Code::NotFound => {
                exit = Exit::No;
                say(format_args!(
                    "cannot cancel {}: {} has no such search, or it belongs to another client; see \
                     `hashfinder searches list`",
                    as_text(search_id),
                    at.server
                ));
            }
            Err(status) => return Err(at.failure(&status)),
        }
    }
    Ok(exit)
}
