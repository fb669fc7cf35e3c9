//! The arguments of `serve` about its connections.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use anyhow::{Result, bail};
use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    arguments::values::{number, positive, positive_duration},
    transport::{FloodLimits, Lifetimes, Limits},
};

/// How many connections there may be where the files that the process may open suffice: four for each RPC
/// that may search. One that is silent takes two kibibytes, one that speaks twenty.
const CONNECTIONS: usize = 4096;

/// How many files the process needs for other things than connections: those of metrics, its sockets, its log.
const OTHER_FILES: usize = 64;

/// How many connections an address may begin each second: a few scripts that start a client for each search, and
/// at two tenths of a millisecond for a TLS handshake a twentieth of a core.
const CONNECTIONS_PER_SECOND: &str = "200";

/// How many calls one connection may have open. gRPC's own advice is about a hundred; this leaves room for
/// one busy client behind a proxy.
const CONCURRENT_STREAMS: &str = "1000";

/// How many streams a connection may begin each second. All of an address may begin four times as many: at thirty
/// microseconds for one that is refused, a quarter of a core.
const STREAMS_PER_SECOND: &str = "2000";

/// How many streams may be reset on a connection each second: far more than people and programs cancel,
/// and at twenty microseconds each a hundredth of a core.
const RESETS_PER_SECOND: &str = "500";

/// How many frames a connection may send each second that belong to no call: at two microseconds each a
/// five-hundredth of a core.
const CONTROL_FRAMES_PER_SECOND: &str = "1000";

/// How long the headers of a request may be: gRPC's libraries take eight kibibytes by default, and tokens
/// that name many groups are longer.
const HEADER_LIST: &str = "16384";

/// What HTTP/2 gives the least sense: `:path` and the other fields of a call alone take some four hundred.
const LEAST_HEADER_LIST: u32 = 1024;

/// What connections may do
///
/// Each limit keeps careless, broken and hostile clients from taking what others need.
#[derive(Args, Debug)]
#[command(next_help_heading = "Connections")]
pub(crate) struct TransportArguments {
    /// How many connections there may be [default: 4096, or three quarters of the files that may be open]
    ///
    /// When there are as many, one that has not said anything yet makes room for the next.
    #[arg(long, value_name = "N", value_parser = positive::<NonZeroUsize>)]
    maximum_connections: Option<NonZeroUsize>,

    /// How many connections an address may have [default: a quarter of all]
    #[arg(long, value_name = "N", value_parser = positive::<NonZeroUsize>)]
    maximum_connections_per_address: Option<NonZeroUsize>,

    /// How many connections an address may begin each second, and at once; more are not taken
    ///
    /// One of IPv6 is the network of its first 64 bits; behind a Unix socket a user is one.
    #[arg(long, value_name = "N", default_value = CONNECTIONS_PER_SECOND)]
    #[arg(value_parser = positive::<NonZeroU32>)]
    maximum_connections_per_second_per_address: NonZeroU32,

    /// Maximum number of open calls of a connection
    ///
    /// At most three quarters of what its address may have open, so that other connections find room.
    #[arg(long, value_name = "N", default_value = CONCURRENT_STREAMS)]
    #[arg(value_parser = positive::<NonZeroU32>)]
    maximum_streams_per_connection: NonZeroU32,

    /// How many calls a connection may begin each second; it is read more slowly beyond that
    ///
    /// A hundred at once; one counts again for each 512 bytes of its headers. All connections of an address may
    /// begin four times as many. Raise it, and
    /// --maximum-calls-per-second-per-address, for programs that make thousands of short calls a second.
    #[arg(long, value_name = "N", default_value = STREAMS_PER_SECOND)]
    #[arg(value_parser = positive::<NonZeroU32>)]
    maximum_streams_per_second: NonZeroU32,

    /// How many calls may be reset on a connection each second
    ///
    /// By the client, which is how it cancels, or by the server over a client's errors. It is read more
    /// slowly beyond that, and closed if it goes on for ten seconds. All connections of an address may have
    /// four times as many.
    #[arg(long, value_name = "N", default_value = RESETS_PER_SECOND)]
    #[arg(value_parser = positive::<NonZeroU32>)]
    maximum_resets_per_second: NonZeroU32,

    /// How many frames a connection may send each second that belong to no call
    ///
    /// PING, SETTINGS, PRIORITY, WINDOW_UPDATE and the like; calls bring some with them. What happens beyond
    /// that is what happens with resets.
    #[arg(long, value_name = "N", default_value = CONTROL_FRAMES_PER_SECOND)]
    #[arg(value_parser = positive::<NonZeroU32>)]
    maximum_control_frames_per_second: NonZeroU32,

    /// How many bytes the headers of a request may have
    ///
    /// As HTTP/2 counts them: 32 more for each field than its name and value have.
    #[arg(long, value_name = "BYTES", default_value = HEADER_LIST)]
    #[arg(value_parser = number(LEAST_HEADER_LIST..=1 << 20))]
    maximum_header_list: u32,

