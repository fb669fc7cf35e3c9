//! The connection to a broker.

use std::{
    error::Error,
    fmt, io,
    net::IpAddr,
    path::{Path, PathBuf},
    pin::pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_nats::{
    Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr, Subject, connection::State,
};
use bytes::Bytes;
use hashfinder_system::files;
use hashfinder_tls::error::of_handshake;
use tokio_rustls::rustls;

use crate::{
    credentials::{Credentials, Identity},
    warnings::Warnings,
};

/// The oldest broker whose compare-and-set and whose storage can be relied on: earlier ones have
/// lost streams or let two writers win.
pub const OLDEST_BROKER: (u32, u32, u32) = (2, 12, 3);

/// Pool of an address without one.
const DEFAULT_POOL: &str = "default";

/// Maximum size of a file with credentials or certificates. Those of credentials have one or two
/// kilobytes.
const MOST_BYTES: u64 = 64 << 10;

/// Time for one attempt to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest pause between two attempts to connect. A broker that restarts is back within seconds,
/// and thousands of machines must not all try at once.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// A connection that is silent for twice this time is closed: the other machine is gone.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Number of messages that wait for a subscription's reader. Beyond it, messages are dropped. It is
/// what 10,000 agents send in a second and a half: older messages were repeated since.
const SUBSCRIPTION_CAPACITY: usize = 1 << 14;

/// Number of messages that wait to be sent. Beyond it, messages are dropped. At an answer, a leader
/// sends one to each agent.
const SEND_CAPACITY: usize = 1 << 14;

/// Minimum of a broker's maximum size of a message: its default.
const MESSAGE_BYTES: usize = 1 << 20;

/// Address of the brokers of a fleet: `nats://HOST[:PORT][,HOST[:PORT]...][/POOL]`, or `tls://` for
/// TLS.
///
/// Fleets with different pools on one broker are separate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerAddress {
    tls: bool,
    hosts: Vec<String>,
    pool: Arc<str>,
}

/// A text that is not the address of a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// It has another form.
    #[error(
        "expected nats://HOST[:PORT][/POOL] or tls://HOST[:PORT][/POOL], for example \
         nats://127.0.0.1:4222"
    )]
    Form,
    /// It contains a user or a password, which other users of the machine could see.
    #[error("put the user and the password into a credentials file, not into the address")]
    Credentials,
    /// The name of the pool has other characters than these.
    #[error("the pool's name may have letters, digits, - and _, at most 32 of them")]
    Pool,
}

impl BrokerAddress {
    /// Whether what is sent there is encrypted, or stays on this machine.
    fn is_protected(&self) -> bool {
        let is_here = |host: &String| {
            let address = host.parse::<ServerAddr>();
            address.is_ok_and(|address| {
                let host = address.host();
                let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
                host.eq_ignore_ascii_case("localhost")
                    || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
            })
        };
        self.tls || self.hosts.iter().all(is_here)
    }

    /// Returns the name of the pool.
    #[must_use]
    pub fn pool(&self) -> &Arc<str> {
        &self.pool
    }
}

impl FromStr for BrokerAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<BrokerAddress, InvalidAddress> {
        let (tls, rest) = match text.split_once("://") {
            Some(("nats", rest)) => (false, rest),
            Some(("tls", rest)) => (true, rest),
            _ => return Err(InvalidAddress::Form),
        };
        if rest.contains('@') {
            return Err(InvalidAddress::Credentials);
        }
        let (hosts, pool) = match rest.split_once('/') {
            Some((hosts, "")) => (hosts, DEFAULT_POOL),
            Some((hosts, pool)) => (hosts, pool),
            None => (rest, DEFAULT_POOL),
        };
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if pool.len() > 32 || !pool.chars().all(is_allowed) {
            return Err(InvalidAddress::Pool);
        }
        let scheme = if tls { "tls" } else { "nats" };
        let hosts: Vec<String> = hosts
            .split(',')
            .map(|host| format!("{scheme}://{host}"))
            .collect();
        let is_host = |host: &String| {
            let address = host.parse::<ServerAddr>();
            address.is_ok_and(|address| !address.host().is_empty() && address.port() > 0)
        };
        if !hosts.iter().all(is_host) {
            return Err(InvalidAddress::Form);
        }
        Ok(BrokerAddress {
            tls,
            hosts,
            pool: pool.into(),
        })
    }
}

