//! The arguments of `estimate`.

use std::str::FromStr;

use clap::Args;
use hashfinder_search::Kernel;

use crate::arguments::{QueryArguments, values::kernel};

/// Tell how likely a hash is to match a name, and how many hashes and how long a search takes.
///
/// The chance is exact for short names and for most others; where it is not, its bounds are shown.
/// A search has no memory: after any number of hashes in vain, all of it is still before it.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder estimate doctor
  hashfinder estimate hashfinder --ideal-distance 3 --rate 1e9
  hashfinder estimate doctor --json

With --json, one object: names, algorithm, encoding, ideal_distance, exact (whether the chance is known exactly),
chance (that one hash matches), hashes (expected, median, p90, p99: how many a search takes on
average, and by how many half, 90% and 99% of all searches have ended), hashes_per_second,
measured (whether that was measured here), seconds (the same four). A chance, and each of the
four, is an object with low and high, which are equal where it is exact.

Exit codes:
  0  told
  2  the command line is wrong
  4  no secret can ever match the name
  5  the output failed")]
pub(crate) struct EstimateArguments {
    /// Hashes per second [default: measured here for a quarter of a second, on a thread for each
    /// core]
    #[arg(long, value_name = "HASHES_PER_SECOND", value_parser = rate, allow_negative_numbers = true)]
    pub(crate) rate: Option<f64>,

    /// The kernel whose rate is measured [default: the fastest that this machine runs]
    #[arg(long, value_name = "NAME", value_parser = kernel)]
    pub(crate) kernel: Option<Kernel>,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,

    // Last, because these flags have headings of their own.
    #[command(flatten)]
    pub(crate) query: QueryArguments,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = f64::from_str(text).ok();
    rate.filter(|rate| *rate >= 1.0 && rate.is_finite())
        .ok_or_else(|| "give a number of hashes from 1 on, for instance 3e8".to_owned())
}
