//! What is measured.

use std::{hint::black_box, time::Duration};

use hashfinder_search::{
    Anchor, DesiredName, Distance, Encoding, Filter, Impossible, Kernel, Query, Spelling,
    kernels::{Block, CharSet, Hit, Hits, Secrets, Target, Text},
    throughput::{TURN, Throughput, measure},
};
use hashfinder_system::running_time::RunningTime;

use super::BenchArguments;
use crate::terminal::as_text;

/// Number of secrets on which each kernel is checked before it is measured.
const CHECKED: u64 = 1 << 18;

/// Where the checked secrets begin: within a kernel's row, so that incomplete rows are checked,
/// too.
const CHECKED_FROM: u64 = 12_345;

/// Length, in bytes, of the secrets that a search tries in its first seconds.
const USUAL_LENGTH: u32 = 4;

/// Length, in letters and digits, of what the other kinds of searches try.
const KIND_LENGTH: u32 = 6;

/// A search or, without a filter, only the computation of digests.
pub(super) struct Case {
    pub(super) title: String,
    secrets: Secrets,
    length: u32,
    /// Number of secrets of this length.
    count: u64,
    filter: Option<Filter>,
}

/// The result of trying some secrets: the sum of the digests, or the hits.
pub(super) type Answer = (u32, Vec<Hit>);

/// Returns the cases to measure. Without any name, these are a search for `doctor` and the other
/// kinds of searches.
///
/// # Errors
///
/// If no secret can ever match one of the names.
pub(super) fn cases(arguments: &BenchArguments) -> Result<Vec<Case>, Impossible> {
    let (length, distance) = (arguments.length, arguments.ideal_distance);
    let title = |title: String| match length {
        USUAL_LENGTH => title,
        _ => format!("{title}, {length} bytes"),
    };
    let mut cases = vec![Case::bytes(title("sha1".to_owned()), length, None)];
    let is_default = arguments.names.is_empty() && arguments.sets.is_empty();
    let usual = is_default.then(|| "doctor".parse().expect("doctor consists of base64 digits"));
    for name in arguments.names.iter().chain(&usual) {
        let query = Query::new(name.clone(), distance)?;
        let name = as_text(name.as_str());
        let filter = query.matcher().filter().cloned();
        cases.push(Case::bytes(
            title(format!("{name} at distance {distance}")),
            length,
            filter,
        ));
    }
    for &count in &arguments.sets {
        let filter = filter_of_made_up_names(count, distance);
        cases.push(Case::bytes(
            title(format!("{count} names at distance {distance}")),
            length,
            Some(filter),
        ));
    }
    if is_default {
        cases.extend(kinds()?);
    }
    Ok(cases)
}

/// Returns the kinds of searches apart from those for a name in base64 among all byte strings.
fn kinds() -> Result<Vec<Case>, Impossible> {
    let kind = |title: &str, prefix: &[u8], suffix: &[u8], name: &str, spelling| {
        let name = DesiredName::new(name, spelling).expect("these names fit their encodings");
        let query = Query::new(name, Distance::ZERO)?;
        Ok(Case {
            title: title.to_owned(),
            secrets: Secrets::new(prefix, ALPHANUMERIC, suffix),
            length: KIND_LENGTH,
            count: (ALPHANUMERIC.len() as u64).pow(KIND_LENGTH),
            filter: query.matcher().filter().cloned(),
        })
    };
    let spelling = |encoding, anchor| Spelling {
        encoding,
        anchor,
        ..Spelling::default()
    };
    let prefix = spelling(Encoding::Hex, Anchor::Prefix);
    // The end of the block has room for what follows, as with the commands `git-commit` and
    // `hashcash`.
    let (commit, stamp) = (
        [b'x'; 290],
        b"1:44:261201:someone@example.com::c29tZSByYW5kb20gYnl0ZXMsIGFnYWlu:",
    );
    Ok(vec![
        kind("git-commit c0ffee1", &commit, b"\n", "c0ffee1", prefix)?,
        kind("hashcash, 44 bits", stamp, b"", "00000000000", prefix)?,
        kind(
            "doctor, after a prefix",
            b"user=alice&id=",
            b"",
            "doctor",
            Spelling::default(),
        )?,
        kind(
            "c0ffee1 in hex",
            b"",
            b"",
            "c0ffee1",
            spelling(Encoding::Hex, Anchor::Anywhere),
        )?,
        kind(
            "doctor in base32",
            b"",
            b"",
            "DOCTOR",
            spelling(Encoding::Base32, Anchor::Anywhere),
        )?,
    ])
}

const ALPHANUMERIC: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Returns a filter for `count` made-up names, which are the same in every run.
fn filter_of_made_up_names(count: u16, distance: Distance) -> Filter {
    // The random numbers are those of Marsaglia's "Xorshift RNGs", 2003.
    let mut state = 0x2545_f491_u32;
    let mut below = |below: u32| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state % below
    };
    let names: Vec<Vec<CharSet>> = (0..count)
        .map(|_| {
            let length = 6 + below(5);
            let letters = (0..length).map(|_| b'a' + below(26) as u8);
            let set = |letter| CharSet::digits_where(|c| c.eq_ignore_ascii_case(&letter));
            letters.map(set).collect()
        })
        .collect();
    let targets = names.iter().map(|name| Target {
        characters: name,
        max_distance: distance.get(),
        at: None,
    });
    Filter::any(Text::Base64, targets)
}

impl Case {
    /// Creates a case with all byte strings of a length.
    fn bytes(title: String, length: u32, filter: Option<Filter>) -> Case {
        let bytes: [u8; 256] = std::array::from_fn(|byte| byte as u8);
        Case {
            title,
            secrets: Secrets::new(b"", &bytes, b""),
            length,
            count: 1 << (8 * length),
            filter,
        }
    }

    /// Tries some secrets with `kernel`. Returns a result that must be the same for every kernel.
    pub(super) fn answer(&self, kernel: Kernel) -> Answer {
        self.turn(
            kernel,
            &self.secrets.block(self.length, CHECKED_FROM, CHECKED),
        )
    }

    fn turn(&self, kernel: Kernel, block: &Block<'_>) -> Answer {
        let Some(filter) = &self.filter else {
            return (kernel.digest_sum(block), Vec::new());
        };
        let mut hits = Hits::with_limit(usize::MAX);
        kernel.scan(block, filter, &mut hits);
        (0, hits.to_vec())
    }

    /// Measures, for `time`, how many secrets up to `threads` threads try per second.
    pub(super) fn throughput(&self, kernel: Kernel, threads: usize, time: Duration) -> Throughput {
        let share = self.count / threads as u64 / TURN * TURN;
        // If there are more threads than turns, some threads try the same secrets.
        let share = share.max(TURN);
        let mut running = RunningTime::start();
        measure(
            threads,
            time,
            || running.read(),
            |thread, tried| {
                let first = thread as u64 * share % (self.count - TURN);
                let first = (first + tried % share).min(self.count - TURN);
                let block = self.secrets.block(self.length, first, TURN);
                black_box(self.turn(kernel, &block));
                TURN
            },
        )
    }
}
