//! `hashfinder searches`: the searches that are going on at a server, shown and cancelled.

use std::{
    collections::{BTreeMap, HashSet},
    io::{self, IsTerminal},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use prost_types::Timestamp;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::{Code, Request, Response, Status};
use tonic_cancel::{Call, CallOptions, StreamingCall};

use crate::{
    arguments::{ConnectionArguments, values},
    connection::{Connection, advice},
    exit::Exit,
    rpc::{
        Details, INTERVAL, LONGEST_INTERVAL, REASON_LEN, SHORTEST_INTERVAL,
        v1pb::{
            CancelSearchRequest, ListSearchesRequest, SearchState, SearchSummary,
            WatchSearchesRequest, finder_client::FinderClient,
        },
    },
    server_address::ServerAddress,
    signals::{Signals, exit_at_once},
    terminal::{self, as_text, figures::number, print, say, takes_escapes},
    threads::aside,
};

/// How long `searches` waits for a server that is not there: it is one that is meant to be there.
const CONNECT_TIMEOUT: &str = "5s";

/// How long an answer may take that needs no search. A server that is very busy takes a part of a second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How many searches are asked for at once, as many as a server gives.
const PAGE_SIZE: i32 = 1000;

/// How often a table is drawn anew when nothing has changed but the time.
const REDRAW_EVERY: Duration = Duration::from_secs(1);

/// How many searches that have ended a watch keeps to show them. No terminal has so many lines.
const KEPT_ENDED: usize = 1000;

/// How long a terminal may take for the last that it is shown. One that is held by ctrl-S takes for ever.
const LAST_WORD: Duration = Duration::from_millis(200);

/// The terminal's height where it does not tell: what a VT100 had.
const USUAL_HEIGHT: usize = 24;

/// Show and cancel the searches that are going on at a server.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes:
    0  done
    1  a search to cancel does not exist, or belongs to another client
    2  the command line is wrong
    5  the server, the connection or the output failed
  130  list and cancel: stopped by ctrl-C (129: SIGHUP, 131: SIGQUIT, 143: SIGTERM)")]
pub(crate) struct SearchesArguments {
    #[command(subcommand)]
    command: SearchesCommand,
}

#[derive(Debug, Subcommand)]
enum SearchesCommand {
    List(ListArguments),
    Watch(WatchArguments),
    Cancel(CancelArguments),
}

/// List searches, the oldest first.
///
/// On a terminal it is a table. Elsewhere it is a line for each search, with nine columns separated by
/// tabs: the ID, the state, the client, when it began, the hashes, the distance that ends it, the names
/// (separated by commas; a name's own has a backslash before it), how it ended, and the cursor from
/// which it goes on. A server keeps those that have ended for a while.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder searches list
  hashfinder searches list --state running,queued --server localhost:50051
  hashfinder searches list --state ended --json | jq -r .cursor

With --json, one object a line for each search, as docs/searches.schema.json describes it.

Exit codes:
    0  listed
    2  the command line is wrong
    5  the server, the connection or the output failed
  130  stopped by ctrl-C (129: SIGHUP, 131: SIGQUIT, 143: SIGTERM)")]
struct ListArguments {
    #[command(flatten)]
    at: At,

    #[command(flatten)]
    which: Which,

    /// Print JSON, one object on each line
    #[arg(long)]
    json: bool,
}

/// Show searches as they change.
///
/// On a terminal it is a table that is drawn anew, as many lines as there are: those that are going on,
/// then those that ended last. Elsewhere, and with --json, each change is a line like those of `list`.
/// It goes on until ctrl-C, or until the server shuts down.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder searches watch
  hashfinder searches watch --json | jq -r 'select(.end_reason == \"found\").search_id'

Exit codes:
  0  stopped by ctrl-C, SIGHUP, SIGQUIT or SIGTERM; by the reader of the output; or because the
     server shut down
  2  the command line is wrong
  5  the server, the connection or the output failed")]
struct WatchArguments {
    #[command(flatten)]
    at: At,

    #[command(flatten)]
    which: Which,

    /// The time between two looks: 100ms to 1m
    #[arg(long, value_name = "DURATION", value_parser = looks, default_value_t = INTERVAL.into())]
    interval: humantime::Duration,

    /// Print JSON, one object on each line
    #[arg(long)]
    json: bool,
}

/// Cancel searches, by their IDs.
///
/// Prints a line for each: its ID, and what became of it. Whoever waits for the search is told the
/// reason, and a cursor to go on from. To cancel one that has ended already changes nothing.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder searches cancel 8ffaa5e2b9c0c5e31c9d3a6f0e4b7d12 --reason 'the machine is needed'
  hashfinder searches list --state running | cut -f 1 | xargs -r hashfinder searches cancel

Exit codes:
    0  each was told to stop, or had ended already
    1  a search does not exist, or belongs to another client; the others were told to stop
    2  the command line is wrong
    5  the server, the connection or the output failed
  130  stopped by ctrl-C (129: SIGHUP, 131: SIGQUIT, 143: SIGTERM); searches that were not printed
       may still run")]
struct CancelArguments {
    /// Which to cancel, as `searches list` shows them
    #[arg(value_name = "ID", required = true, value_parser = search_id)]
    ids: Vec<String>,

    #[command(flatten)]
    at: At,

    /// Why, for whoever waits for them: in UTF-8 at most 256 bytes
    #[arg(
        long,
        value_name = "TEXT",
        value_parser = reason,
        default_value = "",
        hide_default_value = true
    )]
    reason: String,
}

