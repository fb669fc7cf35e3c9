//! What `find` says on stderr: notes, and how the search comes on.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, IsTerminal, Write},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use hashfinder_search::{Index, Odds};
use jiff::{SignedDuration, Zoned, tz::TimeZone};
use rustix::termios;

use super::{finding::Finding, rate::rate};
use crate::{
    clock,
    terminal::{
        self,
        figures::{number, show},
        takes_escapes,
    },
};

/// How often the lines on a terminal are drawn: often enough to look alive, and as nothing to draw.
pub(super) const REDRAW_EVERY: Duration = Duration::from_millis(250);

/// Over how long the rate is taken: long enough to be read, short enough to be the rate now.
const RATE_OVER: Duration = Duration::from_secs(2);

/// Over how long the rate is taken that the points in time are computed with, so that they stand still
/// while the machine does something else for a moment.
const STEADY_RATE_OVER: Duration = Duration::from_secs(30);

/// The chances whose points in time are told: even, likely, nearly sure.
const POINTS: [(f64, &str); 3] = [(0.5, "50%"), (0.9, "90%"), (0.99, "99%")];

/// In seconds.
const MINUTE: f64 = 60.0;
const HOUR: f64 = 60.0 * MINUTE;
const DAY: f64 = 24.0 * HOUR;
const YEAR: f64 = 365.25 * DAY;

/// When the first line is said where there is no terminal. Most searches are over by then.
const FIRST_LINE: Duration = Duration::from_secs(10);

/// The pause after the first line; each one after it is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(30);

/// The longest pause, so that a log of a week stays readable and one can still see that it lives.
const LAST_PAUSE: Duration = Duration::from_secs(600);

/// The size of a terminal that does not tell it, in columns and rows.
const USUAL_SIZE: (u16, u16) = (80, 24);

/// From the cursor's place on, erase everything.
const ERASE: &str = "\x1b[J";

/// Does not let what follows wrap: lines that take more rows than they are could not be erased. The
/// other lets it again.
const NO_WRAP: &str = "\x1b[?7l";
const WRAP: &str = "\x1b[?7h";

/// Whoever says something on stderr does it here, so that nothing runs into the status lines.
pub(super) struct Status {
    quiet: bool,
    on_terminal: bool,
    /// How many status lines are on the screen. The cursor is at the end of the last.
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

    /// Tells people something.
    pub(super) fn say(&self, what: impl fmt::Display) {
        if !self.quiet {
            self.fail(what);
        }
    }

    /// Tells people what went wrong, however quiet they want it.
    pub(super) fn fail(&self, what: impl fmt::Display) {
        let _drawn = self.erase();
        terminal::say(what);
    }

