//! The command line.

use std::{
    fmt,
    io::{self, Write},
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use hashfinder_search::{Cursor, DesiredName, Distance, Kernel};
use http::uri::Authority;

use crate::{find::SessionName, listener::ClientName, searches::SearchesArguments};

/// The largest share that a client may have, compared with others' of 1. With more, these would wait for
/// half a second and longer between two of their slices.
const MAXIMUM_WEIGHT: u32 = 1000;

/// How long `find` waits for a server that is not there: long enough for one that is just being
/// started, short enough for somebody who mistyped its name.
const CONNECT_TIMEOUT: &str = "20s";

/// What one RPC may cost. Any name of eight letters is found within it for practical purposes (one
/// hash in 6e10 holds it), and a client that asks for more is stopped in the end.
const MAXIMUM_HASHES: &str = "1000000000000";

/// A few frames' worth: enough that a reader who comes back finds something to read, and a few
/// kilobytes for each search.
const QUEUE_LENGTH: &str = "256";

/// How many RPCs there may be at a time. Each costs a few kilobytes, and all of them share the
/// cores, so that more would only make everybody wait longer.
const MAXIMUM_CONCURRENT_RPCS: &str = "1000";

/// How long calls may go on after the server was told to leave. Enough for those that are nearly
/// done; the others get a cursor.
const DRAIN_GRACE: &str = "5s";

/// The most threads that may search. Far beyond any machine's cores, and far below what would
/// bring one down.
const MAXIMUM_THREADS: usize = 1024;

/// Finds byte strings ("secrets") whose SHA-1, written in base64, spells a desired name.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Find(FindArguments),
    Serve(ServeArguments),
    Bench(BenchArguments),
    Estimate(EstimateArguments),
    Verify(VerifyArguments),
    Searches(SearchesArguments),
}

/// Find a secret, in this process or by asking a server.
///
/// A result is a line on stdout with five columns, separated by tabs: the hashed name, the secret
/// in base64 and in hexadecimal, the distance, and where in the hashed name the match begins
/// (from 0). Everything else goes to stderr: on a terminal a line that shows how the search comes on,
/// elsewhere a line now and then. Ctrl-C stops the search and prints the nearest candidate and a
/// cursor to go on from; a second one leaves at once.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder find doctor
  hashfinder find doctor --ideal-distance 1 --show-inferior 3
  hashfinder find doctor --maximum-hashes 1000000
  hashfinder find docto --count 3
  hashfinder find hashfinder --show-inferior 4 --session night
  hashfinder find doc --quiet --json | jq -r 'select(.type == \"result\").hex'
  hashfinder find doctor --server localhost:50051 --timeout 30s

A server that speaks the reference contract alone (hash_name.HashFinder) can be asked too, but without
--count, --maximum-hashes, --resume and --session, and it does not tell how it comes on.

Exit codes:
    0  found, or whoever reads the results has seen enough
    1  the keyspace ended without an answer
    2  the command line is wrong
    3  a limit was reached (hash budget, quota, a full server, timeout), or somebody cancelled
       the search at the server; go on with the cursor
    4  no secret can ever match the name
    5  the server, the connection, the output or the session failed
  130  stopped by ctrl-C (143: by SIGTERM); go on with the cursor")]
pub(crate) struct FindArguments {
    /// What the hashed name is to contain, in any case: 1 to 28 characters
    #[arg(value_name = "NAME", required_unless_present = "resume")]
    pub(crate) name: Option<DesiredName>,

    /// End with the first secret at most this far from the name, in characters
    #[arg(
        long,
        value_name = "D",
        default_value = "0",
        value_parser = distance,
        allow_negative_numbers = true
    )]
    pub(crate) ideal_distance: Distance,

    /// Also show every secret on the way whose distance is less than this
    #[arg(long, value_name = "K", value_parser = distance, allow_negative_numbers = true)]
    pub(crate) show_inferior: Option<Distance>,

    /// Find this many secrets within the ideal distance, one after another
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) count: NonZeroU64,

    /// Stop after this many secrets
    #[arg(long, value_name = "N")]
    pub(crate) maximum_hashes: Option<NonZeroU64>,

    /// Stop after this long, for instance 90s, 5m or 1h30m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,

    /// How many threads search [default: one for each core]
    #[arg(long, value_name = "N", conflicts_with = "server", value_parser = threads)]
    pub(crate) threads: Option<NonZeroUsize>,

    /// The kernel to search with in this process [default: the fastest that this machine runs]
    #[arg(long, value_name = "NAME", env = "HASHFINDER_KERNEL", value_parser = kernel)]
    pub(crate) kernel: Option<Kernel>,

    /// Ask the server at HOST:PORT, or at unix:PATH, instead of searching in this process
    #[arg(long, value_name = "HOST:PORT", value_parser = server)]
    pub(crate) server: Option<ServerAddress>,

    /// How long to wait for the server to be there
    #[arg(long, value_name = "DURATION", default_value = CONNECT_TIMEOUT, value_parser = duration)]
    pub(crate) connect_timeout: Duration,

    /// Go on from where a search was stopped
    #[arg(
        long,
        value_name = "CURSOR",
        conflicts_with_all = ["name", "ideal_distance", "show_inferior"]
    )]
    pub(crate) resume: Option<Cursor>,

    /// Keep under this name what is searched for and how far it came, and go on from there when the same
    /// command is given again. It is written every half second, so that a kill costs a second at most,
    /// and what that found is printed again. It is removed when there is nothing left to search
    #[arg(long, value_name = "NAME", conflicts_with = "resume")]
    pub(crate) session: Option<SessionName>,

    /// Print JSON, one object on each line, as docs/find.schema.json describes it; the last one tells
    /// how the search ended
    #[arg(long)]
    pub(crate) json: bool,

    /// Say nothing on stderr but what is wrong
    #[arg(long, short)]
    pub(crate) quiet: bool,

    /// Whether results show where the name is in colour; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub(crate) color: Color,
}