impl fmt::Display for BrokerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "tls://" } else { "nats://" };
        f.write_str(scheme)?;
        for (number, host) in self.hosts.iter().enumerate() {
            if number > 0 {
                f.write_str(",")?;
            }
            f.write_str(host.strip_prefix(scheme).unwrap_or(host))?;
        }
        if *self.pool != *DEFAULT_POOL {
            write!(f, "/{}", self.pool)?;
        }
        Ok(())
    }
}

/// How to connect to a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerOptions {
    /// Where the broker is.
    pub address: BrokerAddress,
    /// File with the credentials: a `.creds` file of NATS, or a line `SEED`, `USER:SEED` or
    /// `USER:PASSWORD`, where SEED is that of an NKey.
    pub credentials: Option<PathBuf>,
    /// Certificate authorities to trust (PEM), instead of those of the system.
    pub tls_ca: Option<PathBuf>,
}

impl BrokerOptions {
    /// Checks the files, as [`Broker::connect`] does.
    ///
    /// # Errors
    ///
    /// If a file is wrong, or if its password would be sent unencrypted.
    pub fn check(&self) -> Result<(), ConnectError> {
        let credentials = self.read_credentials()?;
        self.add_to(ConnectOptions::new(), credentials).map(drop)
    }

    /// Reads the file with the credentials, if there is one.
    fn read_credentials(&self) -> Result<Option<Credentials>, ConnectError> {
        let Some(path) = &self.credentials else {
            return Ok(None);
        };
        let wrong = |why| ConnectError::File {
            path: path.clone(),
            why,
        };
        let credentials = Credentials::parse(&read(path)?).map_err(wrong)?;
        if credentials.is_password() && !self.address.is_protected() {
            let why = "a password would be sent unencrypted to another machine; use tls:// or an \
                       NKey";
            return Err(wrong(why.to_owned()));
        }
        Ok(Some(credentials))
    }

    /// Returns the identity of an agent with these credentials.
    pub(crate) fn identity(&self) -> Result<Identity, ConnectError> {
        let (Some(credentials), Some(path)) = (self.read_credentials()?, &self.credentials) else {
            return Ok(Identity::anyone());
        };
        credentials.identity().map_err(|why| ConnectError::File {
            path: path.clone(),
            why,
        })
    }

    /// Adds the credentials, and the certificate authorities.
    fn add_to(
        &self,
        mut nats: ConnectOptions,
        credentials: Option<Credentials>,
    ) -> Result<ConnectOptions, ConnectError> {
        if let (Some(credentials), Some(path)) = (credentials, &self.credentials) {
            nats = credentials
                .add_to(nats)
                .map_err(|error| ConnectError::File {
                    path: path.clone(),
                    why: format!("not a NATS credentials file: {error}"),
                })?;
        }
        if let Some(path) = &self.tls_ca {
            check_authorities(path)?;
            nats = nats.add_root_certificates(path.clone());
        }
        Ok(nats)
    }
}

/// Why a machine cannot be part of a fleet.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A file cannot be read, or is not what it should be.
    #[error("{path}: {why}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The broker is too old.
    #[error(
        "the broker {address} is NATS {version}; hashfinder needs {major}.{minor}.{patch} or later",
        major = OLDEST_BROKER.0, minor = OLDEST_BROKER.1, patch = OLDEST_BROKER.2
    )]
    TooOld {
        /// Where it is.
        address: BrokerAddress,
        /// Its version.
        version: String,
    },
    /// The broker rejects the credentials.
    #[error(
        "the broker {address} rejects {}", match .credentials {
            Some(path) => format!("the credentials in {}", path.display()),
            None => "a connection without credentials; use --fleet-credentials PATH".to_owned(),
        }
    )]
    Unauthorized {
        /// Where it is.
        address: BrokerAddress,
        /// The file with the credentials, if there is one.
        credentials: Option<PathBuf>,
    },
    /// The connection cannot be encrypted.
    #[error("no TLS connection to the broker {address}: {why}")]
    Tls {
        /// Where it is.
        address: BrokerAddress,
        /// What is wrong.
        why: String,
    },
    /// The broker cannot be reached, or not all of it works yet.
    #[error("the broker {address} cannot be reached: {why}")]
    Unreachable {
        /// Where it is.
        address: BrokerAddress,
        /// What is wrong.
        why: String,
    },
    /// The broker lacks something that a fleet needs.
    #[error("the broker {address} {why}")]
    Unfit {
        /// Where it is.
        address: BrokerAddress,
        /// What it lacks.
        why: String,
    },
}

