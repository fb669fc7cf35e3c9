//! What `find` prints on stdout: results, one a line, for people and programs or as JSON.

use std::{
    env,
    io::{self, IsTerminal, Write},
    sync::Arc,
};

use anyhow::{Context, Result};
use hashfinder_search::{Cursor, Distance, Index, Query, Spelling};
use serde_json::json;

use super::{
    arguments::{Color, FindArguments},
    finding::Finding,
    result::Conclusion,
    status::Status,
};
use crate::{
    clock::Stopwatch,
    terminal::{self, takes_escapes},
};

/// The form of a result.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Columns {
        colored: bool,
    },
    Json,
    /// None: whoever searches makes something else of them.
    Kept,
}

/// What was asked for, whether or not there can be such a thing.
struct Asked {
    names: Vec<String>,
    spelling: Spelling,
    ideal: Distance,
    interesting: Distance,
}

impl Asked {
    fn new(arguments: &FindArguments) -> Asked {
        match &arguments.resume {
            Some(cursor) => Asked::by(&cursor.query()),
            None => Asked {
                names: arguments.query.names.clone(),
                spelling: arguments.query.spelling.spelling(),
                ideal: arguments.query.ideal_distance,
                interesting: arguments.show_inferior.unwrap_or(Distance::ZERO),
            },
        }
    }

    fn by(query: &Query) -> Asked {
        let names = query.names().iter();
        Asked {
            names: names.map(|name| name.as_str().to_owned()).collect(),
            spelling: query.spelling(),
            ideal: query.ideal_distance(),
            interesting: query.interesting_distance(),
        }
    }
}

/// Stdout, and the nearest candidate that has been seen.
pub(super) struct Output {
    form: Form,
    asked: Asked,
    stopwatch: Arc<Stopwatch>,
    best: Option<Finding>,
    wanted: u64,
    /// Whether what is near on the way is told at all: a server does so where it is asked to.
    asks_for_near: bool,
    answers: u64,
    headed: bool,
    /// Whether anybody reads.
    read: bool,
    status: Arc<Status>,
}

impl Output {
    pub(super) fn new(arguments: &FindArguments, status: Arc<Status>) -> Output {
        let on_terminal = io::stdout().is_terminal();
        let form = if arguments.json {
            Form::Json
        } else {
            let colored = match arguments.color {
                Color::Always => true,
                Color::Never => false,
                Color::Auto => on_terminal && welcomes_color(),
            };
            Form::Columns { colored }
        };
        let asked = Asked::new(arguments);
        Output {
            headed: form == Form::Json || !on_terminal,
            wanted: arguments.count.get(),
            asks_for_near: arguments.server.is_none() || asked.interesting > asked.ideal,
            ..Output::of(form, asked, status)
        }
    }

    /// One that prints nothing and keeps the answer, which is [`best`](Self::best) then.
    pub(super) fn kept(query: &Query, status: Arc<Status>) -> Output {
        Output::of(Form::Kept, Asked::by(query), status)
    }

    fn of(form: Form, asked: Asked, status: Arc<Status>) -> Output {
        Output {
            form,
            asked,
            stopwatch: Stopwatch::start(),
            best: None,
            wanted: 1,
            asks_for_near: true,
            answers: 0,
            headed: true,
            read: true,
            status,
        }
    }

    /// Prints a secret on the way, if it is near enough to be shown; says whether anybody reads.
    pub(super) fn candidate(&mut self, finding: &Finding) -> Result<bool> {
        if finding.distance < self.asked.interesting.get() {
            self.line("candidate", finding)?;
        }
        self.note(finding);
        Ok(self.read)
    }

    /// Prints a secret within the ideal distance; says whether anybody reads.
    pub(super) fn answer(&mut self, finding: &Finding) -> Result<bool> {
        self.line("result", finding)?;
        self.note(finding);
        self.answers += u64::from(self.read);
        Ok(self.read)
    }

    /// Prints how the command ended, where that is a record of its own.
    pub(super) fn end(&mut self, ended: &Conclusion) -> Result<()> {
        if self.form != Form::Json || !self.read {
            return Ok(());
        }
        let record = json!({
            "type": "end",
            "how": ended.how,
            "why": ended.why,
            "exit_code": ended.exit as u8,
            "names": self.asked.names,
            "algorithm": self.asked.spelling.algorithm.to_string(),
            "encoding": self.asked.spelling.encoding.to_string(),
            "ideal_distance": self.asked.ideal.get(),
            "interesting_distance": self.asked.interesting.get(),
            "results": self.answers,
            "hashes": ended.hashes,
            "seconds": self.stopwatch.elapsed().as_secs_f64(),
            "nearest": self.best.as_ref().map(Finding::as_json),
            "cursor": ended.cursor.as_ref().map(ToString::to_string),
        });
        self.print(&terminal::json(&record))
    }

    /// Begins with the nearest secret that earlier runs of this search have found, if there is one.
    pub(super) fn begin_with(&mut self, query: &Query, nearest: Option<Index>) {
        let secret = nearest.map(|index| query.keyspace().secret(index));
        let nearest = secret.and_then(|secret| query.nearest(&secret));
        self.best = nearest.map(|nearest| Finding::new(query, nearest));
    }

    /// Returns the place of a search that has tried every index below `frontier`, with the nearest secret so far.
    pub(super) fn cursor(&self, query: &Query, frontier: Index) -> Cursor {
        let best = self.best.as_ref();
        let nearest = best.and_then(|best| query.keyspace().index_of(&best.secret));
        Cursor::new(query, frontier).with_nearest(nearest)
    }

    /// The nearest that has been seen.
    pub(super) fn best(&self) -> Option<&Finding> {
        self.best.as_ref()
    }

    /// How many secrets within the ideal distance are wanted, in this run and those before it.
    pub(super) fn wanted(&self) -> u64 {
        self.wanted
    }

    /// What is said if none has been.
    pub(super) fn none_near(&self) -> &'static str {
        if self.asks_for_near {
            "no candidate so far"
        } else {
            "candidates come with --show-inferior"
        }
    }

    /// How many more of them are wanted, of this run.
    pub(super) fn left(&self) -> u64 {
        self.wanted.saturating_sub(self.answers)
    }

    /// Its row.
    pub(super) fn best_row(&self) -> Option<String> {
        self.best.as_ref().map(ToString::to_string)
    }

    /// How many secrets within the ideal distance were printed.
    pub(super) fn answers(&self) -> u64 {
        self.answers
    }

    /// Remembers a secret if it is the nearest so far. One that was not printed though it should be does not
    /// count: it will be found again.
    fn note(&mut self, finding: &Finding) {
        let best = self.best.as_ref();
        if self.read && best.is_none_or(|best| finding.distance < best.distance) {
            self.best = Some(finding.clone());
        }
    }

    fn line(&mut self, kind: &str, finding: &Finding) -> Result<()> {
        if !self.headed {
            self.headed = true;
            let (title, width) = ("hashed name", finding.hashed_name.as_str().len());
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
            Form::Kept => return Ok(()),
        };
        self.print(&line)
    }

    fn print(&mut self, line: &str) -> Result<()> {
        self.status.clear();
        let mut stdout = io::stdout().lock();
        // Each line at once: who pipes them somewhere wants them when they are found.
        match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.read = false;
                Ok(())
            }
            Err(error) => Err(error).context("cannot write a result to stdout"),
        }
    }
}

/// Whether the environment lets a terminal have colours.
fn welcomes_color() -> bool {
    let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !refused && takes_escapes()
}
