//! The arguments of `serve` about its connections.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use clap::Args;
use hashfinder_transport::{FloodLimits, LEAST_HEADER_LIST, Lifetimes, Settings};

use crate::arguments::values::{number, positive, positive_duration, shown};

/// What connections may do
///
/// Each limit keeps careless, broken and hostile clients from taking what others need.
#[derive(Args, Debug)]
#[command(next_help_heading = "Connections")]
pub(super) struct TransportArguments {
    /// How many connections there may be [default: 4096, or three quarters of the files that may be
    /// open]
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
    #[arg(long, value_name = "N", default_value_t = Settings::default().new_connections_of_address)]
    #[arg(value_parser = positive::<NonZeroU32>)]
    maximum_connections_per_second_per_address: NonZeroU32,

    /// Maximum number of open calls of a connection
    ///
    /// At most three quarters of what its address may have open, so that other connections find
    /// room.
    #[arg(long, value_name = "N", default_value_t = Settings::default().concurrent_streams)]
    #[arg(value_parser = positive::<NonZeroU32>)]
    maximum_streams_per_connection: NonZeroU32,

    /// How many calls a connection may begin each second; it is read more slowly beyond that
    ///
    /// A hundred at once; one counts again for each 512 bytes of its headers. All connections of an address may
    /// begin four times as many. Raise it, and
    /// --maximum-calls-per-second-per-address, for programs that make thousands of short calls a second.
    #[arg(long, value_name = "N", default_value_t = FloodLimits::default().streams)]
    #[arg(value_parser = positive::<NonZeroU32>)]
    maximum_streams_per_second: NonZeroU32,

    /// How many calls may be reset on a connection each second
    ///
    /// By the client, which is how it cancels, or by the server over a client's errors. It is read
    /// more slowly beyond that, and closed if it goes on for ten seconds. All connections of an
    /// address may have four times as many.
    #[arg(long, value_name = "N", default_value_t = FloodLimits::default().resets)]
    #[arg(value_parser = positive::<NonZeroU32>)]
    maximum_resets_per_second: NonZeroU32,

    /// How many frames a connection may send each second that belong to no call
    ///
    /// PING, SETTINGS, PRIORITY, WINDOW_UPDATE and the like; calls bring some with them. What
    /// happens beyond that is what happens with resets.
    #[arg(long, value_name = "N", default_value_t = FloodLimits::default().control_frames)]
    #[arg(value_parser = positive::<NonZeroU32>)]
    maximum_control_frames_per_second: NonZeroU32,

    /// How many bytes the headers of a request may have
    ///
    /// As HTTP/2 counts them: 32 more for each field than its name and value have.
    #[arg(long, value_name = "BYTES", default_value_t = Settings::default().header_list)]
    #[arg(value_parser = number(LEAST_HEADER_LIST..=1 << 20))]
    maximum_header_list: u32,

    /// How long a connection may take for its handshakes, TLS's and HTTP/2's
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    #[arg(default_value = shown(Lifetimes::default().handshake))]
    handshake_timeout: Duration,

    /// How long a connection may then go without its first call
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    #[arg(default_value = shown(Lifetimes::default().first_request))]
    first_request_timeout: Duration,

    /// How long a connection may go without a call later on
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    #[arg(default_value = shown(Lifetimes::default().idle))]
    idle_timeout: Duration,

    /// How long a response may wait for its reader, before its search is stopped
    ///
    /// It ends with a cursor then. A connection all of whose responses wait that long is closed.
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    #[arg(default_value = shown(Lifetimes::default().unread))]
    stream_stall_timeout: Duration,

    /// How long a connection may last, or a tenth less or more [default: for ever]
    ///
    /// For those who balance load by connections. Its calls may go on for the grace period and get
    /// a cursor then, so leave it out where searches are long.
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    maximum_connection_age: Option<Duration>,

    /// How long the calls of a connection may go on that is told to close
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    #[arg(default_value = shown(Lifetimes::default().grace))]
    connection_grace: Duration,

    /// How often a connection is asked whether its client is still there
    ///
    /// A client that vanished without a word holds its searches for this long, and the timeout.
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    #[arg(default_value = shown(Settings::default().keepalive_interval))]
    keepalive_interval: Duration,

    /// How long the client may take to answer that
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    #[arg(default_value = shown(Settings::default().keepalive_timeout))]
    keepalive_timeout: Duration,
}

impl TransportArguments {
    pub(super) fn settings(&self) -> Settings {
        Settings {
            connections: self.maximum_connections,
            connections_of_address: self.maximum_connections_per_address,
            new_connections_of_address: self.maximum_connections_per_second_per_address,
            concurrent_streams: self.maximum_streams_per_connection,
            header_list: self.maximum_header_list,
            keepalive_interval: self.keepalive_interval,
            keepalive_timeout: self.keepalive_timeout,
            flood: FloodLimits {
                streams: self.maximum_streams_per_second,
                resets: self.maximum_resets_per_second,
                control_frames: self.maximum_control_frames_per_second,
            },
            lifetimes: Lifetimes {
                handshake: self.handshake_timeout,
                first_request: self.first_request_timeout,
                idle: self.idle_timeout,
                unread: self.stream_stall_timeout,
                age: self.maximum_connection_age,
                grace: self.connection_grace,
            },
        }
    }
}
