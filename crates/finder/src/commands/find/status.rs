//! What `find` prints on stderr: notes, and the progress of the search.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, IsTerminal, Write},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use hashfinder_search::{Index, Odds};
use hashfinder_system::clock;
use jiff::{SignedDuration, Zoned, tz::TimeZone};
use rustix::termios;

use super::{finding::Finding, rate::rate};
use crate::terminal::{
    self,
    figures::{number, show},
    takes_escapes,
};

/// Interval between two drawings of the progress on a terminal: short enough to look alive, at no
/// measurable cost.
pub(super) const REDRAW_EVERY: Duration = Duration::from_millis(250);

/// Time over which the rate is taken: long enough to be read, short enough to be the current rate.
const RATE_OVER: Duration = Duration::from_secs(2);

/// Time over which the rate is taken that the estimated times are computed with. They stay the same
/// while the machine does something else for a moment.
const STEADY_RATE_OVER: Duration = Duration::from_secs(30);

/// Chances whose estimated times are shown: even, likely, nearly sure.
const POINTS: [(f64, &str); 3] = [(0.5, "50%"), (0.9, "90%"), (0.99, "99%")];

/// In seconds.
const MINUTE: f64 = 60.0;
const HOUR: f64 = 60.0 * MINUTE;
const DAY: f64 = 24.0 * HOUR;
const YEAR: f64 = 365.25 * DAY;

/// Time until the first line without a terminal. Most searches are over by then.
const FIRST_LINE: Duration = Duration::from_secs(10);

/// Pause after the first line. Each later pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(30);

/// Longest pause: short enough to show that the search is alive, long enough for the log of a week.
const LAST_PAUSE: Duration = Duration::from_secs(600);

/// Size of a terminal whose size is unknown, in columns and rows.
const USUAL_SIZE: (u16, u16) = (80, 24);

/// Erases everything from the cursor on.
const ERASE: &str = "\x1b[J";

/// Turns the wrapping of lines off, and on again. A line that wraps takes several rows, which could
/// not be erased.
const NO_WRAP: &str = "\x1b[?7l";
const WRAP: &str = "\x1b[?7h";

/// Writes everything that `find` prints on stderr, so that nothing runs into the progress lines.
pub(super) struct Status {
    quiet: bool,
    on_terminal: bool,
    /// Number of progress lines on the screen. The cursor is at the end of the last.
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

    /// Prints an error.
    pub(super) fn fail(&self, what: impl fmt::Display) {
        let _drawn = self.erase();
        terminal::say(what);
    }

    /// Writes a line as it is.
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

    fn draw(&self, lines: &[String]) {
        let mut drawn = self.lock();
        let (erasure, text) = (erasure(*drawn), lines.join("\n"));
        *drawn = lines.len();
        // In one piece, so that it does not flicker and leaves the terminal as it was.
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

/// Returns the escape sequence that erases this number of lines, if the cursor is in the last.
fn erasure(lines: usize) -> String {
    match lines {
        0 => String::new(),
        1 => format!("\r{ERASE}"),
        _ => format!("\r\x1b[{}A{ERASE}", lines - 1),
    }
}

/// Returns how many columns and rows the terminal has now.
fn size() -> (usize, usize) {
    let (columns, rows) = match termios::tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        _ => USUAL_SIZE,
    };
    (columns.into(), rows.into())
}

/// The progress of a search: redrawn on a terminal, otherwise printed less and less often.
pub(super) struct Progress {
    odds: Odds,
    /// Number of answers that are wanted.
    wanted: u64,
    /// Index at which the first search began.
    first: Index,
    /// Index after the last secret.
    end: Index,
    rate: Rate,
    steady_rate: Rate,
    pace: Pace,
    /// Empty until it has been read.
    zone: Arc<OnceLock<TimeZone>>,
}

impl Progress {
    /// Returns the progress of a search for `wanted` answers that tries a range of indices, and
    /// continues searches of which the first began at `first`.
    pub(super) fn new(
        odds: Odds,
        wanted: u64,
        first: Index,
        Range { start, end }: Range<Index>,
    ) -> Progress {
        Progress {
            odds,
            wanted,
            first,
            end,
            rate: Rate::new(RATE_OVER, start),
            steady_rate: Rate::new(STEADY_RATE_OVER, start),
            pace: Pace::default(),
            zone: clock::time_zone(),
        }
    }

