//! What `find` says on stderr: notes, and how the search comes on.

use std::{
    collections::VecDeque,
    env, fmt,
    io::{self, IsTerminal, Write},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hashfinder_search::Odds;

use super::output::Finding;
use crate::cli;

/// How often the line on a terminal is drawn: often enough to look alive, and as nothing to draw.
pub(super) const REDRAW_EVERY: Duration = Duration::from_millis(250);

/// Over how long the rate is taken: long enough to be read, short enough to be the rate now.
const RATE_OVER: Duration = Duration::from_secs(2);

/// When the first line is said where there is no terminal. Most searches are over by then.
const FIRST_LINE: Duration = Duration::from_secs(10);

/// The pause after the first line; each one after it is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(30);

/// The longest pause, so that a log of a week stays readable and one can still see that it lives.
const LAST_PAUSE: Duration = Duration::from_secs(600);

/// To the line's beginning, and erase it.
const ERASE: &str = "\r\x1b[2K";

/// Does not let what follows wrap: a line that is longer than the terminal is wide could not be
/// erased. The other lets it again.
const NO_WRAP: &str = "\x1b[?7l";
const WRAP: &str = "\x1b[?7h";

/// Whoever says something on stderr does it here, so that nothing runs into the status line.
pub(super) struct Status {
    quiet: bool,
    on_terminal: bool,
    /// Whether the status line is on the screen.
    drawn: Mutex<bool>,
}

impl Status {
    pub(super) fn new(quiet: bool) -> Status {
        Status {
            quiet,
            on_terminal: takes_escapes() && io::stderr().is_terminal(),
            drawn: Mutex::new(false),
        }
    }

    /// Tells people something.
    pub(super) fn say(&self, what: impl fmt::Display) {
        if !self.quiet {
            self.fail(what);
        }
    }

    /// Tells people what went wrong, however quiet they want it.
    pub(super) fn fail(&self, what: impl fmt::Display) {
        let _drawn = self.erase();
        cli::say(what);
    }

    /// Writes a line as it is.
    pub(super) fn line(&self, line: &str) {
        if !self.quiet {
            let _drawn = self.erase();
            // For people to read; if nobody can, the work goes on.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    /// Takes the status line from the screen.
    pub(super) fn clear(&self) {
        drop(self.erase());
    }

    fn draw(&self, line: &str) {
        let mut drawn = self.erase();
        *drawn = true;
        // In one piece, so that it does not flicker and leaves the terminal as it was.
        let _ = io::stderr().write_all(format!("{ERASE}{NO_WRAP}{line}{WRAP}").as_bytes());
    }

    /// Takes the status line from the screen, and keeps everybody else from it.
    fn erase(&self) -> MutexGuard<'_, bool> {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        if *drawn {
            *drawn = false;
            let _ = io::stderr().write_all(ERASE.as_bytes());
        }
        drawn
    }
}

/// Whether a terminal here does what escape sequences say, as far as the environment tells.
pub(crate) fn takes_escapes() -> bool {
    env::var_os("TERM").is_some_and(|terminal| !terminal.is_empty() && terminal != "dumb")
}

/// How a search comes on, shown at the pace that suits who looks at it.
pub(super) struct Progress {
    odds: Odds,
    rate: Rate,
    pace: Pace,
}

impl Progress {
    pub(super) fn new(odds: Odds) -> Progress {
        Progress {
            odds,
            rate: Rate::default(),
            pace: Pace::default(),
        }
    }

    /// Shows it, if it is time to: so long after its begin so many hashes are done, if that is known.
    pub(super) fn show(
        &mut self,
        status: &Status,
        elapsed: Duration,
        hashes: Option<u64>,
        nearest: Option<&Finding>,
    ) {
        let rate = hashes.and_then(|hashes| self.rate.at(elapsed, hashes));
        let look = Look {
            elapsed,
            rate,
            hashes,
            chance: hashes.map(|hashes| *self.odds.chance_after(hashes).start()),
            nearest,
        };
        if status.on_terminal && !status.quiet {
            status.draw(&look.to_string());
        } else if !status.on_terminal && self.pace.is_due(elapsed) {
            status.say(look);
        }
    }
}

/// One look at a search.
struct Look<'a> {
    elapsed: Duration,
    /// Hashes a second, now.
    rate: Option<f64>,
    hashes: Option<u64>,
    /// How likely it is that such a search has ended by now, at least.
    chance: Option<f64>,
    nearest: Option<&'a Finding>,
}