fn looks(text: &str) -> Result<humantime::Duration, String> {
    let interval = values::duration(text).ok();
    let interval = interval.filter(|it| (SHORTEST_INTERVAL..=LONGEST_INTERVAL).contains(it));
    let interval = interval.map(humantime::Duration::from);
    interval.ok_or_else(|| "give a time from 100ms to 1m".to_owned())
}

fn search_id(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("it is empty; `hashfinder searches list` shows the IDs".to_owned());
    }
    Ok(text.to_owned())
}

fn reason(text: &str) -> Result<String, String> {
    let length = text.len();
    if length > REASON_LEN {
        return Err(format!("it has {length} bytes; {REASON_LEN} is the most"));
    }
    if text.chars().any(char::is_control) {
        return Err("it holds a control character, a line's end for one; leave it out".to_owned());
    }
    Ok(text.to_owned())
}

/// Where the searches are.
#[derive(Args, Debug)]
struct At {
    /// The server, at HOST:PORT, https://HOST:PORT or unix:PATH
    #[arg(long, value_name = "HOST:PORT", value_parser = values::server)]
    #[arg(default_value = "localhost:50051")]
    server: ServerAddress,

    /// How long to wait for the server to be there
    #[arg(long, value_name = "DURATION", default_value = CONNECT_TIMEOUT, value_parser = values::duration)]
    connect_timeout: Duration,

    #[command(flatten)]
    connection: ConnectionArguments,
}

/// Which searches are meant.
#[derive(Args, Debug)]
struct Which {
    /// Only those in this state; may be given more than once, or several with commas between them
    #[arg(
        long = "state",
        value_name = "STATE",
        value_enum,
        value_delimiter = ','
    )]
    states: Vec<State>,

    /// Only those of this client: ip: and an address, or user: and a number, as `list` shows it. For
    /// operators; others see their own alone
    #[arg(
        long,
        value_name = "CLIENT",
        default_value = "",
        hide_default_value = true
    )]
    client: String,
}

impl Which {
    fn states(&self) -> Vec<i32> {
        let states = self.states.iter();
        states.map(|state| state.on_the_wire() as i32).collect()
    }
}

/// What a search is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum State {
    /// It waits for its turn
    Queued,
    /// Secrets are being tried for it
    Running,
    /// It waits for its reader
    Parked,
    /// It has ended
    Ended,
}

impl State {
    fn on_the_wire(self) -> SearchState {
        match self {
            State::Queued => SearchState::Queued,
            State::Running => SearchState::Running,
            State::Parked => SearchState::Parked,
            State::Ended => SearchState::Ended,
        }
    }
}

