//! The arguments of `serve`: What addresses and clients may have.

use std::{
    collections::HashMap,
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    str::FromStr,
    time::Duration,
};

use clap::Args;
use hashfinder_search::Quota;
use hashfinder_server::Calls;
use hashfinder_transport::ClientName;

use crate::arguments::values::{duration, positive, shown};

/// What addresses and clients may have.
#[derive(Args, Debug)]
pub(super) struct QuotaArguments {
    /// How many searches CLIENT may have at a time, in the place of --maximum-searches-per-client
    ///
    /// CLIENT is an IP address, user: and a user's number, key: and a key's id, jwt: and a token's
    /// subject, or cert: and a certificate's name. May be given more than once.
    #[arg(long, value_name = "CLIENT=N", value_parser = of_client::<NonZeroUsize>)]
    client_searches: Vec<(ClientName, NonZeroUsize)>,

    /// How many hashes CLIENT may have each second, in the place of --maximum-hashes-per-second
    ///
    /// CLIENT is an IP address, user: and a user's number, key: and a key's id, jwt: and a token's
    /// subject, or cert: and a certificate's name. May be given more than once.
    #[arg(long, value_name = "CLIENT=N", value_parser = of_client::<NonZeroU64>)]
    client_hashes_per_second: Vec<(ClientName, NonZeroU64)>,

    /// How many calls an address may begin each second; more are refused
    ///
    /// They are refused before anybody looks who it is. An address has room for as many at once. One of IPv6
    /// is the network of its first 64 bits; behind a Unix socket a user is one. Raise it, and
    /// --maximum-streams-per-second, where many clients come through one proxy.
    #[arg(long, value_name = "N", default_value_t = Calls::default().per_second_of_address)]
    #[arg(value_parser = positive::<NonZeroU32>)]
    maximum_calls_per_second_per_address: NonZeroU32,

    /// How many calls of all kinds may be open; more are refused [default: four times the RPCs that
    /// may search, and at least 1000]
    ///
    /// Each costs about ten kilobytes, whatever it does, until its answer is sent.
    #[arg(long, value_name = "N")]
    #[arg(value_parser = positive::<NonZeroUsize>)]
    maximum_open_calls: Option<NonZeroUsize>,

    /// How many calls of all kinds an address may have open [default: a quarter of all]
    ///
    /// So that one address leaves room for others. Raise it where many clients come through one
    /// proxy.
    #[arg(long, value_name = "N")]
    #[arg(value_parser = positive::<NonZeroUsize>)]
    maximum_open_calls_per_address: Option<NonZeroUsize>,

    /// How many of an address's credentials may be refused each second
    ///
    /// Ten times as many at once. Beyond that none from there is looked at, so that guessing costs
    /// nothing but the guesser's time.
    #[arg(long, value_name = "N", default_value_t = Calls::default().refused_credentials_per_second)]
    #[arg(value_parser = positive::<NonZeroU32>)]
    maximum_refused_credentials_per_second: NonZeroU32,

    /// How long a request may take to arrive in whole
    ///
    /// A call whose request does not ends with DEADLINE_EXCEEDED. Where a client sends many
    /// messages it is the first that counts.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    #[arg(default_value = shown(Calls::default().request_timeout))]
    request_timeout: Duration,
}

impl QuotaArguments {
    pub(super) fn calls(&self) -> Calls {
        Calls {
            per_second_of_address: self.maximum_calls_per_second_per_address,
            open: self.maximum_open_calls,
            open_of_address: self.maximum_open_calls_per_address,
            refused_credentials_per_second: self.maximum_refused_credentials_per_second,
            request_timeout: self.request_timeout,
        }
    }

    /// Returns the quotas of the clients that the flags name.
    pub(super) fn quotas(self) -> HashMap<ClientName, Quota> {
        let mut quotas: HashMap<ClientName, Quota> = HashMap::new();
        for (client, searches) in self.client_searches {
            quotas.entry(client).or_default().searches = Some(searches.get());
        }
        for (client, hashes) in self.client_hashes_per_second {
            quotas.entry(client).or_default().hashes_per_second = Some(hashes);
        }
        quotas
    }
}

fn of_client<N: FromStr>(text: &str) -> Result<(ClientName, N), String> {
    let parts = text.rsplit_once('=');
    let (client, number) = parts.ok_or("give CLIENT=N, for instance 10.0.0.7=4")?;
    Ok((client.parse()?, positive(number)?))
}
