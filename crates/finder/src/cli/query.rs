//! What is searched for: the arguments that `find` and `estimate` share.

use clap::Args;
use hashfinder_search::{DesiredName, Distance};

use super::distance;

#[derive(Args, Clone, Debug)]
pub(crate) struct QueryArguments {
    /// What the hashed name is to contain, in any case: 1 to 28 characters
    #[arg(value_name = "NAME", required = true)]
    pub(crate) name: Option<DesiredName>,

    /// How far from the name a secret may be, in characters
    #[arg(
        long,
        value_name = "D",
        default_value = "0",
        value_parser = distance,
        allow_negative_numbers = true
    )]
    pub(crate) ideal_distance: Distance,
}
