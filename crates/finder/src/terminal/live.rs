//! Text on a terminal that is redrawn in its place.

use std::{io, time::Duration};

use anyhow::Result;
use hashfinder_system::threads::aside;
use tokio::time::timeout;

use super::print;

/// Time limit for the last output to a terminal. A terminal that was stopped by ctrl-S accepts
/// none.
const LAST_WORD: Duration = Duration::from_millis(200);

/// Number of lines that is assumed if the size of the terminal is unknown: that of a VT100.
const USUAL_HEIGHT: usize = 24;

/// Lines on a terminal.
#[derive(Debug, Default)]
pub(crate) struct Live {
    /// Number of lines that were drawn. The cursor is at the end of the last one.
    drawn: usize,
}

impl Live {
    /// Returns the text that replaces the lines on a terminal with `height` lines.
    pub(crate) fn draw(&mut self, lines: &[String], height: usize) -> String {
        // Moves the cursor to the beginning of the first line that is still on the screen.
        let mut text = "\r".to_owned();
        let up = self.drawn.min(height).saturating_sub(1);
        if up > 0 {
            text += &format!("\x1b[{up}A");
        }
        // Turns off line wrapping. Erases the rest of each line, and then everything below.
        text += "\x1b[?7l";
        text += &lines.join("\x1b[K\n");
        text += "\x1b[J\x1b[?7h";
        self.drawn = lines.len();
        text
    }

    /// Whether anything was drawn.
    pub(crate) fn is_drawn(&self) -> bool {
        self.drawn > 0
    }

    /// Leaves the lines on the terminal, so that the next output starts below them. Dropping the
    /// future gives up.
    pub(crate) async fn end(&self) {
        if self.is_drawn() {
            let _ = timeout(LAST_WORD, show("\n".to_owned())).await;
        }
    }
}

/// Prints on a separate thread, which blocks if the output is not read. Returns whether the output
/// is still open. Dropping the future does not stop the thread, but the end of the process does.
pub(crate) async fn show(text: String) -> Result<bool> {
    aside("output", move || print(text)).await?
}

/// Returns the number of lines of the terminal.
pub(crate) fn height() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stdout());
    let rows = size.map_or(0, |size| usize::from(size.ws_row));
    if rows == 0 { USUAL_HEIGHT } else { rows }
}