/// Runs the command. Dropping the future cancels the call that is under way.
pub(crate) async fn run(arguments: SearchesArguments) -> Result<Exit> {
    match arguments.command {
        SearchesCommand::List(arguments) => list(&arguments).await,
        SearchesCommand::Watch(arguments) => watch(&arguments).await,
        SearchesCommand::Cancel(arguments) => cancel(&arguments).await,
    }
}

impl At {
    async fn connect(&self) -> Result<Connection> {
        let server = self.connection.address(&self.server);
        let timeout = self.connect_timeout;
        Connection::open(&server, &self.connection, timeout, timeout, say).await
    }

    /// What a status says that ended a call, and what to do about it.
    fn failure(&self, status: &Status) -> anyhow::Error {
        let server = &self.server;
        let message = as_text(status.message());
        match status.code() {
            Code::Unimplemented => anyhow!(
                "the server at {server} does not tell its searches: it speaks the reference contract \
                 alone, or is of another version"
            ),
            Code::DeadlineExceeded => anyhow!(
                "the server at {server} did not answer within {}; try again",
                humantime::format_duration(ANSWER_TIMEOUT)
            ),
            Code::InvalidArgument | Code::ResourceExhausted => {
                anyhow!("the server at {server} refuses that: {message}")
            }
            code => anyhow!(advice(status, server).unwrap_or_else(|| {
                format!("the server at {server} failed: {message} ({code:?}); try again")
            })),
        }
    }
}

async fn list(arguments: &ListArguments) -> Result<Exit> {
    exit_at_once().context("cannot listen to signals")?;
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
                "the server at {} tells the same page of searches again and again",
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
    exit_at_once().context("cannot listen to signals")?;
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
                let became = match response.search.filter(|_| response.had_ended) {
                    Some(search) => format!("had ended: {}", ending(&search)),
                    None => "told to stop".to_owned(),
                };
                // Whether anybody reads or not, the others are to be cancelled too.
                print(format!("{}\t{became}\n", as_text(search_id)))?;
            }
            Err(status) if status.code() == Code::NotFound => {
                exit = Exit::No;
                say(format_args!(
                    "there is no search {} of yours at {}; hashfinder searches list shows which there \
                     are",
                    as_text(search_id),
                    at.server
                ));
            }
            Err(status) => return Err(at.failure(&status)),
        }
    }
    Ok(exit)
}

async fn watch(arguments: &WatchArguments) -> Result<Exit> {
    let at = &arguments.at;
    let mut signals = Signals::new().context("cannot listen to signals")?;
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
    if screen.drawn > 0 {
        // The table stays, and what comes next stands below it.
        let _ = timeout(LAST_WORD, show("\n".to_owned())).await;
    }
    if let Some(why) = ended? {
        say(why);
    }
    Ok(Exit::Success)
}

/// Shows what changes until the server has no more to tell, or nobody reads; tells why, if it is worth
/// saying. Dropping the future ends it, within a line perhaps.
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
                Err(status) if Details::of(&status).draining => {
                    return Ok(Some(format!("the server at {} is shutting down", at.server)));
                }
                Err(status) => return Err(at.failure(&status)),
            },
            _ = ticks.tick(), if screen.drawn > 0 => {}
        }
        if !show(screen.draw(height(), SystemTime::now())).await? {
            return Ok(None);
        }
    }
}

/// The form of what is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Table,
    Tabs,
    Json,
}

/// A line for each, unless it is for a table.
fn lines(searches: &[SearchSummary], form: Form) -> String {
    let lines = searches.iter().map(|search| match form {
        Form::Json => as_json(search) + "\n",
        Form::Tabs | Form::Table => in_columns(search).join("\t") + "\n",
    });
    lines.collect()
}

/// Prints, and leaves the other ears open while nobody reads; says whether anybody ever will. Dropping
/// the future may leave a part of it unprinted.
async fn show(text: String) -> Result<bool> {
    aside("output", move || print(text)).await?
}