    /// Shows the progress, if it is time: `elapsed` after the start of this run, with this number
    /// of answers, and with every index below the frontier tried, if that is known.
    pub(super) fn show(
        &mut self,
        status: &Status,
        elapsed: Duration,
        frontier: Option<Index>,
        answers: u64,
        nearest: Result<&Finding, &'static str>,
    ) {
        let search = frontier.map(|frontier| {
            let rate = self.rate.update(elapsed, frontier);
            let steady_rate = self.steady_rate.update(elapsed, frontier);
            // Without one, times are shown as durations.
            let now = clock::now().ok();
            let now = now.and_then(|now| Some(now.to_zoned(self.zone.get()?.clone())));
            self.parts(frontier, answers, rate, steady_rate, now.as_ref())
        });
        let snapshot = Snapshot {
            elapsed,
            search,
            nearest,
        };
        if status.on_terminal && !status.quiet {
            let (columns, rows) = size();
            status.draw(&snapshot.fit(columns, rows));
        } else if !status.on_terminal && self.pace.advance(elapsed) {
            status.say(snapshot);
        }
    }

    /// Returns a text for a search that was stopped at a frontier without an answer.
    pub(super) fn share_of_ended(&self, frontier: Index) -> Option<String> {
        // It is unknown how long several answers take together.
        (self.wanted == 1).then(|| {
            let share = self.percent(frontier);
            format!("{share} of searches like this one finish within this many hashes")
        })
    }

    /// Returns the parts of the lines about what was done and about the odds.
    fn parts(
        &self,
        frontier: Index,
        answers: u64,
        rate: Option<f64>,
        steady_rate: Option<f64>,
        now: Option<&Zoned>,
    ) -> [Line; 2] {
        let mut done = Line::default();
        done.add(
            2,
            format!("{} hashes", Scaled((frontier - self.first) as f64)),
        );
        if let Some(rate) = rate {
            done.add(1, format!("{} per second", Scaled(rate)));
        }
        let one_in = show(&self.odds.expected_hashes(), number);
        done.add(3, format!("1 in {one_in} matches"));

        let mut odds = Line::default();
        let whose = if self.wanted == 1 {
            odds.add(1, format!("{} chance so far", self.percent(frontier)));
            ""
        } else {
            // As a search has no memory, the next answer is as far away as the first was.
            odds.add(1, format!("{answers} of {} found", self.wanted));
            "next: "
        };
        // If only bounds are known, each point is the later one: by then the chance is at least
        // this.
        let at_least = match self.odds.is_exact() {
            true => "",
            false => "at least ",
        };
        let steady_rate = steady_rate.filter(|rate| *rate > 0.0);
        let points = steady_rate.map(|rate| self.points(frontier, rate, now));
        let mut points = points.into_iter().flatten();
        if let Some((chance, when)) = points.next() {
            odds.add(0, format!("{whose}{at_least}{chance} chance {when}"));
        }
        for ((chance, when), rank) in points.zip([3, 2]) {
            odds.add(rank, format!("{chance} {when}"));
        }
        [done, odds]
    }

    /// Returns each chance of [`POINTS`] with its estimated time at this rate. Those after the
    /// first that is never reached are left out.
    fn points(
        &self,
        frontier: Index,
        rate: f64,
        now: Option<&Zoned>,
    ) -> Vec<(&'static str, String)> {
        let left = (self.end - frontier) as f64;
        let mut points = Vec::new();
        for (chance, name) in POINTS {
            let hashes = *self.odds.hashes_for(chance).end();
            if hashes > left {
                points.push((name, "never reached".to_owned()));
                break;
            }
            points.push((name, when(hashes / rate, now)));
        }
        points
    }

    /// Returns which share of all such searches have ended at a frontier.
    fn percent(&self, frontier: Index) -> String {
        let chance = self.odds.chance_after(frontier - self.first);
        show(&chance, |chance| Percent(chance).to_string())
    }
}

/// Returns the point in time that is `seconds` from now, rounded up, for people: a time of day or a
/// date if both are in the calendar, otherwise a duration.
fn when(seconds: f64, now: Option<&Zoned>) -> String {
    if seconds <= MINUTE {
        return format!("in {}s", seconds.ceil().max(1.0));
    }
    if seconds >= YEAR {
        return match number(seconds / YEAR).as_str() {
            "1" => "in a year".to_owned(),
            years => format!("in {years} years"),
        };
    }
    // Rounded up to a whole minute, because seconds are not shown.
    let begun_minute = SignedDuration::from_nanos(59_999_999_999);
    let wait = SignedDuration::from_secs_f64(seconds) + begun_minute;
    let Some((now, at)) = now.and_then(|now| Some((now, now.checked_add(wait).ok()?))) else {
        return match seconds {
            ..HOUR => format!("in {} min", (seconds / MINUTE).ceil()),
            ..DAY => format!("in {} h", (seconds / HOUR).ceil()),
            _ => format!("in {} days", (seconds / DAY).ceil()),
        };
    };
    let days = at.date().duration_since(now.date()).as_hours() / 24;
    let form = match days {
        0 => "%H:%M",
        // A week from now has the same name as today.
        1..=6 => "%a %H:%M",
        _ if at.year() == now.year() => "%-d %b",
        _ => "%-d %b %Y",
    };
    format!("by {}", at.strftime(form))
}

/// The progress of a search at one moment.
struct Snapshot<'a> {
    elapsed: Duration,
    /// Parts of the lines about the search, if its frontier is known.
    search: Option<[Line; 2]>,
    /// The nearest secret so far, or the text that stands for none.
    nearest: Result<&'a Finding, &'static str>,
}

