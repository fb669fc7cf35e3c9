//! Tests of every kernel that this machine can run, against an [oracle].

mod oracle;

use data_encoding::BASE64;
use hashfinder_kernels::{Block, Filter, Hits, Kernel, Secrets, Text};
use oracle::{Search, Wanted};
use proptest::prelude::*;

/// A name at any place of base64, in either case, with the maximum distance.
type Target<'a> = (&'a str, u8);

/// Returns the search for these names among all byte strings.
fn all(targets: &[Target<'_>]) -> Search {
    let wanted = targets.iter().map(|(name, max_distance)| Wanted {
        name: (*name).to_owned(),
        max_distance: *max_distance,
        at: None,
        case_sensitive: false,
    });
    Search {
        prefix: Vec::new(),
        alphabet: (0..=255).collect(),
        suffix: Vec::new(),
        text: Text::Base64,
        wanted: wanted.collect(),
    }
}

fn filter(targets: &[Target<'_>]) -> Filter {
    all(targets).filter()
}

fn text(length: u32, counter: u64) -> String {
    all(&[]).text_of(length, counter)
}

fn check(length: u32, first: u64, count: u64, name: &str, max_distance: u8) {
    check_set(length, first, count, &[(name, max_distance)]);
}

fn check_set(length: u32, first: u64, count: u64, targets: &[Target<'_>]) {
    check_search(&all(targets), length, first, count);
}

/// Compares every kernel with the oracle.
fn check_search(search: &Search, length: u32, first: u64, count: u64) {
    let expected = search.expected(length, first, count);
    let (secrets, filter) = (search.secrets(), search.filter());
    let block = secrets.block(length, first, count);
    for kernel in Kernel::all() {
        let mut hits = Hits::with_limit(usize::MAX);
        let tried = kernel.scan(&block, &filter, &mut hits);
        assert_eq!(tried, count, "{}", kernel.name());
        assert_eq!(*hits, *expected, "{}: {block:?}, {search:?}", kernel.name());
    }
}

#[test]
fn names_the_kernels_that_ran() {
    let names: Vec<&str> = Kernel::all().map(Kernel::name).collect();
    eprintln!("kernels on this machine: {}", names.join(", "));
    assert!(names.contains(&Kernel::best().name()));
}

#[test]
fn the_first_and_last_secrets_of_every_length_are_tried() {
    for length in 0..=8 {
        let secrets = 1_u128 << (8 * length);
        let count = u64::try_from(secrets.min(300)).unwrap();
        let last = u64::try_from(secrets - u128::from(count)).unwrap();
        check(length, 0, count, "a", 0);
        check(length, last, count, "ab", 1);
        check(length, last, count, "hashfinder", 8);
    }
}

#[test]
fn blocks_of_every_small_size_are_tried() {
    for count in 0..130 {
        check(3, 0xfff0, count, "a", 0);
    }
}

#[test]
fn a_scan_stops_right_after_the_hit_that_fills_the_list() {
    for kernel in Kernel::all() {
        let everything = filter(&[("a", 1)]);
        let mut hits = Hits::with_limit(10);
        let block = Block::new(2, 100, 1000);
        assert_eq!(kernel.scan(&block, &everything, &mut hits), 10);
        assert_eq!(hits.len(), 10);
        // Nothing is tried while the list has no room for hits.
        assert_eq!(kernel.scan(&block, &everything, &mut hits), 0);

        // If the list becomes full at the very last secret, the whole block was tried.
        let mut hits = Hits::with_limit(1000);
        assert_eq!(kernel.scan(&block, &everything, &mut hits), 1000);
    }
}

#[test]
fn the_reference_digests_contain_doctor() {
    // The two digests in the reference's documentation.
    for name in [
        "JrqhZVkTDoctYrUlXDbL6pfYQHU=",
        "RC9/7mlM3ldy4TdoctOc6WzYbO4=",
    ] {
        let digest = BASE64.decode(name.as_bytes()).unwrap();
        let words: Vec<u32> = digest
            .chunks_exact(4)
            .map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap()))
            .collect();
        let mut found = Vec::new();
        let filter = filter(&[("nurse", 0), ("doctor", 2)]);
        filter.check(&words.try_into().unwrap(), |hit| found.push(hit));
        assert!(
            matches!(found[..], [hit] if hit.name == 1 && hit.distance <= 2),
            "{found:?}"
        );
    }
}

#[test]
fn a_hit_for_several_names_is_reported_whole() {
    for kernel in Kernel::all() {
        let filter = filter(&[("a", 1), ("b", 0), ("aa", 2)]);
        let mut hits = Hits::with_limit(4);
        let tried = kernel.scan(&Block::new(2, 0, 1000), &filter, &mut hits);
        let last = hits.last().unwrap().offset;
        assert_eq!(tried, last + 1);
        assert_eq!(
            *hits,
            *all(&[("a", 1), ("b", 0), ("aa", 2)]).expected(2, 0, tried)
        );
    }
}

#[test]
fn names_of_every_length_match_at_every_place() {
    for size in 1..=28 {
        for window in 0..=28 - size {
            let counter = 0x1234_0000 + 64 * size as u64 + window as u64;
            let text = text(4, counter);
            for spoilt in 0..=4.min(size) {
                let mut name = text[window..window + size].to_ascii_lowercase();
                for error in 0..spoilt {
                    let at = (error * 7 + window) % size;
                    name.replace_range(at..=at, "!");
                }
                let search = all(&[(&name, spoilt as u8)]);
                assert_eq!(search.expected(4, counter, 1).len(), 1);
                check(4, counter - 3, 7, &name, spoilt as u8);
            }
        }
    }
}

#[test]
fn digest_sums_are_the_same_for_every_kernel() {
    for length in 0..=8_u32 {
        let secrets = 1_u128 << (8 * length);
        for (first, count) in [(0, 1), (0, 200), (77, 100), (u64::MAX, 150)] {
            let count = secrets.min(count) as u64;
            let first = u128::from(first).min(secrets - u128::from(count)) as u64;
            let sum = (0..count).fold(0, |sum, offset| {
                let counter = first + offset;
                sum ^ hashfinder_kernels::sha1(&counter.to_be_bytes()[8 - length as usize..])[0]
            });
            for kernel in Kernel::all() {
                let block = Block::new(length, first, count);
                assert_eq!(
                    kernel.digest_sum(&block),
                    sum,
                    "{}: {block:?}",
                    kernel.name()
                );
            }
        }
    }
}

/// Reproducible pseudorandom numbers from a seed: SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % below
    }

    /// Returns the first secret of a block: at the end or the beginning of the length, near the
    /// beginning of a chunk, or anywhere.
    fn first(&mut self, last: u64, chunk: u64) -> u64 {
        let first = match self.below(4) {
            0 => last,
            1 => self.below(16),
            2 => self.below(last / chunk + 1) * chunk + self.below(64),
            _ => self.below(last.saturating_add(1)),
        };
        first.min(last)
    }

    fn name(&mut self, least: u64, most: u64) -> String {
        let length = least + self.below(most - least + 1);
        (0..length)
            .map(|_| {
                char::from(b"abcdefghijklmnopqrstuvwxyz0123456789+/=."[self.below(40) as usize])
            })
            .collect()
    }

    /// Returns a name and a distance: usually a distance at which hits are rare, sometimes any.
    fn target(&mut self) -> (String, u8) {
        let name = self.name(1, 28);
        let distance = match self.below(8) {
            0 => self.below(29),
            _ => (name.len() as u64).saturating_sub(2 + self.below(4)),
        };
        (name, distance as u8)
    }

    /// Returns a part of the hashed name of one of a block's secrets, with some characters spoilt.
    fn planted(&mut self, length: u32, first: u64, count: u64, errors: u64) -> (String, u8) {
        let text = text(length, first + self.below(count));
        let size = (4 + 2 * errors + self.below(8)) as usize;
        let window = self.below(29 - size as u64) as usize;
        let mut name = text[window..window + size].to_ascii_lowercase();
        for _ in 0..errors {
            let at = self.below(size as u64) as usize;
            name.replace_range(at..=at, "q");
        }
        (name, errors as u8)
    }

    /// Returns secrets of any shape, and a length of their searched parts.
    fn space(&mut self) -> (Search, u32) {
        let bytes = |random: &mut Random, most: u64| -> Vec<u8> {
            let count = random.below(most + 1);
            (0..count).map(|_| random.below(256) as u8).collect()
        };
        let prefix = bytes(self, 140);
        let suffix = match self.below(2) {
            0 => Vec::new(),
            _ => bytes(self, 140),
        };
        let mut alphabet: Vec<u8> = match self.below(6) {
            0 => (0..=255).collect(),
            1 => (b'0'..=b'9').collect(),
            2 => (b' '..=b'~').collect(),
            _ => (b'0'..=b'z').filter(u8::is_ascii_alphanumeric).collect(),
        };
        if self.below(3) == 0 {
            // Some of the bytes, in any order.
            for last in (1..alphabet.len()).rev() {
                alphabet.swap(last, self.below(last as u64 + 1) as usize);
            }
            alphabet.truncate(1 + self.below(alphabet.len() as u64) as usize);
        }
        let longest = match alphabet.len() {
            1 => Secrets::MAX_SEARCHED,
            radix => 64 / radix.ilog2(),
        };
        let length = self.below(u64::from(longest.min(Secrets::MAX_SEARCHED)) + 1) as u32;
        let search = Search {
            prefix,
            alphabet,
            suffix,
            text: Text::ALL[self.below(3) as usize],
            wanted: Vec::new(),
        };
        (search, length)
    }

    /// Returns a part of the hashed name of one of a block's secrets, with some characters spoilt:
    /// at its place or anywhere, in its case or in either.
    fn wanted(&mut self, search: &Search, length: u32, first: u64, count: u64) -> Wanted {
        let text = search.text_of(length, first + self.below(count));
        let size = 1 + self.below(14) as usize;
        let window = match self.below(3) {
            0 => 0,
            1 => text.len() - size,
            _ => self.below((text.len() - size) as u64 + 1) as usize,
        };
        let mut name = text[window..window + size].to_owned();
        let errors = self.below(4).min(size as u64);
        for _ in 0..errors {
            let at = self.below(size as u64) as usize;
            name.replace_range(at..=at, ["q", "!", "2", "E"][self.below(4) as usize]);
        }
        Wanted {
            max_distance: errors as u8,
            at: (self.below(2) == 0).then_some(window),
            case_sensitive: self.below(2) == 0,
            name,
        }
    }

    /// Returns two to 300 names, so that filters use every kind of plan.
    fn many(&mut self) -> Vec<(String, u8)> {
        let count = [2, 8, 24, 64, 300][self.below(5) as usize];
        let most_errors = self.below(4);
        (0..count)
            .map(|_| {
                let errors = self.below(most_errors + 1);
                (self.name(4 + 2 * errors, 12), errors as u8)
            })
            .collect()
    }
}

