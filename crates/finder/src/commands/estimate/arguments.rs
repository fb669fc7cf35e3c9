//! The arguments of `estimate`.

use std::str::FromStr;

use clap::Args;
use hashfinder_search::Kernel;

use crate::arguments::{QueryArguments, values::kernel};

/// Estimate how many hashes and how much time a search takes.
///
/// Also prints the chance that one hash matches. If the exact chance takes too long to compute,
/// which is rare, lower and upper bounds are printed.
///
/// A search has no memory: however long it has run, the estimate for the rest of it stays the same.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder estimate doctor
  hashfinder estimate hashfinder --ideal-distance 3 --rate 1e9
  hashfinder estimate doctor --json

The object that --json prints has the fields names, algorithm, encoding, ideal_distance, exact
(whether the chance is exact), chance (that one hash matches), hashes (expected, median, p90 and
p99: the hashes of a search on average, and within which 50%, 90% and 99% of searches finish),
hashes_per_second, measured (whether the rate was measured), and seconds (the same four as hashes).
The chance and each of the four is an object with low and high, which are equal if it is exact.

Exit codes:
  0  estimated
  2  the command line is wrong
  4  no secret can ever match the name
  5  the output failed")]
pub(crate) struct EstimateArguments {
    /// Hashes per second [default: measured on all cores of this machine]
    ///
    /// Measuring takes a quarter of a second.
    #[arg(long, value_name = "HASHES_PER_SECOND", value_parser = rate, allow_negative_numbers = true)]
    pub(crate) rate: Option<f64>,

    /// Kernel to measure [default: the fastest one of this machine]
    #[arg(long, value_name = "NAME", value_parser = kernel)]
    pub(crate) kernel: Option<Kernel>,

    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,

    // Last, because these flags have their own headings.
    #[command(flatten)]
    pub(crate) query: QueryArguments,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = f64::from_str(text).ok();
    rate.filter(|rate| *rate >= 1.0 && rate.is_finite())
        .ok_or_else(|| "expected a number of hashes of at least 1, such as 3e8".to_owned())
}