impl Snapshot<'_> {
    fn lines(&self) -> Vec<Line> {
        let mut first = Line::default();
        let elapsed = Duration::from_secs(self.elapsed.as_secs());
        first.add(0, humantime::format_duration(elapsed).to_string());
        let mut last = Line::default();
        last.add(
            0,
            match self.nearest {
                Ok(Finding {
                    hashed_name,
                    distance,
                    ..
                }) => format!("nearest at distance {distance}: {hashed_name}"),
                Err(none) => none.to_owned(),
            },
        );
        match &self.search {
            Some([done, odds]) => {
                first.parts.extend_from_slice(&done.parts);
                vec![first, odds.clone(), last]
            }
            None => {
                first.parts.extend(last.parts);
                vec![first]
            }
        }
    }

    /// Returns the lines that fit a terminal of this size and leave its last row free.
    fn fit(&self, columns: usize, rows: usize) -> Vec<String> {
        let lines = self.lines().into_iter().map(|line| line.fit(columns));
        lines.take(rows.saturating_sub(1).max(1)).collect()
    }
}

impl fmt::Display for Snapshot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.lines().iter().map(ToString::to_string).collect();
        f.write_str(&lines.join(", "))
    }
}

/// A line of parts, from left to right, each with its rank: the parts of the highest rank are left
/// out first.
#[derive(Clone, Default)]
struct Line {
    parts: Vec<(u8, String)>,
}

impl Line {
    fn add(&mut self, rank: u8, part: String) {
        self.parts.push((rank, part));
    }

    /// Returns as much of it as fits this number of columns. All of it is ASCII.
    fn fit(mut self, columns: usize) -> String {
        loop {
            let text = self.to_string();
            let least = self.parts.iter().map(|(rank, _)| *rank).max();
            if text.len() <= columns || self.parts.len() == 1 {
                return text.chars().take(columns).collect();
            }
            self.parts.retain(|(rank, _)| Some(*rank) != least);
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<&str> = self.parts.iter().map(|(_, part)| part.as_str()).collect();
        f.write_str(&parts.join(", "))
    }
}

/// A chance, for people. A chance that is nearly 1 is not shown as 100%.
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

/// A number of any size, for people.
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

/// Measures the current rate in hashes a second.
struct Rate {
    over: Duration,
    /// Times and frontiers: those of the last `over`, and one before.
    readings: VecDeque<(Duration, Index)>,
}

impl Rate {
    fn new(over: Duration, start: Index) -> Rate {
        let readings = VecDeque::from([(Duration::ZERO, start)]);
        Rate { over, readings }
    }