impl FindArguments {
    /// What is looked for: the name, the ideal distance and the interesting one.
    pub(crate) fn sought(&self) -> (DesiredName, Distance, Distance) {
        match (&self.resume, &self.name) {
            (Some(cursor), _) => {
                let query = cursor.query();
                let (ideal, interesting) = (query.ideal_distance(), query.interesting_distance());
                (query.names()[0].clone(), ideal, interesting)
            }
            (None, Some(name)) => {
                let interesting = self.show_inferior.unwrap_or(Distance::ZERO);
                (name.clone(), self.ideal_distance, interesting)
            }
            // The command line asks for one of them.
            (None, None) => unreachable!("neither a name nor a cursor"),
        }
    }
}

/// When results are coloured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    #[default]
    Auto,
    Always,
    Never,
}

/// Serve searches to many clients, over gRPC.
///
/// Prints one line on stdout when it listens, and its log on stderr. The first SIGINT or SIGTERM
/// drains it: no new calls, then those that outlast the grace period are stopped and given a
/// cursor. A second one leaves at once. HASHFINDER_LOG sets what is logged (info; debug, warn ...).
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder serve
  hashfinder serve --host 0.0.0.0 --port 8080 --maximum-hashes 1000000000")]
pub(crate) struct ServeArguments {
    /// The address to listen on. There is no authentication yet: keep to the loopback unless
    /// everybody who can reach the port may use it
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: String,

    /// The port to listen on; 0 takes a free one and prints it
    #[arg(long, default_value_t = 50051)]
    pub(crate) port: u16,

    /// The hash budget of one RPC, after which the server cancels it
    #[arg(long, value_name = "N", default_value = MAXIMUM_HASHES)]
    pub(crate) maximum_hashes: NonZeroU64,

    /// The status of an RPC whose hash budget is spent
    #[arg(long, value_enum, value_name = "STATUS", default_value_t)]
    pub(crate) budget_status: BudgetStatus,

    /// How many threads search [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub(crate) workers: Option<NonZeroUsize>,

    /// The kernel to search with [default: the fastest that this machine runs]
    #[arg(long, value_name = "NAME", env = "HASHFINDER_KERNEL", value_parser = kernel)]
    pub(crate) kernel: Option<Kernel>,

    /// How many RPCs may search at a time; more are refused
    #[arg(long, value_name = "N", default_value = MAXIMUM_CONCURRENT_RPCS)]
    pub(crate) maximum_concurrent_rpcs: NonZeroUsize,

    /// How many searches a client may have at a time; a client is an address, or a user behind a Unix
    /// socket [default: three quarters of the maximum of RPCs, so that others find room]
    #[arg(long, value_name = "N")]
    pub(crate) maximum_searches_per_client: Option<NonZeroUsize>,

    /// How many secrets a client may have hashed each second, on average over a minute; beyond that
    /// its searches end with a cursor [default: no such limit]
    #[arg(long, value_name = "N")]
    pub(crate) maximum_hashes_per_second: Option<NonZeroU64>,

    /// The share of the cores that a client has, compared with others' of 1; CLIENT is an IP address, or
    /// user: and a user's number. May be given more than once
    #[arg(long = "client-weight", value_name = "CLIENT=N", value_parser = client_weight)]
    pub(crate) client_weights: Vec<(ClientName, NonZeroU32)>,

    /// Who sees and cancels the searches of all clients; CLIENT is an IP address, or user: and a user's
    /// number. May be given more than once. Behind a Unix socket root and whoever runs the server may too
    #[arg(long = "operator", value_name = "CLIENT")]
    pub(crate) operators: Vec<ClientName>,

