//! The arguments of `bench`.

use std::{num::NonZeroUsize, str::FromStr, time::Duration};

use clap::Args;
use hashfinder_search::{DesiredName, Distance, Kernel};

use crate::arguments::values::{distance, kernel, number, threads};

/// One kernel or all of them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KernelChoice {
    All,
    One(Kernel),
}

/// Measure the speed of each kernel, and check its results.
///
/// A kernel is an implementation of SHA-1 for certain CPU instructions. Each one is measured when
/// it only hashes (the case sha1) and when it searches, on one thread and on all threads.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder bench
  hashfinder bench --name doctor --name hashfinder --ideal-distance 1 --seconds 5 --json

Exit codes:
    0  measured
    2  the command line is wrong
    4  no secret can ever match a name
    5  a kernel returned wrong results, too few threads started, or the output failed
  130  stopped by ctrl-C (129: SIGHUP, 131: SIGQUIT, 143: SIGTERM)")]
pub(crate) struct BenchArguments {
    /// Kernel to measure, or all
    #[arg(long, value_name = "NAME", default_value = "all", value_parser = kernel_or_all)]
    pub(crate) kernel: KernelChoice,

    /// Number of threads, besides one thread [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<NonZeroUsize>,

    /// Name to search for; repeatable
    ///
    /// Without --name and --names, it searches for doctor, and measures the other kinds of
    /// searches: after a prefix, in hexadecimal and base32, for Git commits and hashcash stamps.
    #[arg(long = "name", value_name = "NAME")]
    pub(crate) names: Vec<DesiredName>,

    /// Number of generated names to search for at once; repeatable
    ///
    /// They have 6 to 10 letters, and are the same in each run.
    #[arg(long = "names", value_name = "N", value_parser = number(1..=u16::MAX))]
    pub(crate) sets: Vec<u16>,

    /// Distance to search at
    #[arg(long, value_name = "D", default_value = "0", value_parser = distance)]
    pub(crate) ideal_distance: Distance,

    /// Length of the secrets in bytes
    #[arg(long, value_name = "L", default_value = "4", value_parser = number::<u32>(3..=7))]
    pub(crate) length: u32,

    /// Duration of each measurement in seconds
    #[arg(long, value_name = "S", default_value = "2", value_parser = seconds)]
    pub(crate) seconds: Duration,

    /// Print one JSON object per row
    ///
    /// Its fields are kernel, case, threads and hashes_per_second.
    #[arg(long)]
    pub(crate) json: bool,
}

fn kernel_or_all(text: &str) -> Result<KernelChoice, String> {
    match text {
        "all" => Ok(KernelChoice::All),
        name => kernel(name).map(KernelChoice::One),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = f64::from_str(text).ok().filter(|seconds| *seconds > 0.0);
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "expected a number of seconds above 0".to_owned())
}
