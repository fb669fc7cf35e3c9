//! The command line.

mod auth;
mod bench;
mod connection;
mod estimate;
mod find;
mod keys;
mod query;
mod quota;
mod serve;
mod tls;
mod trace;
mod transport;
mod verify;

use std::{
    fmt,
    io::{self, Write},
    num::NonZeroUsize,
    ops::RangeInclusive,
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
    time::Duration,
};

use anyhow::Context;
use clap::{Parser, Subcommand};
use hashfinder_search::{Distance, Kernel};
use http::uri::Authority;
use serde_json::Value;

use crate::{
    config::ConfigArguments,
    health::HealthArguments,
    manual::{CompletionsArguments, ManArguments},
    recipes::{GitCommitArguments, HashcashArguments},
    searches::SearchesArguments,
};

pub(crate) use self::{
    auth::AuthArguments,
    bench::{BenchArguments, KernelChoice},
    connection::ConnectionArguments,
    estimate::EstimateArguments,
    find::{Color, FindArguments},
    keys::{KeyFileArguments, KeysArguments, KeysCommand},
    query::{QueryArguments, QueryError, SpellingArguments},
    quota::QuotaArguments,
    serve::{BudgetStatus, LogFormat, ServeArguments},
    tls::{ClientCertificates, TlsArguments},
    trace::TraceArguments,
    transport::{TransportArguments, open_files},
    verify::VerifyArguments,
};

/// The most threads that may search. Far beyond any machine's cores, and far below what would
/// bring one down.
const MAXIMUM_THREADS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// The longest time that there is, whatever is given: as good as for ever, and libraries can add it to the
/// clock's, which panics where it does not fit.
const LONGEST_DURATION: Duration = Duration::from_secs(1000 * 31_557_600);

/// Where a flag stands in the help that belongs to every command: below the command's own.
const LAST: usize = 900;

/// Finds byte strings ("secrets") whose SHA-1, written in base64, spells a desired name.
#[derive(Debug, Parser)]
#[command(
    version,
    propagate_version = true,
    // Not what the caller has named the program, which can be anything.
    bin_name = "hashfinder",
    max_term_width = 100,
    after_help = "\
Flags can be given by environment variables and a file, too: see `hashfinder config --help`."
)]
pub(crate) struct Cli {
    /// The file to take settings from, instead of ~/.config/hashfinder/config.toml
    #[arg(long, global = true, value_name = "PATH", display_order = LAST)]
    pub(crate) config: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Find(FindArguments),
    Serve(Box<ServeArguments>),
    Bench(BenchArguments),
    Estimate(EstimateArguments),
    Verify(VerifyArguments),
    Searches(SearchesArguments),
    Health(HealthArguments),
    Keys(KeysArguments),
    GitCommit(GitCommitArguments),
    Hashcash(HashcashArguments),
    Config(ConfigArguments),
    Completions(CompletionsArguments),
    Man(ManArguments),
}

/// How the program ended, as its exit code tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The answer was found, or the server was shut down as asked.
    Success = 0,
    /// The answer is no: the keyspace ended without one, or a secret is not near enough.
    No = 1,
    /// The command line is wrong, in what only the command itself can tell.
    Usage = 2,
    /// A limit was reached: the hash budget or the timeout.
    Limit = 3,
    /// No secret can ever match.
    Impossible = 4,
    /// The server, the connection or the output failed.
    Failed = 5,
    /// Stopped by SIGHUP. This code and those below are 128 plus the signal's number, as in shells.
    HungUp = 129,
    /// Stopped by SIGINT, which ctrl-C sends.
    Interrupted = 130,
    /// Stopped by SIGQUIT, which ctrl-\ sends.
    Quit = 131,
    /// Stopped by SIGTERM.
    Terminated = 143,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Prints a message on stderr, as one line without control characters, whatever it quotes. If stderr cannot be written,
/// the work continues.
pub(crate) fn say(what: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "hashfinder: {}", as_text(&what.to_string()));
}

/// Returns a text that a terminal shows as it is: control characters, and others that it does not print, are escaped.
/// A text that was escaped before stays the same.
pub(crate) fn as_text(text: &str) -> String {
    let marks = ['\'', '"', '\\'];
    let mut shown = String::with_capacity(text.len());
    for part in text.split_inclusive(marks) {
        let (plain, mark) = part.split_at(part.trim_end_matches(marks).len());
        shown.extend(plain.escape_debug());
        shown += mark;
    }
    shown
}

/// Returns an object as one line of JSON without control characters: JSON itself lets some stand that a terminal
/// would act on. There are none outside of its strings.
pub(crate) fn json(object: &Value) -> String {
    let mut line = String::new();
    for character in object.to_string().chars() {
        if character.is_control() {
            line += &format!("\\u{:04x}", u32::from(character));
        } else {
            line.push(character);
        }
    }
    line
}

/// Prints to stdout, at once; says whether anybody reads. A reader that left early, as `head` does, has
/// had what it wanted, which is no failure.
pub(crate) fn print(what: impl AsRef<[u8]>) -> anyhow::Result<bool> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(what.as_ref());
    is_read(written.and_then(|()| stdout.flush()))
}

/// Whether somebody reads what was written to stdout.
pub(crate) fn is_read(written: io::Result<()>) -> anyhow::Result<bool> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to stdout"),
    }
}

pub(crate) fn threads(text: &str) -> Result<NonZeroUsize, String> {
    number(NonZeroUsize::MIN..=MAXIMUM_THREADS)(text)
}