    /// Writes a line as it is.
    pub(super) fn line(&self, line: &str) {
        if !self.quiet {
            let _drawn = self.erase();
            // For people to read; if nobody can, the work goes on.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    /// Takes the status lines from the screen.
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

    /// Takes the status lines from the screen, and keeps everybody else from it.
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

/// What erases so many lines, the cursor being in the last.
fn erasure(lines: usize) -> String {
    match lines {
        0 => String::new(),
        1 => format!("\r{ERASE}"),
        _ => format!("\r\x1b[{}A{ERASE}", lines - 1),
    }
}

/// How many columns and rows the terminal has, now.
fn size() -> (usize, usize) {
    let (columns, rows) = match termios::tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        _ => USUAL_SIZE,
    };
    (columns.into(), rows.into())
}

/// How a search comes on, shown at the pace that suits who looks at it.
pub(super) struct Progress {
    odds: Odds,
    /// How many answers are wanted.
    wanted: u64,
    /// Where the first search began.
    first: Index,
    /// Where there is nothing left to try.
    end: Index,
    rate: Rate,
    steady_rate: Rate,
    pace: Pace,
    /// Empty until it has been read.
    zone: Arc<OnceLock<TimeZone>>,
}

impl Progress {
    /// Of a search for so many answers that begins, or goes on with those that began at `first`, at an index
    /// and has so many to try.
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

    /// Shows it, if it is time to: so long after it began or went on, with so many answers, and with
    /// every index below the frontier tried, if that is known.
    pub(super) fn show(
        &mut self,
        status: &Status,
        elapsed: Duration,
        frontier: Option<Index>,
        answers: u64,
        nearest: Result<&Finding, &'static str>,
    ) {
        let search = frontier.map(|frontier| {
            let rate = self.rate.at(elapsed, frontier);
            let steady_rate = self.steady_rate.at(elapsed, frontier);
            // Without one, times are shown as durations.
            let now = clock::now().ok();
            let now = now.and_then(|now| Some(now.to_zoned(self.zone.get()?.clone())));
            self.parts(frontier, answers, rate, steady_rate, now.as_ref())
        });
        let look = Look {
            elapsed,
            search,
            nearest,
        };
        if status.on_terminal && !status.quiet {
            let (columns, rows) = size();
            status.draw(&look.fit(columns, rows));
        } else if !status.on_terminal && self.pace.is_due(elapsed) {
            status.say(look);
        }
    }

    /// What is to be said of a search that was stopped at a frontier, without an answer.
    pub(super) fn share_of_ended(&self, frontier: Index) -> Option<String> {
        // How long several answers take together is another matter.
        (self.wanted == 1).then(|| {
            let share = self.percent(frontier);
            format!("{share} of such searches would have ended by now")
        })
    }

    /// What there is to say of a search besides how long it takes: of what was done, and of its odds.
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
            done.add(1, format!("{} a second", Scaled(rate)));
        }
        let one_in = show(&self.odds.expected_hashes(), number);
        done.add(3, format!("1 in {one_in} matches"));

        let mut odds = Line::default();
        let whose = if self.wanted == 1 {
            odds.add(1, format!("chance by now {}", self.percent(frontier)));
            ""
        } else {
            // As a search has no memory, the next answer is as far away as the first was.
            odds.add(1, format!("{answers} of {} found", self.wanted));
            "the next "
        };
        // Where the odds have bounds, the points are the later ones.
        let at_least = match self.odds.is_exact() {
            true => "",
            false => "at least ",
        };
        let steady_rate = steady_rate.filter(|rate| *rate > 0.0);
        let points = steady_rate.map(|rate| self.points(frontier, rate, now));
        let mut points = points.into_iter().flatten();
        if let Some(first) = points.next() {
            odds.add(0, format!("{whose}from now {at_least}{first}"));
        }
        for (point, rank) in points.zip([3, 2]) {
            odds.add(rank, point);
        }
        [done, odds]
    }

    /// When the search will have ended with each of [`POINTS`], at such a rate. Those after one that
    /// does not come are left out.
    fn points(&self, frontier: Index, rate: f64, now: Option<&Zoned>) -> Vec<String> {
        let left = (self.end - frontier) as f64;
        let mut points = Vec::new();
        for (chance, name) in POINTS {
            let hashes = *self.odds.hashes_for(chance).end();
            if hashes > left {
                points.push(format!("{name} never"));
                break;
            }
            points.push(format!("{name} {}", when(hashes / rate, now)));
        }
        points
    }

    /// How many of all such searches have ended at a frontier.
    fn percent(&self, frontier: Index) -> String {
        let chance = self.odds.chance_after(frontier - self.first);
        show(&chance, |chance| Percent(chance).to_string())
    }
}

/// A point in time that is `seconds` from now, rounded up, as people say it: a time of day or a date if both are
/// in the calendar, otherwise a duration.
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
    // What is shown ends with the minute.
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

/// One look at a search.
struct Look<'a> {
    elapsed: Duration,
    /// If it is known how far it is.
    search: Option<[Line; 2]>,
    /// Or what is said of it.
    nearest: Result<&'a Finding, &'static str>,
}

impl Look<'_> {
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

    /// For a terminal of that size, with a row for what comes after it.
    fn fit(&self, columns: usize, rows: usize) -> Vec<String> {
        let lines = self.lines().into_iter().map(|line| line.fit(columns));
        lines.take(rows.saturating_sub(1).max(1)).collect()
    }
}

impl fmt::Display for Look<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.lines().iter().map(ToString::to_string).collect();
        f.write_str(&lines.join(", "))
    }
}

/// A line of parts, from left to right, and how soon each is dispensed with: the greatest first.
#[derive(Clone, Default)]
struct Line {
    parts: Vec<(u8, String)>,
}

impl Line {
    fn add(&mut self, rank: u8, part: String) {
        self.parts.push((rank, part));
    }

    /// As much of it as so many columns hold. All of it is ASCII.
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
    over: Duration,
    /// Where the frontier was when, over that time and one look before.
    looks: VecDeque<(Duration, Index)>,
}

impl Rate {
    fn new(over: Duration, start: Index) -> Rate {
        let looks = VecDeque::from([(Duration::ZERO, start)]);
        Rate { over, looks }
    }