    /// How long a connection may take for its handshakes, TLS's and HTTP/2's
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = positive_duration)]
    handshake_timeout: Duration,

    /// How long a connection may then go without its first call
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = positive_duration)]
    first_request_timeout: Duration,

    /// How long a connection may go without a call later on
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = positive_duration)]
    idle_timeout: Duration,

    /// How long a response may wait for its reader, before its search is stopped
    ///
    /// It ends with a cursor then. A connection all of whose responses wait that long is closed.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = positive_duration)]
    pub(crate) stream_stall_timeout: Duration,

    /// How long a connection may last, or a tenth less or more [default: for ever]
    ///
    /// For those who balance load by connections. Its calls may go on for the grace period and get a cursor
    /// then, so leave it out where searches are long.
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    maximum_connection_age: Option<Duration>,

    /// How long the calls of a connection may go on that is told to close
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = positive_duration)]
    connection_grace: Duration,

    /// How often a connection is asked whether its client is still there
    ///
    /// A client that vanished without a word holds its searches for this long, and the timeout.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = positive_duration)]
    keepalive_interval: Duration,

    /// How long the client may take to answer that
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = positive_duration)]
    keepalive_timeout: Duration,
}

impl TransportArguments {
    /// What connections may do, in a process that may open so many files.
    ///
    /// # Errors
    ///
    /// If the files do not suffice for the connections, or for any connection.
    pub(crate) fn limits(&self, files: usize) -> Result<Limits> {
        let fit = (files - files / 4).min(files.saturating_sub(OTHER_FILES));
        let default = CONNECTIONS.min(fit);
        let default = NonZeroUsize::new(default).unwrap_or(NonZeroUsize::MIN);
        let connections = self.maximum_connections.unwrap_or(default);
        if connections.get().saturating_add(OTHER_FILES) > files {
            let limit = format!(
                "this process may open only {files} files, and a server needs {OTHER_FILES} besides its \
                 connections; raise that limit (`ulimit -n`, or LimitNOFILE of the unit)"
            );
            match self.maximum_connections {
                Some(given) if files > OTHER_FILES => bail!(
                    "--maximum-connections {given}: {limit}, or give {} or less",
                    files - OTHER_FILES
                ),
                _ => bail!("{limit}"),
            }
        }
        let quarter = NonZeroUsize::new(connections.get() / 4).unwrap_or(NonZeroUsize::MIN);
        Ok(Limits {
            connections,
            of_address: self.maximum_connections_per_address.unwrap_or(quarter),
            concurrent_streams: self.maximum_streams_per_connection.get(),
            header_list: self.maximum_header_list,
            keepalive: (self.keepalive_interval, self.keepalive_timeout),
            flood: FloodLimits {
                connections: self.maximum_connections_per_second_per_address.get(),
                streams: self.maximum_streams_per_second.get(),
                resets: self.maximum_resets_per_second.get(),
                control_frames: self.maximum_control_frames_per_second.get(),
            },
            lifetimes: Lifetimes {
                handshake: self.handshake_timeout,
                first_request: self.first_request_timeout,
                idle: self.idle_timeout,
                unread: self.stream_stall_timeout,
                blocked: (self.keepalive_interval).saturating_add(self.keepalive_timeout),
                age: self.maximum_connection_age,
                grace: self.connection_grace,
            },
        })
    }
}

/// How many files this process may open, once it may open as many as the system lets it. The lower limit
/// that processes begin with is for programs that use `select`, which this one does not.
pub(crate) fn open_files() -> usize {
    let files = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: files.maximum,
        maximum: files.maximum,
    };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => files.maximum,
        Err(_) => files.current,
    };
    // None is no limit.
    allowed.map_or(usize::MAX, |files| {
        usize::try_from(files).unwrap_or(usize::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        transport: TransportArguments,
    }

    fn limits(flags: &[&str], files: usize) -> Result<Limits> {
        let program = Program::parse_from(["hashfinder"].iter().chain(flags));
        program.transport.limits(files)
    }

    #[test]
    fn connections_stay_below_the_files() {
        let of = |limits: Limits| (limits.connections.get(), limits.of_address.get());
        assert_eq!(of(limits(&[], 1 << 20).unwrap()), (4096, 1024));
        assert_eq!(of(limits(&[], 1024).unwrap()), (768, 192));
        assert_eq!(of(limits(&[], usize::MAX).unwrap()), (4096, 1024));
        let most = ["--maximum-connections", "960"];
        assert_eq!(of(limits(&most, 1024).unwrap()), (960, 240));
        let error = |flags, files| limits(flags, files).unwrap_err().to_string();
        let too_many = error(&["--maximum-connections", "961"], 1024);
        assert!(too_many.contains("LimitNOFILE"), "{too_many}");
        assert!(
            too_many.starts_with("--maximum-connections 961"),
            "{too_many}"
        );
        assert!(too_many.ends_with("or give 960 or less"), "{too_many}");
        assert_eq!(of(limits(&[], 65).unwrap()), (1, 1));
        // No number of connections is right then.
        for flags in [&[][..], &["--maximum-connections", "1"]] {
            let none = error(flags, 64);
            assert!(
                none.starts_with("this process may open only 64 files"),
                "{none}"
            );
        }
    }
}
