//! Limits of connections: those that an operator sets, and those that result in this process.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{admission::Admission, lifetime::Lifetimes, meter::FloodLimits, rate::Rate};

/// Default of the maximum number of connections, if the process may open enough files: four for
/// each of a thousand searches. A connection takes 2 KiB until it first sends something, and 20 KiB
/// from then on.
const CONNECTIONS: usize = 4096;

/// Number of files that the process needs besides its connections, for example for metrics,
/// listening sockets and its log.
const OTHER_FILES: usize = 64;

/// Minimum of [`Settings::header_list`], in bytes. The fields that every call has take about 400
/// bytes.
pub const LEAST_HEADER_LIST: u32 = 1024;

/// Factor by which [`Settings::behind_proxy`] raises limits. With it, one address may begin 80,000
/// calls a second by default, twice what two cores answer. Limits remain, so a flood through a
/// proxy is still slowed down.
pub const PROXY_FACTOR: NonZeroU32 = NonZeroU32::new(16).unwrap();

/// Limits of connections, as an operator sets them. Each limit keeps unruly, broken and hostile
/// clients from taking the resources that others need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Maximum number of connections. Default: 4,096, or three quarters of the files that the
    /// process may open if that is less; 64 files stay free in any case. At the maximum, a new
    /// connection replaces the oldest one that has not sent anything yet; if all have sent
    /// something, the server closes the new one.
    pub connections: Option<NonZeroUsize>,
    /// Maximum number of connections of one address. Default: a quarter of
    /// [`connections`](Settings::connections).
    pub connections_of_address: Option<NonZeroUsize>,
    /// Maximum number of connections that an address begins in a second, and at once. Default: 200,
    /// which is enough for a few scripts that start a client for each call. At 0.2 ms per TLS
    /// handshake, these take about a twentieth of a core.
    pub new_connections_of_address: NonZeroU32,
    /// Maximum number of open calls of a connection. Default: 1,000. gRPC recommends about a
    /// hundred; this leaves room for one busy client behind a proxy.
    pub concurrent_streams: NonZeroU32,
    /// Maximum length of a request's headers in bytes, as HTTP/2 counts them: names, values, and 32
    /// bytes for each field. Default: 16 KiB. gRPC's libraries accept 8 KiB, and tokens that name
    /// many groups are longer.
    pub header_list: u32,
    /// Interval of keepalive pings. Default: 30 s.
    pub keepalive_interval: Duration,
    /// Maximum time for the answer to a keepalive ping. Default: 10 s. The server also disconnects
    /// a client whose socket has been full for the interval plus this time.
    pub keepalive_timeout: Duration,
    /// Limits on the frames of a connection, per second.
    pub flood: FloodLimits,
    /// Time limits of a connection.
    pub lifetimes: Lifetimes,
}

impl Default for Settings {
    fn default() -> Settings {
        const NEW_CONNECTIONS: NonZeroU32 = NonZeroU32::new(200).unwrap();
        const CONCURRENT_STREAMS: NonZeroU32 = NonZeroU32::new(1000).unwrap();
        Settings {
            connections: None,
            connections_of_address: None,
            new_connections_of_address: NEW_CONNECTIONS,
            concurrent_streams: CONCURRENT_STREAMS,
            header_list: 16 << 10,
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            flood: FloodLimits::default(),
            lifetimes: Lifetimes::default(),
        }
    }
}

impl Settings {
    /// Returns the default for a server whose clients share the address and the connections of one
    /// proxy. That address may have all connections. The rates, and the number of open calls of a
    /// connection, are [`PROXY_FACTOR`] times as high.
    #[must_use]
    pub fn behind_proxy() -> Settings {
        let default = Settings::default();
        let times = |limit: NonZeroU32| limit.saturating_mul(PROXY_FACTOR);
        Settings {
            connections_of_address: Some(NonZeroUsize::MAX),
            new_connections_of_address: times(default.new_connections_of_address),
            concurrent_streams: times(default.concurrent_streams),
            flood: FloodLimits {
                streams: times(default.flood.streams),
                resets: times(default.flood.resets),
                control_frames: times(default.flood.control_frames),
            },
            ..default
        }
    }