impl ConnectError {
    /// Whether a file that the options name is wrong.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, ConnectError::File { .. })
    }

    /// Whether a later attempt may succeed although nothing is changed here.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self, ConnectError::Unreachable { .. })
    }
}

/// First part of the subjects to which replies are sent.
pub(crate) const INBOX: &str = "_INBOX.";

/// What a machine is to its fleet. Replies to it have subjects of their own, so that rights can
/// name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role<'a> {
    /// An agent, with its ID.
    Agent(&'a str),
    /// A server, with its ID.
    Server(&'a str),
    /// A command that shows or changes the fleet.
    Operator,
}

/// Writes the role as tokens of a subject.
impl fmt::Display for Role<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Agent(id) => write!(f, "agent.{id}"),
            Role::Server(id) => write!(f, "server.{id}"),
            Role::Operator => f.write_str("operator"),
        }
    }
}

/// A connection to a broker, which reconnects by itself. Clones share it.
#[derive(Clone, Debug)]
pub struct Broker {
    pub(crate) client: Client,
    pub(crate) address: BrokerAddress,
    /// Warnings about messages that were not sent.
    warnings: Arc<Warnings>,
}

impl Broker {
    /// Connects to a broker. Its list of connections shows the role.
    ///
    /// Dropping the future ends the attempt.
    ///
    /// # Errors
    ///
    /// If a file is wrong, or if the broker cannot be reached, rejects the credentials or is too
    /// old.
    pub async fn connect(options: &BrokerOptions, role: Role<'_>) -> Result<Broker, ConnectError> {
        let BrokerOptions {
            address,
            credentials,
            ..
        } = options;
        let broker = address.clone();
        let warnings = Warnings::default();
        let nats = ConnectOptions::new()
            .name(role.to_string())
            .custom_inbox_prefix(format!("{INBOX}{role}"))
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .client_capacity(SEND_CAPACITY)
            .require_tls(address.tls)
            .max_reconnects(None)
            .reconnect_delay_callback(pause)
            .event_callback(move |event| {
                match &event {
                    Event::Connected => tracing::info!(broker = %broker, "connected to the broker"),
                    Event::Disconnected => {
                        tracing::warn!(broker = %broker, "lost the connection to the broker");
                    }
                    // Each message that is dropped causes one, and so does each attempt to connect.
                    other if warnings.may_warn() => {
                        tracing::warn!(broker = %broker, "broker: {other}");
                    }
                    other => tracing::debug!(broker = %broker, "broker: {other}"),
                }
                async {}
            });
        let nats = options.add_to(nats, options.read_credentials()?)?;
        let client = nats.connect(&address.hosts[..]).await;
        let client = client.map_err(|error| {
            let address = address.clone();
            let why = error.to_string();
            if let Some(error) = tls_error(&error) {
                let why = of_handshake(error, "broker");
                return ConnectError::Tls { address, why };
            }
            match error.kind() {
                ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                    let credentials = credentials.clone();
                    ConnectError::Unauthorized {
                        address,
                        credentials,
                    }
                }
                ConnectErrorKind::Tls => ConnectError::Tls { address, why },
                _ => ConnectError::Unreachable { address, why },
            }
        })?;
        let broker = Broker {
            client,
            address: address.clone(),
            warnings: Arc::default(),
        };
        broker.check_broker()?;
        Ok(broker)
    }

    /// Whether there is a connection now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Checks the version and the limits of the broker that this machine is connected to now.
    fn check_broker(&self) -> Result<(), ConnectError> {
        let (info, address) = (self.client.server_info(), self.address.clone());
        let version = parse_version(&info.version);
        if version.is_none_or(|version| version < OLDEST_BROKER) {
            let version = info.version;
            return Err(ConnectError::TooOld { address, version });
        }
        if info.max_payload < MESSAGE_BYTES {
            let why = format!(
                "accepts messages of {} bytes at most; set its max_payload to {MESSAGE_BYTES}",
                info.max_payload
            );
            return Err(ConnectError::Unfit { address, why });
        }
        Ok(())
    }

    /// Sends a message to a subject of the fleet's pool. Never waits for the broker: without a
    /// connection, or if too many messages wait, it is dropped. A later message has the same
    /// effect.
    pub(crate) fn publish(&self, subject: &str, bytes: Bytes) {
        self.send(self.subject(subject).into(), bytes);
    }

    /// Sends a message or a reply to any subject, as [`publish`](Self::publish) does.
    pub(crate) fn send(&self, subject: Subject, bytes: Bytes) {
        if !self.is_connected() {
            return;
        }
        let sent = pin!(self.client.publish(subject, bytes));
        let why = match sent.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => return,
            Poll::Ready(Err(error)) => error.to_string(),
            Poll::Pending => "too many messages wait for the broker".to_owned(),
        };
        if self.warnings.may_warn() {
            tracing::warn!("messages were not sent: {why}");
        }
    }

    /// Returns a subject of the fleet's pool.
    pub(crate) fn subject(&self, parts: &str) -> String {
        format!("hf.{}.{parts}", self.address.pool)
    }
}

