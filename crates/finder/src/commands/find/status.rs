//! What `find` prints on stderr: errors, notes and, on a terminal, progress lines that are redrawn.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::termios;

use crate::terminal::{self, takes_escapes};

/// Columns and rows that are assumed if the size of the terminal is unknown.
const USUAL_SIZE: (u16, u16) = (80, 24);

/// Escape sequence that erases everything from the cursor to the end of the screen.
const ERASE: &str = "\x1b[J";

/// Escape sequences that turn line wrapping off and on again. A line that wraps would take several
/// rows, but [`erasure`] counts one for each line.
const NO_WRAP: &str = "\x1b[?7l";
const WRAP: &str = "\x1b[?7h";

/// Prints everything that `find` prints on stderr, so that no message runs into a progress line.
pub(super) struct Status {
    quiet: bool,
    on_terminal: bool,
    /// Number of progress lines on the screen. The cursor is at the end of the last one.
    drawn: Mutex<usize>,
}

impl Status {
    pub(super) fn new(quiet: bool) -> Status {
        Status {
            quiet,
            on_terminal: takes_escapes() && io::stderr().is_terminal(),
            drawn: Mutex::new(0),
        }
    }

    /// Prints a note, unless `--quiet` was given.
    pub(super) fn say(&self, what: impl fmt::Display) {
        if !self.quiet {
            self.fail(what);
        }
    }

    /// Prints an error, even if `--quiet` was given.
    pub(super) fn fail(&self, what: impl fmt::Display) {
        let _drawn = self.erase();
        terminal::say(what);
    }

    /// Prints a line unchanged, without the program's name, unless `--quiet` was given.
    pub(super) fn line(&self, line: &str) {
        if !self.quiet {
            let _drawn = self.erase();
            // If stderr cannot be written, the search continues.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    /// Erases the progress lines.
    pub(super) fn clear(&self) {
        drop(self.erase());
    }

    /// Returns whether stderr is a terminal on which lines can be redrawn.
    pub(super) fn on_terminal(&self) -> bool {
        self.on_terminal
    }

    /// Replaces the progress lines, unless `--quiet` was given. `lines` returns the new ones for a
    /// terminal with the given numbers of columns and rows.
    pub(super) fn draw(&self, lines: impl FnOnce(usize, usize) -> Vec<String>) {
        if self.quiet {
            return;
        }
        let (columns, rows) = size();
        let lines = lines(columns, rows);
        let mut drawn = self.lock();
        let (erasure, text) = (erasure(*drawn), lines.join("\n"));
        *drawn = lines.len();
        // Written in one piece, so that the lines do not flicker and wrapping is on again.
        let _ = io::stderr().write_all(format!("{erasure}{NO_WRAP}{text}{WRAP}").as_bytes());
    }

    /// Erases the progress lines. Holding the result keeps other threads from printing.
    fn erase(&self) -> MutexGuard<'_, usize> {
        let mut drawn = self.lock();
        if *drawn > 0 {
            let _ = io::stderr().write_all(erasure(*drawn).as_bytes());
            *drawn = 0;
        }
        drawn
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.drawn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the text that erases this number of lines, if the cursor is in the last one.
fn erasure(lines: usize) -> String {
    match lines {
        0 => String::new(),
        1 => format!("\r{ERASE}"),
        _ => format!("\r\x1b[{}A{ERASE}", lines - 1),
    }
}

/// Returns the current size of the terminal, in columns and rows.
fn size() -> (usize, usize) {
    let (columns, rows) = match termios::tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        _ => USUAL_SIZE,
    };
    (columns.into(), rows.into())
}
