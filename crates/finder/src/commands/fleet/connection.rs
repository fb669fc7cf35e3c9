//! The connection of an operator to a broker.

use anyhow::Result;
use hashfinder_fleet_nats::{Broker, Role};

use crate::{arguments::FleetArguments, exit::Exit, terminal::say};

/// Connects to the broker. If a file is wrong, says so, and returns the exit code.
///
/// Dropping the future ends the attempt.
pub(super) async fn connect(fleet: FleetArguments) -> Result<Result<Broker, Exit>> {
    match Broker::connect(&fleet.options(), Role::Operator).await {
        Ok(broker) => Ok(Ok(broker)),
        Err(wrong) if wrong.is_usage() => {
            say(wrong);
            Ok(Err(Exit::Usage))
        }
        Err(error) => Err(error.into()),
    }
}
