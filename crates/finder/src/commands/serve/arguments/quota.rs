//! The arguments of `serve`: What addresses and clients may have.

use std::{
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    str::FromStr,
    time::Duration,
};

use clap::Args;

use crate::{
    arguments::values::{duration, positive},
    transport::ClientName,
};

/// Clients send a request with its headers; this is for a network that loses half of the packets.
const REQUEST_TIMEOUT: &str = "10s";

/// An eighth of what two cores answer, and as much as they refuse in a seventh of a core. More from one address is a
/// proxy, for which it can be raised, or a flood.
const MAXIMUM_CALLS_PER_SECOND_PER_ADDRESS: &str = "5000";

/// A program with an old key asks a few times and stops; whoever guesses has 2^256 to try.
const MAXIMUM_REFUSED_CREDENTIALS_PER_SECOND: &str = "10";

/// How many calls may be open for each that may search: most of those that do not are over at once.
const OPEN_CALLS_PER_RPC: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// How many calls may be open at least, at about ten kilobytes each: also where few may search, many may watch
/// or ask after searches.
const LEAST_OPEN_CALLS: NonZeroUsize = NonZeroUsize::new(1000).unwrap();

/// What addresses and clients may have.
#[derive(Args, Debug)]
pub(crate) struct QuotaArguments {
    /// How many searches CLIENT may have at a time, in the place of --maximum-searches-per-client
    ///
    /// CLIENT is an IP address, user: and a user's number, key: and a key's id, jwt: and a token's subject, or
    /// cert: and a certificate's name. May be given more than once.
    #[arg(long, value_name = "CLIENT=N", value_parser = of_client::<NonZeroUsize>)]
    pub(crate) client_searches: Vec<(ClientName, NonZeroUsize)>,

    /// How many hashes CLIENT may have each second, in the place of --maximum-hashes-per-second
    ///
    /// CLIENT is an IP address, user: and a user's number, key: and a key's id, jwt: and a token's subject, or
    /// cert: and a certificate's name. May be given more than once.
    #[arg(long, value_name = "CLIENT=N", value_parser = of_client::<NonZeroU64>)]
    pub(crate) client_hashes_per_second: Vec<(ClientName, NonZeroU64)>,

    /// How many calls an address may begin each second; more are refused
    ///
    /// They are refused before anybody looks who it is. An address has room for as many at once. One of IPv6
    /// is the network of its first 64 bits; behind a Unix socket a user is one. Raise it, and
    /// --maximum-streams-per-second, where many clients come through one proxy.
    #[arg(long, value_name = "N", default_value = MAXIMUM_CALLS_PER_SECOND_PER_ADDRESS)]
    #[arg(value_parser = positive::<NonZeroU32>)]
    pub(crate) maximum_calls_per_second_per_address: NonZeroU32,

    /// How many calls of all kinds may be open; more are refused [default: four times the RPCs that
    /// may search, and at least 1000]
    ///
    /// Each costs about ten kilobytes, whatever it does, until its answer is sent.
    #[arg(long, value_name = "N")]
    #[arg(value_parser = positive::<NonZeroUsize>)]
    pub(crate) maximum_open_calls: Option<NonZeroUsize>,

    /// How many calls of all kinds an address may have open [default: a quarter of all]
    ///
    /// So that one address leaves room for others. Raise it where many clients come through one proxy.
    #[arg(long, value_name = "N")]
    #[arg(value_parser = positive::<NonZeroUsize>)]
    pub(crate) maximum_open_calls_per_address: Option<NonZeroUsize>,

    /// How many of an address's credentials may be refused each second
    ///
    /// Ten times as many at once. Beyond that none from there is looked at, so that guessing costs nothing but
    /// the guesser's time.
    #[arg(long, value_name = "N", default_value = MAXIMUM_REFUSED_CREDENTIALS_PER_SECOND)]
    #[arg(value_parser = positive::<NonZeroU32>)]
    pub(crate) maximum_refused_credentials_per_second: NonZeroU32,

    /// How long a request may take to arrive in whole
    ///
    /// A call whose request does not ends with DEADLINE_EXCEEDED. Where a client sends many messages it is
    /// the first that counts.
    #[arg(long, value_name = "DURATION", default_value = REQUEST_TIMEOUT, value_parser = duration)]
    pub(crate) request_timeout: Duration,
}

impl QuotaArguments {
    /// How many calls may be open where so many may search, and how many of them may be one address's.
    pub(crate) fn open_calls(&self, rpcs: NonZeroUsize) -> (NonZeroUsize, NonZeroUsize) {
        let default = rpcs.saturating_mul(OPEN_CALLS_PER_RPC);
        let default = default.max(LEAST_OPEN_CALLS);
        let all = self.maximum_open_calls.unwrap_or(default);
        let quarter = NonZeroUsize::new(all.get() / 4).unwrap_or(NonZeroUsize::MIN);
        (all, self.maximum_open_calls_per_address.unwrap_or(quarter))
    }
}

fn of_client<N: FromStr>(text: &str) -> Result<(ClientName, N), String> {
    let parts = text.rsplit_once('=');
    let (client, number) = parts.ok_or("give CLIENT=N, for instance 10.0.0.7=4")?;
    Ok((client.parse()?, positive(number)?))
}