    /// Returns the limits for a process that may open this many files.
    ///
    /// # Errors
    ///
    /// If the process may open too few files for the connections that are set, or for any
    /// connection.
    pub fn limits(&self, files: usize) -> Result<Limits, TooFewFiles> {
        let fit = (files - files / 4).min(files.saturating_sub(OTHER_FILES));
        let default = NonZeroUsize::new(CONNECTIONS.min(fit)).unwrap_or(NonZeroUsize::MIN);
        let connections = self.connections.unwrap_or(default);
        if connections.get().saturating_add(OTHER_FILES) > files {
            return Err(TooFewFiles {
                files,
                fitting: (self.connections)
                    .and_then(|_| NonZeroUsize::new(files.saturating_sub(OTHER_FILES))),
            });
        }
        let quarter = NonZeroUsize::new(connections.get() / 4).unwrap_or(NonZeroUsize::MIN);
        let new = f64::from(self.new_connections_of_address.get());
        Ok(Limits {
            connections,
            of_address: self.connections_of_address.unwrap_or(quarter),
            new_of_address: Rate {
                per_second: new,
                burst: new,
            },
            concurrent_streams: self.concurrent_streams.get(),
            header_list: self.header_list.max(LEAST_HEADER_LIST),
            keepalive_interval: self.keepalive_interval,
            keepalive_timeout: self.keepalive_timeout,
            flood: self.flood,
            lifetimes: self.lifetimes,
            blocked: self
                .keepalive_interval
                .saturating_add(self.keepalive_timeout),
        })
    }
}

/// The process may open fewer files than its connections need.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this process may open only {files} files, and a server needs {OTHER_FILES} besides its \
     connections; raise the limit (`ulimit -n`, or LimitNOFILE of the systemd unit){}",
    .fitting.map_or_else(String::new, |fitting| format!(", or set at most {fitting}"))
)]
pub struct TooFewFiles {
    /// Number of files that the process may open.
    pub files: usize,
    /// Maximum number of connections that would fit, if the settings have more and at least one
    /// would fit.
    pub fitting: Option<NonZeroUsize>,
}

/// Limits of connections in this process: [`Settings`] with all defaults resolved.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of connections.
    pub connections: NonZeroUsize,
    /// Maximum number of connections of one address.
    pub of_address: NonZeroUsize,
    /// Maximum rate of new connections of one address.
    pub new_of_address: Rate,
    /// Maximum number of open calls of a connection.
    pub concurrent_streams: u32,
    /// Maximum length of a request's headers, in bytes.
    pub header_list: u32,
    /// Interval of keepalive pings.
    pub keepalive_interval: Duration,
    /// Maximum time for the answer to a keepalive ping.
    pub keepalive_timeout: Duration,
    /// Limits on the frames of a connection, per second.
    pub flood: FloodLimits,
    /// Time limits of a connection.
    pub lifetimes: Lifetimes,
    /// Maximum time for which a connection's socket may stay full.
    pub blocked: Duration,
}

impl Limits {
    pub(crate) fn admission(&self) -> Admission {
        Admission::new(self.connections, self.of_address, self.new_of_address)
    }
}

/// Raises the process's limit on open files to the maximum if the system allows it. Returns the
/// limit. Processes begin with a lower limit for the sake of `select`, which this program does not
/// use.
#[must_use]
pub fn open_files() -> usize {
    let files = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: files.maximum,
        maximum: files.maximum,
    };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => files.maximum,
        Err(_) => files.current,
    };
    // `None` means no limit.
    allowed.map_or(usize::MAX, |files| {
        usize::try_from(files).unwrap_or(usize::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_stay_below_the_file_limit() {
        let limits = |connections: Option<usize>, files| {
            let settings = Settings {
                connections: connections.and_then(NonZeroUsize::new),
                ..Settings::default()
            };
            let limits = settings.limits(files);
            limits.map(|limits| (limits.connections.get(), limits.of_address.get()))
        };
        assert_eq!(limits(None, 1 << 20), Ok((4096, 1024)));
        assert_eq!(limits(None, 1024), Ok((768, 192)));
        assert_eq!(limits(None, usize::MAX), Ok((4096, 1024)));
        assert_eq!(limits(Some(960), 1024), Ok((960, 240)));
        assert_eq!(limits(None, 65), Ok((1, 1)));
        let too_many = limits(Some(961), 1024).unwrap_err().to_string();
        assert!(too_many.contains("LimitNOFILE"), "{too_many}");
        assert!(too_many.ends_with("or set at most 960"), "{too_many}");
        // 64 files are too few for even one connection.
        for given in [None, Some(1)] {
            let none = limits(given, 64).unwrap_err();
            assert_eq!(none.fitting, None);
            assert!(
                none.to_string()
                    .starts_with("this process may open only 64 files")
            );
        }
    }
}