    /// Adds a reading, and returns the rate.
    fn update(&mut self, now: Duration, frontier: Index) -> Option<f64> {
        self.readings.push_back((now, frontier));
        while let Some((second, _)) = self.readings.get(1)
            && *second + self.over <= now
        {
            self.readings.pop_front();
        }
        let (then, before) = *self.readings.front()?;
        rate(frontier.saturating_sub(before), now.saturating_sub(then))
    }
}

/// Decides when the next line is due without a terminal.
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
    /// Returns whether a line is due. If it is, sets the time of the next one.
    fn advance(&mut self, elapsed: Duration) -> bool {
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
    use hashfinder_search::Distance;
    use jiff::civil::date;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn lines_are_printed_less_and_less_often() {
        let mut pace = Pace::default();
        let lines: Vec<u64> = (0..3000)
            .filter(|now| pace.advance(seconds(*now)))
            .collect();
        assert_eq!(lines, [10, 40, 100, 220, 460, 940, 1540, 2140, 2740]);
    }

    #[test]
    fn the_rate_covers_the_last_seconds() {
        let mut rate = Rate::new(seconds(2), 0);
        assert_eq!(rate.update(seconds(0), 0), None);
        assert_eq!(rate.update(seconds(1), 100), Some(100.0));
        assert_eq!(rate.update(seconds(2), 200), Some(100.0));
        assert_eq!(rate.update(seconds(3), 1200), Some(550.0));
        assert_eq!(rate.update(seconds(4), 2200), Some(1000.0));
        // There was no reading for a while.
        assert_eq!(rate.update(seconds(14), 2210), Some(1.0));
    }

    /// A Wednesday in Berlin, 90.5 seconds before 14:00.
    fn now() -> Zoned {
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let time = date(2024, 11, 20).at(13, 58, 29, 500_000_000);
        time.to_zoned(berlin).unwrap()
    }

    #[test]
    fn times_are_rounded_up_for_people() {
        for (seconds, text) in [
            (0.0, "in 1s"),
            (11.2, "in 12s"),
            (60.0, "in 60s"),
            // Rounded up, never down.
            (90.5, "by 14:00"),
            (90.6, "by 14:01"),
            (10.0 * HOUR, "by 23:59"),
            (10.1 * HOUR, "by Thu 00:05"),
            (6.0 * DAY, "by Tue 13:59"),
            (7.0 * DAY, "by 27 Nov"),
            (41.0 * DAY, "by 31 Dec"),
            (42.0 * DAY, "by 1 Jan 2025"),
            // It is summer time, and past midnight.
            (180.0 * DAY + 9.5 * HOUR, "by 20 May 2025"),
            (366.0 * DAY, "in a year"),
            (3.0 * 365.25 * DAY, "in 3 years"),
            (1e15, "in 32 million years"),
            (1e300, "in 3.2e292 years"),
        ] {
            assert_eq!(when(seconds, Some(&now())), text, "{seconds}");
        }
    }

    /// Regression: at the end of the year 9999 there was a panic.
    #[test]
    fn times_beyond_the_calendar_are_shown_as_durations() {
        let last = jiff::Timestamp::MAX.to_zoned(TimeZone::UTC);
        for now in [None, Some(&last)] {
            for (seconds, text) in [
                (60.0, "in 60s"),
                (61.0, "in 2 min"),
                (10.0 * HOUR, "in 10 h"),
                (41.5 * DAY, "in 42 days"),
                (366.0 * DAY, "in a year"),
            ] {
                assert_eq!(when(seconds, now), text, "{seconds}");
            }
        }
    }

    /// Returns what a terminal of this size shows of a search for this number of answers.
    fn lines(name: &str, distance: u8, wanted: u64, size: (usize, usize)) -> Vec<String> {
        let odds = Odds::of(&name.parse().unwrap(), Distance::from(distance));
        let progress = Progress::new(odds, wanted, 0, 0..u64::MAX);
        let rate = Some(273.1e6);
        let search = progress.parts(3_300_000_000, 0, rate, rate, Some(&now()));
        let name = name.parse().unwrap();
        let snapshot = Snapshot {
            elapsed: seconds(12),
            search: Some(search),
            nearest: Ok(&Finding::of(b"hash".to_vec(), &name)),
        };
        snapshot.fit(size.0, size.1)
    }

    #[test]
    fn a_small_terminal_shows_the_important_parts() {
        let all = [
            "12s, 3.3 billion hashes, 273.1 million per second, 1 in 209 billion matches",
            "1.57% chance so far, 50% chance by 14:08, 90% by 14:28, 99% by 14:58",
            "nearest at distance 9: I0atJ9dWi6mJbxt9prWZElHevfI=",
        ];
        assert_eq!(lines("hashfinder", 1, 1, (80, 24)), all);
        assert_eq!(
            lines("hashfinder", 1, 1, (60, 3)),
            [
                "12s, 3.3 billion hashes, 273.1 million per second",
                "1.57% chance so far, 50% chance by 14:08, 99% by 14:58",
            ]
        );
        assert_eq!(
            lines("hashfinder", 1, 1, (42, 24)),
            [
                "12s, 273.1 million per second",
                "1.57% chance so far, 50% chance by 14:08",
                "nearest at distance 9: I0atJ9dWi6mJbxt9prW",
            ]
        );
        assert_eq!(lines("hashfinder", 1, 1, (20, 1)), ["12s"]);
    }

    #[test]
    fn with_several_answers_the_next_one_is_estimated() {
        assert_eq!(
            lines("hashfinder", 1, 5, (80, 24))[1],
            "0 of 5 found, next: 50% chance by 14:08, 90% by 14:28, 99% by 14:58"
        );
    }

    #[test]
    fn inexact_chances_are_shown_as_bounds() {
        assert_eq!(
            lines("abababababababab", 6, 1, (80, 24))[..2],
            [
                "12s, 3.3 billion hashes, 273.1 million per second, 1 in 16 billion matches",
                "18.25% to 18.26% chance so far, at least 50% chance in 42s, 99% by 14:04",
            ]
        );
    }

    #[test]
    fn a_time_beyond_the_last_secret_is_shown_as_never() {
        assert_eq!(
            lines("hashfinderhashfinder", 0, 1, (80, 24))[1],
            "under 0.01% chance so far, 50% chance never reached"
        );
    }

    #[test]
    fn chances_are_never_rounded_to_0_or_1() {
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
    fn large_numbers_are_scaled() {
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