    fn at(&mut self, now: Duration, frontier: Index) -> Option<f64> {
        self.looks.push_back((now, frontier));
        while let Some((second, _)) = self.looks.get(1)
            && *second + self.over <= now
        {
            self.looks.pop_front();
        }
        let (then, before) = *self.looks.front()?;
        rate(frontier.saturating_sub(before), now.saturating_sub(then))
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
    use hashfinder_search::Distance;
    use jiff::civil::date;

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
        let mut rate = Rate::new(seconds(2), 0);
        assert_eq!(rate.at(seconds(0), 0), None);
        assert_eq!(rate.at(seconds(1), 100), Some(100.0));
        assert_eq!(rate.at(seconds(2), 200), Some(100.0));
        assert_eq!(rate.at(seconds(3), 1200), Some(550.0));
        assert_eq!(rate.at(seconds(4), 2200), Some(1000.0));
        // Nobody looked for a while.
        assert_eq!(rate.at(seconds(14), 2210), Some(1.0));
    }

    /// A Wednesday in Berlin, 90 seconds before 14:00, and a half.
    fn now() -> Zoned {
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let time = date(2024, 11, 20).at(13, 58, 29, 500_000_000);
        time.to_zoned(berlin).unwrap()
    }

    #[test]
    fn points_in_time() {
        for (seconds, text) in [
            (0.0, "in 1s"),
            (11.2, "in 12s"),
            (60.0, "in 60s"),
            // Never sooner than it is.
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

    /// At the end of the year 9999 there was a panic.
    #[test]
    fn points_in_time_beyond_the_calendar() {
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

    /// What a terminal of so many columns shows of a search for so many answers.
    fn lines(name: &str, distance: u8, wanted: u64, size: (usize, usize)) -> Vec<String> {
        let odds = Odds::of(&name.parse().unwrap(), Distance::from(distance));
        let progress = Progress::new(odds, wanted, 0, 0..u64::MAX);
        let rate = Some(273.1e6);
        let search = progress.parts(3_300_000_000, 0, rate, rate, Some(&now()));
        let name = name.parse().unwrap();
        let look = Look {
            elapsed: seconds(12),
            search: Some(search),
            nearest: Ok(&Finding::of(b"hash".to_vec(), &name)),
        };
        look.fit(size.0, size.1)
    }

    #[test]
    fn a_narrow_terminal_has_the_important_parts() {
        let all = [
            "12s, 3.3 billion hashes, 273.1 million a second, 1 in 209 billion matches",
            "chance by now 1.57%, from now 50% by 14:08, 90% by 14:28, 99% by 14:58",
            "nearest at distance 9: I0atJ9dWi6mJbxt9prWZElHevfI=",
        ];
        assert_eq!(lines("hashfinder", 1, 1, (80, 24)), all);
        assert_eq!(
            lines("hashfinder", 1, 1, (60, 3)),
            [
                "12s, 3.3 billion hashes, 273.1 million a second",
                "chance by now 1.57%, from now 50% by 14:08, 99% by 14:58",
            ]
        );
        assert_eq!(
            lines("hashfinder", 1, 1, (42, 24)),
            [
                "12s, 273.1 million a second",
                "chance by now 1.57%, from now 50% by 14:08",
                "nearest at distance 9: I0atJ9dWi6mJbxt9prW",
            ]
        );
        assert_eq!(lines("hashfinder", 1, 1, (20, 1)), ["12s"]);
    }

    #[test]
    fn of_several_answers_the_next_is_told() {
        assert_eq!(
            lines("hashfinder", 1, 5, (80, 24))[1],
            "0 of 5 found, the next from now 50% by 14:08, 90% by 14:28, 99% by 14:58"
        );
    }

    #[test]
    fn what_is_not_known_exactly_is_not_said_to_be() {
        assert_eq!(
            lines("abababababababab", 6, 1, (80, 24))[..2],
            [
                "12s, 3.3 billion hashes, 273.1 million a second, 1 in 16 billion matches",
                "chance by now 18.25% to 18.26%, from now at least 50% in 42s, 99% by 14:04",
            ]
        );
    }

    #[test]
    fn a_point_beyond_the_last_secret_never_comes() {
        assert_eq!(
            lines("hashfinderhashfinder", 0, 1, (80, 24))[1],
            "chance by now under 0.01%, from now 50% never"
        );
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