/// A search as programs read it that cut lines into columns.
fn in_columns(search: &SearchSummary) -> [String; 9] {
    [
        as_text(&search.search_id),
        word(search.state().as_str_name(), "SEARCH_STATE_"),
        as_text(&search.client),
        rfc3339(search.started_at.as_ref()).unwrap_or_default(),
        search.hashes.to_string(),
        search.ideal_distance.to_string(),
        names(search),
        ending(search),
        as_text(&search.cursor),
    ]
}

fn as_json(search: &SearchSummary) -> String {
    let text = |text: &str| Some(text).filter(|text| !text.is_empty()).map(Value::from);
    let ended = search.state() == SearchState::Ended;
    let record = json!({
        "search_id": search.search_id,
        "method": search.method,
        "client": search.client,
        "desired_names": search.desired_names,
        "ideal_distance": search.ideal_distance,
        "state": word(search.state().as_str_name(), "SEARCH_STATE_"),
        "started_at": rfc3339(search.started_at.as_ref()),
        "hashes": search.hashes,
        "frontier": search.frontier,
        "ended_at": rfc3339(search.ended_at.as_ref()),
        "end_reason": ended.then(|| word(search.end_reason().as_str_name(), "END_REASON_")),
        "end_message": text(&search.end_message),
        "cursor": text(&search.cursor),
    });
    terminal::json(&record)
}

/// A value of an enumeration, as it is said: what follows the prefix, in lower case.
fn word(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix).unwrap_or(name) {
        // What a later version says.
        "UNSPECIFIED" => "unknown".to_owned(),
        value => value.to_lowercase(),
    }
}

/// The names, with commas between them; a name's own comma, and its backslash, has a backslash before it.
fn names(search: &SearchSummary) -> String {
    let names = search.desired_names.iter();
    let names = names.map(|name| name.replace('\\', r"\\").replace(',', r"\,"));
    as_text(&names.collect::<Vec<_>>().join(","))
}

/// How a search ended, and empty as long as it has not.
fn ending(search: &SearchSummary) -> String {
    if search.state() != SearchState::Ended {
        return String::new();
    }
    let reason = word(search.end_reason().as_str_name(), "END_REASON_").replace('_', " ");
    match search.end_message.as_str() {
        "" => reason,
        message => format!("{reason}: {}", as_text(message)),
    }
}

fn rfc3339(timestamp: Option<&Timestamp>) -> Option<String> {
    let time = humantime::format_rfc3339_seconds(time(timestamp?)?);
    Some(time.to_string())
}

/// The time, if it is one that has been or will be soon: a server may say anything.
fn time(timestamp: &Timestamp) -> Option<SystemTime> {
    let year_10000 = 253_402_300_800;
    let seconds = u64::try_from(timestamp.seconds).ok()?;
    (seconds < year_10000).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// A table of searches, under its titles.
fn aligned<'a>(searches: impl Iterator<Item = &'a SearchSummary>, now: SystemTime) -> Vec<String> {
    let titles = [
        "SEARCH", "STATE", "CLIENT", "BEGAN", "HASHES", "DISTANCE", "NAMES", "END",
    ];
    let mut rows = vec![titles.map(str::to_owned)];
    rows.extend(searches.map(|search| for_people(search, now)));
    let mut widths = [0; 8];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; 8]| {
        let cells = row.iter().zip(widths);
        let padded = cells.map(|(cell, width)| format!("{cell:<width$}"));
        let line = padded.collect::<Vec<_>>().join("  ");
        line.trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// A search as people read it.
fn for_people(search: &SearchSummary, now: SystemTime) -> [String; 8] {
    let [id, state, client, _, _, distance, names, ending, _] = in_columns(search);
    let age = search.started_at.as_ref().and_then(time).map(|began| {
        // The server's clock may be ahead of ours.
        let age = now.duration_since(began).unwrap_or_default();
        let age = Duration::from_secs(age.as_secs());
        format!("{} ago", humantime::format_duration(age))
    });
    let hashes = number(search.hashes as f64);
    [
        id,
        state,
        client,
        age.unwrap_or_default(),
        hashes,
        distance,
        names,
        ending,
    ]
}

/// The lines of the terminal.
fn height() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stdout());
    let rows = size.map_or(0, |size| usize::from(size.ws_row));
    if rows == 0 { USUAL_HEIGHT } else { rows }
}