/// A parser of numbers in a range.
pub(crate) fn number<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String> + Clone
where
    T: Clone + fmt::Display + FromStr + PartialOrd,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| {
            let (least, most) = (range.start(), range.end());
            format!("give a whole number from {least} to {most}")
        })
    }
}

fn positive<T: FromStr>(text: &str) -> Result<T, String> {
    let number = text.parse();
    number.map_err(|_| "give a whole number from 1 on".to_owned())
}

fn kernel(text: &str) -> Result<Kernel, String> {
    Kernel::named(text).ok_or_else(|| {
        let names: Vec<&str> = Kernel::all().map(Kernel::name).collect();
        format!("this machine runs the kernels {}", names.join(", "))
    })
}

fn distance(text: &str) -> Result<Distance, String> {
    let number = i64::from_str(text).map_err(|_| "give a number of characters".to_owned())?;
    Distance::try_from(number).map_err(|error| error.to_string())
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text);
    duration
        .map(|duration| duration.min(LONGEST_DURATION))
        .map_err(|_| "give a time, for instance 90s, 5m or 1h30m".to_owned())
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration.is_zero() {
        return Err(
            "give a time that is longer than none, for instance 90s, 5m or 1h30m".to_owned(),
        );
    }
    Ok(duration)
}

/// Where a server is.
#[derive(Clone, Debug)]
pub(crate) enum ServerAddress {
    Tcp(Authority),
    Tls(Authority),
    Unix(String),
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerAddress::Tcp(authority) => authority.fmt(f),
            ServerAddress::Tls(authority) => write!(f, "https://{authority}"),
            ServerAddress::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

/// Quotes a word for a shell. One with control characters is written as bash, zsh, ksh and POSIX of 2024 read it.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:%+,@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else if word.contains(char::is_control) {
        let escape = |c: char| match c {
            '\'' | '\\' => format!("\\{c}"),
            c if c.is_control() => {
                let mut bytes = [0; 4];
                let bytes = c.encode_utf8(&mut bytes).bytes();
                bytes.map(|byte| format!("\\{byte:03o}")).collect()
            }
            c => c.to_string(),
        };
        format!("$'{}'", word.chars().map(escape).collect::<String>())
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

pub(crate) fn server(text: &str) -> Result<ServerAddress, String> {
    if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
        return Ok(ServerAddress::Unix(path.to_owned()));
    }
    let (kind, text): (fn(Authority) -> ServerAddress, &str) = match text.strip_prefix("https://") {
        Some(rest) => (ServerAddress::Tls, rest),
        None => (ServerAddress::Tcp, text),
    };
    let authority = Authority::from_str(text).ok();
    authority
        .filter(|authority| {
            let plain = !authority.as_str().contains('@') && !authority.host().is_empty();
            plain && authority.port_u16().is_some()
        })
        .map(kind)
        .ok_or_else(|| {
            "give HOST:PORT, for instance localhost:50051, https://HOST:PORT for TLS, or unix:PATH"
                .to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_quoted_cannot_control_a_terminal() {
        let plain =
            "caf\u{e9} \u{939}\u{93f}\u{928}\u{94d}\u{926}\u{940} \u{1f980} 'a' \"b\" C:\\d";
        assert_eq!(as_text(plain), plain);
        for (text, shown) in [
            ("\x1b[31mred", "\\u{1b}[31mred"),
            ("two\nlines\tand\r", "two\\nlines\\tand\\r"),
            ("\u{9b}31m \u{7f} \u{202e}", "\\u{9b}31m \\u{7f} \\u{202e}"),
            ("'\x07'\"\x08\"\\\x0b", "'\\u{7}'\"\\u{8}\"\\\\u{b}"),
        ] {
            assert_eq!(as_text(text), shown);
            assert_eq!(as_text(shown), shown);
        }
    }

    #[test]
    fn json_has_no_control_characters() {
        let object = serde_json::json!({"text": "\x1b[2J\n\u{7f}\u{9b}31m\u{e9}"});
        let line = json(&object);
        assert!(!line.contains(char::is_control), "{line}");
        assert_eq!(line.parse::<Value>().unwrap(), object);
    }

    #[test]
    fn words_for_a_shell() {
        for (word, shown) in [
            ("a/b-c.1", "a/b-c.1"),
            ("", "''"),
            ("it's", r"'it'\''s'"),
            ("caf\u{e9}", "'caf\u{e9}'"),
            ("a\x1b[31m\n'\\", r"$'a\033[31m\012\'\\'"),
            ("\u{9b}", r"$'\302\233'"),
        ] {
            assert_eq!(quoted(word), shown);
        }
    }

    #[test]
    fn durations() {
        for (text, seconds) in [
            ("90s", 90),
            ("1h30m", 5400),
            ("0", 0),
            ("1000years", 31_557_600_000),
            // Which is as good as for ever, and what a clock can show.
            ("400000000000years", 31_557_600_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for wrong in ["", "5", "-1s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert!(positive_duration("0s").is_err());
    }

    #[test]
    fn servers() {
        for right in [
            "localhost:50051",
            "127.0.0.1:1",
            "[::1]:50051",
            "a.example:80",
            "https://a.example:443",
            "https://[::1]:50051",
            "unix:/run/a.sock",
        ] {
            assert!(server(right).is_ok(), "{right}");
        }
        for wrong in [
            "",
            "localhost",
            ":1",
            "localhost:",
            "host:99999",
            "http://host:1",
            "https://host",
            "https://host:1/",
            "https://u@h:1",
            "u@h:1",
            "unix:",
        ] {
            assert!(server(wrong).is_err(), "{wrong}");
        }
    }
}
