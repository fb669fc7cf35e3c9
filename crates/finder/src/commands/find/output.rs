//! The results that `find` prints on stdout: one per line, in columns or as JSON.

use std::{
    env,
    io::{self, IsTerminal, Write},
    sync::Arc,
};

use anyhow::{Context, Result};
use hashfinder_search::{Cursor, Distance, Index, Query, Spelling};
use hashfinder_system::running_time::Stopwatch;
use serde_json::json;

use super::{
    arguments::{Color, FindArguments},
    finding::Finding,
    result::CommandResult,
    status::Status,
};
use crate::terminal::{self, takes_escapes};

/// The format of the results.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Columns {
        colored: bool,
    },
    Json,
    /// Results are not printed: the command uses the answer itself.
    Silent,
}

impl Form {
    fn columns(color: Color, on_terminal: bool) -> Form {
        let colored = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => on_terminal && allows_color(),
        };
        Form::Columns { colored }
    }
}

/// The request as the user made it, even if nothing can match it. The last JSON object repeats it.
struct Request {
    names: Vec<String>,
    spelling: Spelling,
    ideal: Distance,
    interesting: Distance,
}

impl Request {
    fn new(arguments: &FindArguments) -> Request {
        match &arguments.resume {
            Some(cursor) => Request::by(&cursor.query()),
            None => Request {
                names: arguments.query.names.clone(),
                spelling: arguments.query.spelling.spelling(),
                ideal: arguments.query.ideal_distance,
                interesting: arguments.show_inferior.unwrap_or(Distance::ZERO),
            },
        }
    }

    fn by(query: &Query) -> Request {
        let names = query.names().iter();
        Request {
            names: names.map(|name| name.as_str().to_owned()).collect(),
            spelling: query.spelling(),
            ideal: query.ideal_distance(),
            interesting: query.interesting_distance(),
        }
    }
}

/// Prints the results on stdout, and keeps the nearest secret so far.
pub(super) struct Output {
    form: Form,
    request: Request,
    stopwatch: Arc<Stopwatch>,
    best: Option<Finding>,
    wanted: u64,
    /// Whether the search reports candidates at all: a server does only on request.
    has_candidates: bool,
    answers: u64,
    /// Whether the titles of the columns were printed, or are not wanted.
    is_titled: bool,
    /// Whether stdout is still open, because its reader has not closed it.
    is_read: bool,
    status: Arc<Status>,
}

impl Output {
    pub(super) fn new(arguments: &FindArguments, status: Arc<Status>) -> Output {
        let on_terminal = io::stdout().is_terminal();
        let form = match arguments.json {
            true => Form::Json,
            false => Form::columns(arguments.color, on_terminal),
        };
        let request = Request::new(arguments);
        Output {
            is_titled: form == Form::Json || !on_terminal,
            wanted: arguments.count.get(),
            has_candidates: arguments.server.is_none() || request.interesting > request.ideal,
            ..Output::of(form, request, status)
        }
    }

    /// Returns an output for an operation, which prints candidates at a distance less than `shown`.
    pub(super) fn watching(
        query: &Query,
        shown: Distance,
        json: bool,
        color: Color,
        status: Arc<Status>,
    ) -> Output {
        let on_terminal = io::stdout().is_terminal();
        let form = match json {
            true => Form::Json,
            false => Form::columns(color, on_terminal),
        };
        let request = Request {
            interesting: shown,
            ..Request::by(query)
        };
        Output {
            is_titled: json || !on_terminal,
            ..Output::of(form, request, status)
        }
    }

    /// Prints the name of an operation that was started.
    pub(super) fn started(&mut self, name: &str) -> Result<()> {
        let line = match self.form {
            Form::Json => terminal::json(&json!({"type": "operation", "name": name})),
            _ => name.to_owned(),
        };
        self.print(&line)
    }

    /// Returns an output that prints nothing and keeps the answer as [`best`](Self::best).
    pub(super) fn silent(query: &Query, status: Arc<Status>) -> Output {
        Output::of(Form::Silent, Request::by(query), status)
    }

    fn of(form: Form, request: Request, status: Arc<Status>) -> Output {
        Output {
            form,
            request,
            stopwatch: Stopwatch::start(),
            best: None,
            wanted: 1,
            has_candidates: true,
            answers: 0,
            is_titled: true,
            is_read: true,
            status,
        }
    }

    /// Prints a candidate if it is near enough to be shown. Returns whether stdout is still open.
    pub(super) fn candidate(&mut self, finding: &Finding) -> Result<bool> {
        if finding.distance < self.request.interesting.get() {
            self.line("candidate", finding)?;
        }
        self.note(finding);
        Ok(self.is_read)
    }