    /// How many candidates wait for a stream's reader before its search does
    #[arg(long, value_name = "N", default_value = QUEUE_LENGTH)]
    pub(crate) queue_length: NonZeroUsize,

    /// Listen on a Unix socket with this path instead; whoever may write to it may use it
    #[arg(long, value_name = "PATH", conflicts_with_all = ["host", "port", "reuse_port"])]
    pub(crate) unix: Option<PathBuf>,

    /// Share the port with other processes (SO_REUSEPORT)
    #[arg(long)]
    pub(crate) reuse_port: bool,

    /// How long calls may go on after SIGINT or SIGTERM
    #[arg(long, value_name = "DURATION", default_value = DRAIN_GRACE, value_parser = duration)]
    pub(crate) drain_grace: Duration,
}

impl ServeArguments {
    /// How many searches a client may have at a time.
    pub(crate) fn maximum_searches_per_client(&self) -> usize {
        let all = self.maximum_concurrent_rpcs.get();
        let most = self.maximum_searches_per_client;
        most.map_or(all - all / 4, NonZeroUsize::get)
    }
}

/// One kernel or all of them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KernelChoice {
    All,
    One(Kernel),
}

/// Measure how fast this machine's kernels are, and check that they are right.
///
/// Each kernel is measured at hashing alone (the case sha1) and at searching for each name, on one
/// thread and on all.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder bench
  hashfinder bench --name doctor --name hashfinder --ideal-distance 1 --seconds 5 --json")]
pub(crate) struct BenchArguments {
    /// The kernel to measure, or all [default: all]
    #[arg(long, value_name = "NAME", env = "HASHFINDER_KERNEL", value_parser = kernel_or_all)]
    #[arg(default_value = "all", hide_default_value = true)]
    pub(crate) kernel: KernelChoice,

    /// How many threads \"all\" are [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<NonZeroUsize>,

    /// A name to search for; may be given more than once
    #[arg(long = "name", value_name = "NAME", default_value = "doctor")]
    pub(crate) names: Vec<DesiredName>,

    /// A number of made-up names of 6 to 10 letters to search for at once; may be given more than once
    #[arg(long = "names", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) sets: Vec<u16>,

    /// The distance to search at
    #[arg(long, value_name = "D", default_value = "0", value_parser = distance)]
    pub(crate) ideal_distance: Distance,

    /// How many bytes the secrets have
    #[arg(long, value_name = "L", default_value = "4", value_parser = clap::value_parser!(u32).range(3..=7))]
    pub(crate) length: u32,

    /// How long each row is measured
    #[arg(long, value_name = "S", default_value = "2", value_parser = seconds)]
    pub(crate) seconds: Duration,

    /// Print one JSON object for each row, with kernel, case, threads and hashes_per_second
    #[arg(long)]
    pub(crate) json: bool,
}

/// Tell how likely a hash is to match a name, and how many hashes and how long a search takes.
///
/// The chance is exact for short names and for most others; where it is not, its bounds are shown. A
/// search has no memory: after any number of hashes in vain, all of it is still before it.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder estimate doctor
  hashfinder estimate hashfinder --ideal-distance 3 --rate 1e9
  hashfinder estimate doctor --json

With --json, one object: name, ideal_distance, exact (whether the chance is known exactly),
chance (that one hash matches), hashes (expected, median, p90, p99: how many a search takes on
average, and by how many half, 90% and 99% of all searches have ended), hashes_per_second,
measured (whether that was measured here), seconds (the same four). A chance, and each of the
four, is an object with low and high, which are equal where it is exact.

Exit codes:
  0  told
  2  the command line is wrong
  4  no secret can ever match the name
  5  the output failed")]
pub(crate) struct EstimateArguments {
    /// What the hashed name is to contain, in any case: 1 to 28 characters
    #[arg(value_name = "NAME")]
    pub(crate) name: DesiredName,

    /// How far from the name a secret may be, in characters
    #[arg(
        long,
        value_name = "D",
        default_value = "0",
        value_parser = distance,
        allow_negative_numbers = true
    )]
    pub(crate) ideal_distance: Distance,

    /// How many secrets are tried in a second [default: measured here for a quarter of a second, on
    /// a thread for each core]
    #[arg(long, value_name = "HASHES_PER_SECOND", value_parser = rate, allow_negative_numbers = true)]
    pub(crate) rate: Option<f64>,

    /// The kernel whose rate is measured [default: the fastest that this machine runs]
    #[arg(long, value_name = "NAME", env = "HASHFINDER_KERNEL", value_parser = kernel)]
    pub(crate) kernel: Option<Kernel>,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Check a secret: what it spells, and how far that is from a name.
