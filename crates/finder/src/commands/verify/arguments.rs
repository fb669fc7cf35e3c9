//! The arguments of `verify`.

use clap::Args;
use hashfinder_search::Distance;

use crate::arguments::{SpellingArguments, values::distance};

/// Check a secret: what it spells, and how far that is from a name.
///
/// Prints the secret's line as `find` does: the hashed name, the secret in base64 and in
/// hexadecimal, the distance, where in the hashed name the match begins (from 0), and the name.
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
    /// The secret, of any length, in standard base64; `(empty)` for the empty one
    #[arg(value_name = "SECRET")]
    pub(crate) secret: String,

    /// What its hashed name is to contain: 1 to 28 characters, or as many as a hashed name has
    #[arg(value_name = "NAME")]
    pub(crate) name: String,

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

    // Last, because these flags have headings of their own.
    #[command(flatten)]
    pub(crate) spelling: SpellingArguments,
}