    /// Prints an answer. Returns whether stdout is still open.
    pub(super) fn answer(&mut self, finding: &Finding) -> Result<bool> {
        self.line("result", finding)?;
        self.note(finding);
        self.answers += u64::from(self.is_read);
        Ok(self.is_read)
    }

    /// Prints how the command ended, if the output is JSON.
    pub(super) fn end(&mut self, result: &CommandResult) -> Result<()> {
        if self.form != Form::Json || !self.is_read {
            return Ok(());
        }
        let record = json!({
            "type": "end",
            "how": result.how,
            "why": result.why,
            "exit_code": result.exit as u8,
            "names": self.request.names,
            "algorithm": self.request.spelling.algorithm.to_string(),
            "encoding": self.request.spelling.encoding.to_string(),
            "ideal_distance": self.request.ideal.get(),
            "interesting_distance": self.request.interesting.get(),
            "results": self.answers,
            "hashes": result.hashes,
            "seconds": self.stopwatch.elapsed().as_secs_f64(),
            "nearest": self.best.as_ref().map(Finding::as_json),
            "cursor": result.cursor.as_ref().map(ToString::to_string),
        });
        self.print(&terminal::json(&record))
    }

    /// Sets the nearest secret so far to the one that earlier runs of this search found, if any.
    pub(super) fn begin_with(&mut self, query: &Query, nearest: Option<Index>) {
        let secret = nearest.map(|index| query.keyspace().secret(index));
        let nearest = secret.and_then(|secret| query.nearest(&secret));
        self.best = nearest.map(|nearest| Finding::new(query, nearest));
    }

    /// Returns the cursor of a search that has tried every index below `frontier`, with the nearest
    /// secret so far.
    pub(super) fn cursor(&self, query: &Query, frontier: Index) -> Cursor {
        let best = self.best.as_ref();
        let nearest = best.and_then(|best| query.keyspace().index_of(&best.secret));
        Cursor::new(query, frontier).with_nearest(nearest)
    }

    /// Returns the nearest secret so far.
    pub(super) fn best(&self) -> Option<&Finding> {
        self.best.as_ref()
    }

    /// Returns how many answers are wanted in total, from this run and from earlier runs of its
    /// session.
    pub(super) fn wanted(&self) -> u64 {
        self.wanted
    }

    /// Returns the text to show if there is no nearest secret so far.
    pub(super) fn no_candidate(&self) -> &'static str {
        if self.has_candidates {
            "no candidate so far"
        } else {
            "use --show-inferior to see the nearest candidate"
        }
    }

    /// Returns the number of wanted answers minus those that this run printed.
    pub(super) fn left(&self) -> u64 {
        self.wanted.saturating_sub(self.answers)
    }

    /// Returns the nearest secret so far, in columns.
    pub(super) fn best_row(&self) -> Option<String> {
        self.best.as_ref().map(ToString::to_string)
    }

    /// Returns the number of answers that this run printed.
    pub(super) fn answers(&self) -> u64 {
        self.answers
    }

    /// Keeps a secret if it is the nearest so far. After stdout was closed, keeps nothing: a
    /// resumed search finds the secret again.
    fn note(&mut self, finding: &Finding) {
        let best = self.best.as_ref();
        if self.is_read && best.is_none_or(|best| finding.distance < best.distance) {
            self.best = Some(finding.clone());
        }
    }

    fn line(&mut self, kind: &str, finding: &Finding) -> Result<()> {
        if !self.is_titled {
            self.is_titled = true;
            let (title, width) = ("hash", finding.hashed_name.as_str().len());
            self.status.line(&format!(
                "{title:width$}\tsecret  \thex     \tdist.\twindow\tname"
            ));
        }
        let line = match self.form {
            Form::Json => {
                let mut record = finding.as_json();
                record["type"] = kind.into();
                terminal::json(&record)
            }
            Form::Columns { colored: false } => finding.to_string(),
            Form::Columns { colored: true } => {
                format!("{}\t{}", finding.highlighted(), finding.columns())
            }
            Form::Silent => return Ok(()),
        };
        self.print(&line)
    }

    fn print(&mut self, line: &str) -> Result<()> {
        self.status.clear();
        let mut stdout = io::stdout().lock();
        // Each line is flushed, so that the reader of a pipe receives a result when it is found.
        match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.is_read = false;
                Ok(())
            }
            Err(error) => Err(error).context("cannot write a result to stdout"),
        }
    }
}

/// Returns whether the environment allows colours on a terminal.
fn allows_color() -> bool {
    let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !refused && takes_escapes()
}