impl fmt::Display for Look<'_> {
    /// The parts that change most, and that are of one width, stand first: a narrow terminal cuts the
    /// others off.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = Duration::from_secs(self.elapsed.as_secs());
        write!(f, "{}", humantime::format_duration(seconds))?;
        if let Some(rate) = self.rate {
            write!(f, ", {} hashes a second", Scaled(rate))?;
        }
        if let Some(hashes) = self.hashes {
            write!(f, ", {} in all", Scaled(hashes as f64))?;
        }
        if let Some(chance) = self.chance {
            write!(f, ", chance by now {}", Percent(chance))?;
        }
        match self.nearest {
            Some(Finding {
                hashed_name,
                distance,
                ..
            }) => write!(f, ", nearest at distance {distance}: {hashed_name}"),
            None => f.write_str(", no candidate so far"),
        }
    }
}

/// A chance, for people. It never says more than is known: what is nearly sure is not sure.
struct Percent(f64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match 100.0 * self.0 {
            percent if percent < 0.01 => f.write_str("under 0.01%"),
            percent if percent > 99.99 => f.write_str("over 99.99%"),
            percent => write!(f, "{percent:.2}%"),
        }
    }
}

/// A number that may be large, for people.
struct Scaled(f64);

impl fmt::Display for Scaled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.0;
        let scales = [(1e12, "trillion"), (1e9, "billion"), (1e6, "million")];
        match scales.iter().find(|(scale, _)| number >= *scale) {
            Some((scale, name)) => write!(f, "{:.1} {name}", number / scale),
            None => write!(f, "{number:.0}"),
        }
    }
}

/// How many hashes a second there were lately.
struct Rate {
    /// When there were how many, over [`RATE_OVER`] and one look before.
    looks: VecDeque<(Duration, u64)>,
}

impl Default for Rate {
    fn default() -> Rate {
        Rate {
            looks: VecDeque::from([(Duration::ZERO, 0)]),
        }
    }
}

impl Rate {
    fn at(&mut self, now: Duration, hashes: u64) -> Option<f64> {
        self.looks.push_back((now, hashes));
        while let Some((second, _)) = self.looks.get(1)
            && *second + RATE_OVER <= now
        {
            self.looks.pop_front();
        }
        let (then, before) = *self.looks.front()?;
        let over = now.saturating_sub(then).as_secs_f64();
        (over > 0.0).then(|| hashes.saturating_sub(before) as f64 / over)
    }
}

/// When the next line is due where there is no terminal.
struct Pace {
    next: Duration,
    pause: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            next: FIRST_LINE,
            pause: FIRST_PAUSE,
        }
    }
}

impl Pace {
    fn is_due(&mut self, elapsed: Duration) -> bool {
        if elapsed < self.next {
            return false;
        }
        self.next = elapsed + self.pause;
        self.pause = (2 * self.pause).min(LAST_PAUSE);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn lines_come_at_a_growing_pace() {
        let mut pace = Pace::default();
        let lines: Vec<u64> = (0..3000).filter(|now| pace.is_due(seconds(*now))).collect();
        assert_eq!(lines, [10, 40, 100, 220, 460, 940, 1540, 2140, 2740]);
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut rate = Rate::default();
        assert_eq!(rate.at(seconds(0), 0), None);
        assert_eq!(rate.at(seconds(1), 100), Some(100.0));
        assert_eq!(rate.at(seconds(2), 200), Some(100.0));
        assert_eq!(rate.at(seconds(3), 1200), Some(550.0));
        assert_eq!(rate.at(seconds(4), 2200), Some(1000.0));
        // Nobody looked for a while.
        assert_eq!(rate.at(seconds(14), 2210), Some(1.0));
    }

    #[test]
    fn chances() {
        for (chance, text) in [
            (0.0, "under 0.01%"),
            (0.000_123, "0.01%"),
            (0.5, "50.00%"),
            (0.999_95, "over 99.99%"),
            (1.0, "over 99.99%"),
        ] {
            assert_eq!(Percent(chance).to_string(), text);
        }
    }

    #[test]
    fn numbers() {
        for (number, text) in [
            (0.0, "0"),
            (999_999.0, "999999"),
            (1e6, "1.0 million"),
            (273_100_000.0, "273.1 million"),
            (2e9, "2.0 billion"),
            (1.5e13, "15.0 trillion"),
        ] {
            assert_eq!(Scaled(number).to_string(), text);
        }
    }
}
