//! Tests of every kernel that this machine can run, against an [oracle].

mod oracle;

use base64::{Engine, prelude::BASE64_STANDARD};
use hashfinder_kernels::{Block, Hits, Kernel};
use oracle::{Target, expected, filter, text};
use proptest::prelude::*;
use sha1::{Digest, Sha1};

fn check(length: u32, first: u64, count: u64, name: &str, max_distance: u8) {
    check_set(length, first, count, &[(name, max_distance)]);
}

fn check_set(length: u32, first: u64, count: u64, targets: &[Target<'_>]) {
    let expected = expected(length, first, count, targets);
    let filter = filter(targets);
    for kernel in Kernel::all() {
        let mut hits = Hits::with_limit(usize::MAX);
        let tried = kernel.scan(&Block::new(length, first, count), &filter, &mut hits);
        assert_eq!(tried, count, "{}", kernel.name());
        assert_eq!(
            *hits,
            *expected,
            "{}: length {length}, first {first}, count {count}, {targets:?}",
            kernel.name()
        );
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
        let digest = BASE64_STANDARD.decode(name).unwrap();
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
            *expected(2, 0, tried, &[("a", 1), ("b", 0), ("aa", 2)])
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
                let expected = expected(4, counter, 1, &[(&name, spoilt as u8)]);
                assert_eq!(expected.len(), 1);
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

/// Compares every kernel with the portable one, over more secrets than the oracle could check in a
/// day. (Other tests compare the portable kernel with the oracle.) Set `KERNEL_SEED` to repeat a
/// run.
#[test]
fn kernels_match_a_hundred_million_secrets_as_the_portable_one_does() {
    let secrets: u64 = match std::env::var("KERNEL_SECRETS") {
        Ok(secrets) => secrets.parse().unwrap(),
        Err(_) => 100_000_000,
    };
    let seed = std::env::var("KERNEL_SEED").map_or_else(
        |_| {
            let state = std::hash::RandomState::new();
            std::hash::BuildHasher::hash_one(&state, ())
        },
        |seed| seed.parse().unwrap(),
    );
    eprintln!("KERNEL_SEED={seed}");
    let mut random = Random(seed);

    let portable = Kernel::all().find(|k| k.name() == "portable").unwrap();
    let others: Vec<Kernel> = Kernel::all().filter(|k| *k != portable).collect();
    let mut tried = 0;
    while tried < secrets && !others.is_empty() {
        let length = 2 + random.below(7) as u32;
        let secrets = 1_u128 << (8 * length);
        // Usually one name, and sometimes many. The portable kernel is slow with many names, so it
        // then gets fewer secrets.
        let (mut targets, most) = match random.below(16) {
            0 => (random.many(), 3_000),
            _ => (vec![random.target()], 100_000),
        };
        let count = u64::try_from(u128::from(1 + random.below(most)).min(secrets)).unwrap();
        let last = u64::try_from(secrets - u128::from(count)).unwrap();
        // At the end or the beginning of the length, near the beginning of a chunk, or anywhere.
        let first = match random.below(4) {
            0 => last,
            1 => random.below(16),
            2 => random.below(last / 16_384 + 1) * 16_384 + random.below(64),
            _ => random.below(last.saturating_add(1)),
        }
        .min(last);
        // Planted names are sure to have hits in the block.
        let errors = random.below(4);
        for _ in 0..random.below(3) {
            targets.push(random.planted(length, first, count, errors));
        }
        let limit = 1 + random.below(20_000) as usize;
        let block = Block::new(length, first, count);
        let names: Vec<Target<'_>> = targets
            .iter()
            .map(|(name, most)| (&name[..], *most))
            .collect();
        let filter = filter(&names);
        let mut expected = Hits::with_limit(limit);
        let reached = portable.scan(&block, &filter, &mut expected);
        for kernel in &others {
            let mut hits = Hits::with_limit(limit);
            let message = format!(
                "{}: {block:?}, {targets:?}, at most {limit} hits",
                kernel.name()
            );
            assert_eq!(
                kernel.scan(&block, &filter, &mut hits),
                reached,
                "{message}"
            );
            assert!(*hits == *expected, "{message}");
            // Rarely, because only benchmarks use it.
            if random.below(16) == 0 {
                assert_eq!(kernel.digest_sum(&block), portable.digest_sum(&block));
            }
        }
        tried += reached;
    }
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
        let secret = (first as u32 + 7).to_be_bytes();
        let text = BASE64_STANDARD.encode(Sha1::digest(secret));
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
                let secret = (first as u32 + random.below(40) as u32).to_be_bytes();
                let text = BASE64_STANDARD.encode(Sha1::digest(secret));
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