///
/// Prints the secret's line as `find` does: the hashed name, the secret in base64 and in hexadecimal,
/// the distance, and where in the hashed name the match begins (from 0).
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder verify pO0G doctor
  hashfinder verify --hex a4ed06 doctor
  hashfinder verify XeY= hashfinder --ideal-distance 4 --json

With --json, one object: name, ideal_distance, hashed_name, secret (in base64), hex, distance,
window, within (whether the distance is the ideal one or less).

Exit codes:
  0  it is within the distance
  1  it is not
  2  the command line is wrong, the secret for one
  5  the output failed")]
pub(crate) struct VerifyArguments {
    /// The secret, of any length, in standard base64
    #[arg(value_name = "SECRET")]
    pub(crate) secret: String,

    /// What its hashed name is to contain, in any case: 1 to 28 characters
    #[arg(value_name = "NAME")]
    pub(crate) name: DesiredName,

    /// The secret is in hexadecimal
    #[arg(long)]
    pub(crate) hex: bool,

    /// How far from the name it may be, in characters
    #[arg(
        long,
        value_name = "D",
        default_value = "0",
        value_parser = distance,
        allow_negative_numbers = true
    )]
    pub(crate) ideal_distance: Distance,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which code says that a hash budget is spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum BudgetStatus {
    /// As the reference server does
    #[default]
    Cancelled,
    /// As gRPC's own description of the codes has it
    ResourceExhausted,
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
    /// Stopped by SIGINT: 128 and its number, as shells have it.
    Interrupted = 130,
    /// Stopped by SIGTERM.
    Terminated = 143,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Tells people something, on stderr. If nobody can hear it, the work goes on.
pub(crate) fn say(what: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "hashfinder: {what}");
}

fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let threads = NonZeroUsize::from_str(text).ok();
    let threads = threads.filter(|threads| threads.get() <= MAXIMUM_THREADS);
    threads.ok_or_else(|| format!("give a number from 1 to {MAXIMUM_THREADS}"))
}

fn kernel(text: &str) -> Result<Kernel, String> {
    Kernel::named(text).ok_or_else(|| {
        let names: Vec<&str> = Kernel::all().map(Kernel::name).collect();
        format!("this machine runs the kernels {}", names.join(", "))
    })
}

fn kernel_or_all(text: &str) -> Result<KernelChoice, String> {
    match text {
        "all" => Ok(KernelChoice::All),
        name => kernel(name).map(KernelChoice::One),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = f64::from_str(text).ok().filter(|seconds| *seconds > 0.0);
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "give a number of seconds above 0".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = f64::from_str(text).ok();
    rate.filter(|rate| *rate >= 1.0 && rate.is_finite())
        .ok_or_else(|| "give a number of hashes from 1 on, for instance 3e8".to_owned())
}

fn distance(text: &str) -> Result<Distance, String> {
    let number = i64::from_str(text).map_err(|_| "give a number of characters".to_owned())?;
    Distance::try_from(number).map_err(|error| error.to_string())
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; give for instance 90s or 5m"))
}

/// Where a server is.
#[derive(Clone, Debug)]
pub(crate) enum ServerAddress {
    Tcp(Authority),
    Unix(String),
}

impl ServerAddress {
    /// The address as a URI.
    pub(crate) fn uri(&self) -> String {
        match self {
            ServerAddress::Tcp(authority) => format!("http://{authority}"),
            ServerAddress::Unix(path) => format!("unix:{path}"),
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerAddress::Tcp(authority) => authority.fmt(f),
            ServerAddress::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

fn client_weight(text: &str) -> Result<(ClientName, NonZeroU32), String> {
    let parts = text.rsplit_once('=');
    let (client, weight) = parts.ok_or("give CLIENT=N, for instance 10.0.0.7=4")?;
    let weight = NonZeroU32::from_str(weight).ok();
    let weight = weight.filter(|weight| weight.get() <= MAXIMUM_WEIGHT);
    let weight = weight.ok_or_else(|| format!("give a weight from 1 to {MAXIMUM_WEIGHT}"))?;
    Ok((client.parse()?, weight))
}

pub(crate) fn server(text: &str) -> Result<ServerAddress, String> {
    if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
        return Ok(ServerAddress::Unix(path.to_owned()));
    }
    let authority = Authority::from_str(text).ok();
    authority
        .filter(|authority| {
            let plain = !authority.as_str().contains('@') && !authority.host().is_empty();
            plain && authority.port_u16().is_some()
        })
        .map(ServerAddress::Tcp)
        .ok_or_else(|| "give HOST:PORT, for instance localhost:50051, or unix:PATH".to_owned())
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
    fn servers() {
        for right in [
            "localhost:50051",
            "127.0.0.1:1",
            "[::1]:50051",
            "a.example:80",
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
            "u@h:1",
            "unix:",
        ] {
            assert!(server(wrong).is_err(), "{wrong}");
        }
    }
}
