//! The arguments of `verify`.

use clap::Args;
use hashfinder_search::Distance;

use crate::arguments::{SpellingArguments, values::distance};

/// Check whether the hash of a secret contains a name.
///
/// Prints a line like those of `find`: the hash, the secret in base64 and in hexadecimal,
/// the distance, the position of the match in the hash (from 0), and the name.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder verify pO0G doctor
  hashfinder verify --hex a4ed06 doctor
  hashfinder verify XeY= hashfinder --ideal-distance 4 --json

The object that --json prints has the fields name, ideal_distance, hashed_name, secret (in base64),
hex, distance, window (the position of the match) and within (whether the distance is at most the
ideal distance).

Exit codes:
  0  the secret is within the distance
  1  the secret is not within the distance
  2  the command line is wrong
  5  the output failed")]
pub(crate) struct VerifyArguments {
    /// Secret in standard base64; `(empty)` for the empty secret
    #[arg(value_name = "SECRET")]
    pub(crate) secret: String,

    /// Word that the hash must contain
    ///
    /// A name has 1 to 28 characters. With another algorithm or encoding, the maximum is the length
    /// of the hash as text.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,

    /// Read the secret as hexadecimal
    #[arg(long)]
    pub(crate) hex: bool,

    /// Maximum distance from NAME: the number of characters that may differ
    #[arg(
        long,
        value_name = "D",
        default_value = "0",
        value_parser = distance,
        allow_negative_numbers = true
    )]
    pub(crate) ideal_distance: Distance,

    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,

    // Last, because these flags have their own headings.
    #[command(flatten)]
    pub(crate) spelling: SpellingArguments,
}