/// A table on a terminal that is drawn anew in its place.
struct Screen {
    /// Which are shown; all if there are none.
    states: Vec<SearchState>,
    /// By when they began.
    searches: BTreeMap<(i64, i32, String), SearchSummary>,
    /// How many lines of it stand on the terminal; the place is at the end of the last one.
    drawn: usize,
}

impl Screen {
    fn new(states: &[State]) -> Screen {
        Screen {
            states: states.iter().map(|state| state.on_the_wire()).collect(),
            searches: BTreeMap::new(),
            drawn: 0,
        }
    }

    /// Takes changes in.
    fn take(&mut self, changes: Vec<SearchSummary>) {
        for search in changes {
            let began = search.started_at.unwrap_or_default();
            let key = (began.seconds, began.nanos, search.search_id.clone());
            // One that has left the states that are watched is told once more.
            if self.states.is_empty() || self.states.contains(&search.state()) {
                self.searches.insert(key, search);
            } else {
                self.searches.remove(&key);
            }
        }
        let ended = |search: &SearchSummary| search.state() == SearchState::Ended;
        let all = self
            .searches
            .values()
            .filter(|search| ended(search))
            .count();
        let mut too_many = all.saturating_sub(KEPT_ENDED);
        self.searches.retain(|_, search| {
            let goes = too_many > 0 && ended(search);
            too_many -= usize::from(goes);
            !goes
        });
    }

    /// What draws it where it stands, on a terminal of so many lines.
    fn draw(&mut self, height: usize, now: SystemTime) -> String {
        let lines = self.lines(height, now);
        // To the beginning of the first line, as far as that has not left the screen.
        let mut text = "\r".to_owned();
        let up = self.drawn.min(height).saturating_sub(1);
        if up > 0 {
            text += &format!("\x1b[{up}A");
        }
        // Lines that do not wrap, each erased behind its end, and then all that is below.
        text += "\x1b[?7l";
        text += &lines.join("\x1b[K\n");
        text += "\x1b[J\x1b[?7h";
        self.drawn = lines.len();
        text
    }