/// Compares every kernel with the oracle, for secrets of any shape and names of any kind.
#[test]
fn kernels_agree_with_the_oracle_on_any_search() {
    let seed = seed();
    eprintln!("KERNEL_SEED={seed}");
    let mut random = Random(seed);
    for _ in 0..1_000 {
        let (mut search, length) = random.space();
        let count = search.count(length).min(1 + random.below(300));
        let first = random.below((search.count(length) - count).saturating_add(1));
        for _ in 0..=random.below(3) {
            search
                .wanted
                .push(random.wanted(&search, length, first, count));
        }
        check_search(&search, length, first, count);
    }
}

/// The seed of this run. Set `KERNEL_SEED` to repeat a run.
fn seed() -> u64 {
    std::env::var("KERNEL_SEED").map_or_else(
        |_| {
            let state = std::hash::RandomState::new();
            std::hash::BuildHasher::hash_one(&state, ())
        },
        |seed| seed.parse().unwrap(),
    )
}

/// Compares every kernel with the portable one, over more secrets than the oracle could check in a
/// day. (Other tests compare the portable kernel with the oracle.)
#[test]
fn kernels_match_a_hundred_million_secrets_as_the_portable_one_does() {
    let secrets: u64 = match std::env::var("KERNEL_SECRETS") {
        Ok(secrets) => secrets.parse().unwrap(),
        Err(_) => 100_000_000,
    };
    let seed = seed();
    eprintln!("KERNEL_SEED={seed}");
    let mut random = Random(seed);
    let mut tried = 0;
    while tried < secrets {
        tried += match random.below(2) {
            0 => compare_bytes(&mut random),
            _ => compare_any(&mut random),
        };
    }
}

