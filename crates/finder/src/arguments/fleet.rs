//! The arguments for the broker of a fleet.

use std::path::PathBuf;

use clap::Args;
use hashfinder_fleet_nats::{BrokerAddress, BrokerOptions};

/// The broker of a fleet, for commands that need one.
#[derive(Args, Debug)]
pub(crate) struct FleetArguments {
    /// NATS broker of the fleet: nats://HOST:PORT or, with TLS, tls://HOST:PORT
    ///
    /// Separate several brokers of a cluster by commas. Several fleets can use one broker, each
    /// with a name: nats://HOST:PORT/NAME.
    #[arg(
        long,
        value_name = "URL",
        help_heading = "Fleet",
        default_value = "nats://127.0.0.1:4222"
    )]
    fleet: BrokerAddress,

    #[command(flatten)]
    files: FleetFiles,
}

/// The files for a connection to a broker.
#[derive(Args, Debug)]
pub(crate) struct FleetFiles {
    /// File with the broker's credentials
    ///
    /// A file of `fleet nats-config`, a .creds file of NATS, or a line SEED, USER:SEED or
    /// USER:PASSWORD, where SEED is that of an NKey. A password is sent only with TLS or to this
    /// machine.
    #[arg(long, value_name = "PATH", help_heading = "Fleet")]
    fleet_credentials: Option<PathBuf>,

    /// Certificate authorities to trust for tls:// (PEM) [default: those of the system]
    #[arg(long, value_name = "PATH", help_heading = "Fleet")]
    fleet_ca: Option<PathBuf>,
}

impl FleetArguments {
    /// Returns how to connect to the broker.
    pub(crate) fn options(self) -> BrokerOptions {
        self.files.options(self.fleet)
    }
}

impl FleetFiles {
    /// Whether no file is given.
    pub(crate) fn are_default(&self) -> bool {
        self.fleet_credentials.is_none() && self.fleet_ca.is_none()
    }

    /// Returns how to connect to this broker.
    pub(crate) fn options(self, address: BrokerAddress) -> BrokerOptions {
        BrokerOptions {
            address,
            credentials: self.fleet_credentials,
            tls_ca: self.fleet_ca,
        }
    }
}