/// Returns the TLS error that has caused another one, if it was one.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<io::Error>().map(io::Error::get_ref);
        let found = match inner {
            Some(inner) => inner.and_then(|inner| inner.downcast_ref()),
            None => error.downcast_ref(),
        };
        if found.is_some() {
            return found;
        }
        cause = error.source();
    }
    None
}

/// Returns the pause before an attempt to connect.
fn pause(attempts: usize) -> Duration {
    let longest = LONGEST_PAUSE.min(Duration::from_millis(100 << attempts.min(6)));
    longest.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// Parses `2.12.3` or `2.12.3-beta.1`.
fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let release = text.split(['-', '+']).next()?;
    let mut numbers = release.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

/// Checks that a file has certificates: otherwise, only the first connection would show that it has
/// none, as an unknown authority.
fn check_authorities(path: &Path) -> Result<(), ConnectError> {
    let text = read(path)?;
    let begin = b"-----BEGIN CERTIFICATE-----";
    if text.windows(begin.len()).any(|part| part == begin) {
        return Ok(());
    }
    Err(ConnectError::File {
        path: path.to_owned(),
        why: "expected certificates in PEM".to_owned(),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, ConnectError> {
    let read: io::Result<Vec<u8>> = files::read(path, MOST_BYTES);
    read.map_err(|error| ConnectError::File {
        path: path.to_owned(),
        why: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed() {
        for (text, shown, pool) in [
            ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222", "default"),
            ("nats://broker/", "nats://broker", "default"),
            ("tls://a:1,b:2/render", "tls://a:1,b:2/render", "render"),
            (
                "nats://[::1]:4222/x_Y-1",
                "nats://[::1]:4222/x_Y-1",
                "x_Y-1",
            ),
        ] {
            let address: BrokerAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(&**address.pool(), pool);
        }
        for (text, error) in [
            ("", InvalidAddress::Form),
            ("127.0.0.1:4222", InvalidAddress::Form),
            ("http://broker", InvalidAddress::Form),
            ("nats://", InvalidAddress::Form),
            ("nats://a,,b", InvalidAddress::Form),
            ("nats://broker:port", InvalidAddress::Form),
            ("nats://me:secret@broker", InvalidAddress::Credentials),
            ("nats://broker/a.b", InvalidAddress::Pool),
            ("nats://broker/a/b", InvalidAddress::Pool),
        ] {
            assert_eq!(text.parse::<BrokerAddress>(), Err(error), "{text}");
        }
    }

    #[test]
    fn passwords_are_sent_encrypted_or_to_this_machine() {
        for (text, is_protected) in [
            ("nats://127.0.0.1", true),
            ("nats://[::1]:4222", true),
            ("nats://localhost:4222/pool", true),
            ("tls://broker.example", true),
            ("nats://broker.example", false),
            ("nats://127.0.0.1,10.0.0.1", false),
        ] {
            let address: BrokerAddress = text.parse().unwrap();
            assert_eq!(address.is_protected(), is_protected, "{text}");
        }
    }

    #[test]
    fn versions_are_compared_by_number() {
        for (text, version) in [
            ("2.12.3", Some((2, 12, 3))),
            ("2.15.1-beta.2", Some((2, 15, 1))),
            ("2.9.10", Some((2, 9, 10))),
            ("2.12", None),
            ("", None),
        ] {
            assert_eq!(parse_version(text), version);
        }
        assert!(parse_version("2.9.10").unwrap() < OLDEST_BROKER);
        assert!(parse_version("2.12.10").unwrap() > OLDEST_BROKER);
    }

    #[test]
    fn pauses_grow_to_their_maximum() {
        for attempts in [1, 2, 5, 50, 5_000] {
            let pause = pause(attempts);
            assert!(pause >= Duration::from_millis(50) && pause <= LONGEST_PAUSE);
        }
    }
}