/// Compares a block of byte strings. Returns the number of secrets.
fn compare_bytes(random: &mut Random) -> u64 {
    let length = 2 + random.below(7) as u32;
    let secrets = 1_u128 << (8 * length);
    // Usually one name, and sometimes many. The portable kernel is slow with many names, so it then
    // gets fewer secrets.
    let (mut targets, most) = match random.below(16) {
        0 => (random.many(), 3_000),
        _ => (vec![random.target()], 100_000),
    };
    let count = u64::try_from(u128::from(1 + random.below(most)).min(secrets)).unwrap();
    let last = u64::try_from(secrets - u128::from(count)).unwrap();
    let first = random.first(last, 16_384);
    // Planted names are sure to have hits in the block.
    let errors = random.below(4);
    for _ in 0..random.below(3) {
        targets.push(random.planted(length, first, count, errors));
    }
    let targets: Vec<Target<'_>> = targets
        .iter()
        .map(|(name, most)| (&name[..], *most))
        .collect();
    compare(random, &all(&targets), &Block::new(length, first, count))
}

/// Compares a block of any secrets. Returns the number of secrets.
fn compare_any(random: &mut Random) -> u64 {
    let (mut search, length) = random.space();
    let count = search.count(length).min(1 + random.below(100_000));
    let radix = search.alphabet.len() as u64;
    let first = random.first(search.count(length) - count, radix * radix);
    for _ in 0..=random.below(3) {
        search
            .wanted
            .push(random.wanted(&search, length, first, count));
    }
    compare(
        random,
        &search,
        &search.secrets().block(length, first, count),
    )
}