    /// The table, no longer than the terminal is high: those that are going on come before those that have
    /// ended, and of these the last ones.
    fn lines(&self, height: usize, now: SystemTime) -> Vec<String> {
        if self.searches.is_empty() {
            return vec!["no searches".to_owned()];
        }
        let (ended, going_on): (Vec<_>, Vec<_>) = self
            .searches
            .values()
            .partition(|search| search.state() == SearchState::Ended);
        // The titles are a line, and so is what tells of the rest.
        let mut room = height.saturating_sub(1).max(1);
        let all = self.searches.len();
        if all > room {
            room = room.saturating_sub(1);
        }
        let going_on = &going_on[..going_on.len().min(room)];
        let last = ended.len().min(room - going_on.len());
        let ended = &ended[ended.len() - last..];
        let mut lines = aligned(going_on.iter().chain(ended).copied(), now);
        let left = all - going_on.len() - ended.len();
        if left > 0 {
            lines.push(format!("and {left} more"));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(id: &str, began: i64, state: SearchState) -> SearchSummary {
        SearchSummary {
            search_id: id.to_owned(),
            client: "ip:127.0.0.1".to_owned(),
            desired_names: vec!["doctor".to_owned()],
            state: state.into(),
            started_at: Some(Timestamp {
                seconds: began,
                nanos: 0,
            }),
            ..SearchSummary::default()
        }
    }

    fn ids(lines: &[String]) -> Vec<&str> {
        let words = lines.iter().map(|line| line.split(' ').next());
        words.map(Option::unwrap_or_default).collect()
    }

    #[test]
    fn a_table_has_as_many_lines_as_the_terminal() {
        let mut screen = Screen::new(&[]);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        assert_eq!(screen.lines(24, now), ["no searches"]);
        screen.take(vec![
            search("a", 1, SearchState::Ended),
            search("b", 2, SearchState::Running),
            search("c", 3, SearchState::Ended),
            search("d", 4, SearchState::Parked),
        ]);
        for (height, shown) in [
            (24, &["SEARCH", "b", "d", "a", "c"] as &[&str]),
            (5, &["SEARCH", "b", "d", "a", "c"]),
            (4, &["SEARCH", "b", "d", "and"]),
            (3, &["SEARCH", "b", "and"]),
            (2, &["SEARCH", "and"]),
        ] {
            assert_eq!(ids(&screen.lines(height, now)), shown, "{height}");
        }
        assert_eq!(ids(&screen.lines(5, now)[3..]), ["a", "c"]);
        screen.take(vec![search("b", 2, SearchState::Ended)]);
        assert_eq!(ids(&screen.lines(4, now)), ["SEARCH", "d", "c", "and"]);
    }

    #[test]
    fn names_can_be_told_apart() {
        let names = |given: &[&str]| {
            let desired_names = given.iter().map(ToString::to_string).collect();
            names(&SearchSummary {
                desired_names,
                ..SearchSummary::default()
            })
        };
        assert_eq!(names(&["doctor", "tardis"]), "doctor,tardis");
        assert_eq!(names(&["a,b", r"c\"]), r"a\,b,c\\");
        assert_eq!(names(&["a", r"b,c\"]), r"a,b\,c\\");
    }

    #[test]
    fn a_table_of_some_states_drops_what_has_left_them() {
        let mut screen = Screen::new(&[State::Running]);
        let now = SystemTime::UNIX_EPOCH;
        screen.take(vec![search("a", 1, SearchState::Running)]);
        assert_eq!(screen.lines(24, now).len(), 2);
        screen.take(vec![search("a", 1, SearchState::Ended)]);
        assert_eq!(screen.lines(24, now), ["no searches"]);
    }

    #[test]
    fn no_more_of_those_that_have_ended_are_kept_than_are_shown() {
        let mut screen = Screen::new(&[]);
        screen.take(vec![search("running", 0, SearchState::Running)]);
        let some = |range: std::ops::Range<i64>| {
            let one = |began: i64| search(&began.to_string(), began, SearchState::Ended);
            range.map(one).collect::<Vec<_>>()
        };
        screen.take(some(1..2000));
        screen.take(some(2000..2010));
        assert_eq!(screen.searches.len(), KEPT_ENDED + 1);
        let (oldest, newest) = (screen.searches.keys().next(), screen.searches.keys().last());
        assert_eq!(oldest.map(|key| key.2.as_str()), Some("running"));
        assert_eq!(newest.map(|key| key.2.as_str()), Some("2009"));
    }

    #[test]
    fn nothing_that_a_server_says_reaches_the_terminal_but_text() {
        let evil = "\x1b[2J\t\n\r\u{7}\u{9b}31m\u{7f}\u{202e}";
        let hostile = SearchSummary {
            search_id: evil.to_owned(),
            method: evil.to_owned(),
            client: evil.to_owned(),
            desired_names: vec![evil.to_owned()],
            end_message: evil.to_owned(),
            cursor: evil.to_owned(),
            state: SearchState::Ended.into(),
            started_at: Some(Timestamp {
                seconds: i64::MAX,
                nanos: -1,
            }),
            hashes: u64::MAX,
            ..SearchSummary::default()
        };
        let now = SystemTime::now();
        let controls = |text: &str| text.chars().filter(|c| c.is_control()).count();
        let columns = lines(std::slice::from_ref(&hostile), Form::Tabs);
        // The tabs between nine columns, and the line's end.
        assert_eq!(controls(&columns), 9);
        let json = lines(std::slice::from_ref(&hostile), Form::Json);
        assert_eq!(controls(&json), 1);
        let read: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read["client"], evil);
        for line in aligned([&hostile].into_iter(), now) {
            assert_eq!(controls(&line), 0);
        }
    }
}