/// Returns the number of secrets that the portable kernel has tried.
fn compare(random: &mut Random, search: &Search, block: &Block<'_>) -> u64 {
    let portable = Kernel::named("portable").unwrap();
    let limit = 1 + random.below(20_000) as usize;
    let filter = search.filter();
    let mut expected = Hits::with_limit(limit);
    let reached = portable.scan(block, &filter, &mut expected);
    for kernel in Kernel::all().filter(|kernel| *kernel != portable) {
        let mut hits = Hits::with_limit(limit);
        let message = || {
            format!(
                "{}: {block:?}, {search:?}, at most {limit} hits",
                kernel.name()
            )
        };
        let tried = kernel.scan(block, &filter, &mut hits);
        assert_eq!(tried, reached, "{}", message());
        assert!(*hits == *expected, "{}", message());
        // Rarely, because only benchmarks use it.
        if random.below(16) == 0 {
            assert_eq!(kernel.digest_sum(block), portable.digest_sum(block));
        }
    }
    reached
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn kernels_agree_with_the_oracle_on_random_ranges(
        length in 0..=8_u32,
        first: u64,
        count in 0..200_u64,
        name in "[A-Za-z0-9+/=.]{1,28}",
        max_distance in 0..=28_u8,
    ) {
        let secrets = 1_u128 << (8 * length);
        let first = u64::try_from(u128::from(first) % secrets).unwrap();
        let count = u64::try_from(u128::from(count).min(secrets - u128::from(first))).unwrap();
        check(length, first, count, &name, max_distance);
    }

    /// Names are taken from windows of a digest, so that exact and near matches occur.
    #[test]
    fn planted_names_are_found(
        first in 0..0xffff_0000_u64,
        size in 1..=28_usize,
        window in 0..28_usize,
        spoil in 0..28_usize,
    ) {
        let text = text(4, first + 7);
        let window = window % (29 - size);
        let mut name = text[window..window + size].to_ascii_lowercase();
        check(4, first, 20, &name, 0);
        let spoil = spoil % size;
        name.replace_range(spoil..=spoil, "!");
        check(4, first, 20, &name, 1);
    }

    /// Sets of up to 119 names, each taken from one of the digests, so that each name has a hit.
    #[test]
    fn planted_sets_of_names_are_found(
        first in 0..0xffff_0000_u64,
        seed: u64,
        count in 1..120_usize,
        most_errors in 0..4_u64,
        shortest in 1..12_u64,
    ) {
        let mut random = Random(seed);
        let targets: Vec<(String, u8)> = (0..count)
            .map(|_| {
                let text = text(4, first + random.below(40));
                let size = (shortest + random.below(8)) as usize;
                let window = random.below(29 - size as u64) as usize;
                let mut name = text[window..window + size].to_ascii_lowercase();
                let errors = random.below(most_errors + 1);
                for _ in 0..errors {
                    let at = random.below(size as u64) as usize;
                    name.replace_range(at..=at, if random.below(2) == 0 { "!" } else { "q" });
                }
                (name, errors as u8)
            })
            .collect();
        let targets: Vec<Target<'_>> =
            targets.iter().map(|(name, most)| (&name[..], *most)).collect();
        check_set(4, first, 40, &targets);
    }
}
