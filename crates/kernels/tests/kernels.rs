//! One suite over every kernel that this machine can run, against an oracle that is slow and
//! obviously right: the `base64` crate's text, compared character by character.

use base64::{Engine, prelude::BASE64_STANDARD};
use hashfinder_kernels::{Block, CharSet, Filter, Hit, Hits, Kernel};
use proptest::prelude::*;
use sha1::{Digest, Sha1};

/// The set for a character of a name, letters in either case.
fn character(wanted: char) -> CharSet {
    if wanted == '=' {
        CharSet::PADDING
    } else {
        CharSet::digits_where(|c| char::from(c).eq_ignore_ascii_case(&wanted))
    }
}

fn filter(name: &str, max_distance: u8) -> Filter {
    let characters: Vec<CharSet> = name.chars().map(character).collect();
    Filter::new(&characters, max_distance)
}

/// The least distance and its first window, by comparing text.
fn oracle(secret: &[u8], name: &str) -> (u8, u8) {
    let text: Vec<char> = BASE64_STANDARD
        .encode(Sha1::digest(secret))
        .chars()
        .collect();
    let name: Vec<char> = name.chars().collect();
    let mut best = (u8::MAX, 0);
    for window in 0..=text.len() - name.len() {
        let mut distance = 0;
        for index in 0..name.len() {
            if !text[window + index].eq_ignore_ascii_case(&name[index]) {
                distance += 1;
            }
        }
        if distance < best.0 {
            best = (distance, u8::try_from(window).unwrap());
        }
    }
    best
}

fn expected(length: u32, first: u64, count: u64, name: &str, max_distance: u8) -> Vec<Hit> {
    let mut hits = Vec::new();
    for offset in 0..count {
        let counter = (first + offset).to_be_bytes();
        let (distance, window) = oracle(&counter[8 - length as usize..], name);
        if distance <= max_distance {
            hits.push(Hit {
                offset,
                distance,
                window,
            });
        }
    }
    hits
}

fn check(length: u32, first: u64, count: u64, name: &str, max_distance: u8) {
    let expected = expected(length, first, count, name, max_distance);
    for kernel in Kernel::all() {
        let mut hits = Hits::with_limit(usize::MAX);
        let filter = filter(name, max_distance);
        let tried = kernel.scan(&Block::new(length, first, count), &filter, &mut hits);
        assert_eq!(tried, count, "{}", kernel.name());
        assert_eq!(
            *hits,
            *expected,
            "{}: length {length}, first {first}, count {count}, {name:?} within {max_distance}",
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
fn every_length_at_its_first_and_last_secrets() {
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
fn blocks_of_every_small_size() {
    for count in 0..130 {
        check(3, 0xfff0, count, "a", 0);
    }
}

#[test]
fn full_hits_stop_a_scan_right_behind_the_last_one() {
    for kernel in Kernel::all() {
        let everything = filter("a", 1);
        let mut hits = Hits::with_limit(10);
        let block = Block::new(2, 100, 1000);
        assert_eq!(kernel.scan(&block, &everything, &mut hits), 10);
        assert_eq!(hits.len(), 10);
        // Nothing is tried while there is no room for what it might find.
        assert_eq!(kernel.scan(&block, &everything, &mut hits), 0);

        // A list that fills at the very last secret covers the block.
        let mut hits = Hits::with_limit(1000);
        assert_eq!(kernel.scan(&block, &everything, &mut hits), 1000);
    }
}

#[test]
fn the_seed_text_digests_hold_a_doctor() {
    // The two digests that the reference's documentation shows.
    for name in [
        "JrqhZVkTDoctYrUlXDbL6pfYQHU=",
        "RC9/7mlM3ldy4TdoctOc6WzYbO4=",
    ] {
        let digest = BASE64_STANDARD.decode(name).unwrap();
        let words: Vec<u32> = digest
            .chunks_exact(4)
            .map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap()))
            .collect();
        let found = filter("doctor", 2).check(&words.try_into().unwrap());
        assert!(found.is_some_and(|found| found.distance <= 2), "{found:?}");
    }
}

/// Every kernel against the portable one, which the oracle vouches for, over so many secrets that
/// the oracle would take a day. `KERNEL_SEED` repeats a run.
#[test]
fn a_hundred_million_secrets_as_the_portable_kernel_has_them() {
    const SECRETS: u64 = 100_000_000;
    let seed = std::env::var("KERNEL_SEED").map_or_else(
        |_| {
            let state = std::hash::RandomState::new();
            std::hash::BuildHasher::hash_one(&state, ())
        },
        |seed| seed.parse().unwrap(),
    );
    eprintln!("KERNEL_SEED={seed}");
    // SplitMix64 (Steele, Lea and Flood, 2014).
    let mut state = seed;
    let mut random = move |below: u64| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % below
    };

    let portable = Kernel::all().find(|k| k.name() == "portable").unwrap();
    let others: Vec<Kernel> = Kernel::all().filter(|k| *k != portable).collect();
    let mut tried = 0;
    while tried < SECRETS && !others.is_empty() {
        let length = 2 + random(7) as u32;
        let secrets = 1_u128 << (8 * length);
        let count = u64::try_from(u128::from(1 + random(100_000)).min(secrets)).unwrap();
        let last = u64::try_from(secrets - u128::from(count)).unwrap();
        // Anywhere, or so that the end of a chunk, or of the length, is near.
        let first = match random(4) {
            0 => last,
            1 => random(16),
            2 => random(last / 16_384 + 1) * 16_384 + random(64),
            _ => random(last.saturating_add(1)),
        }
        .min(last);
        let size = 1 + random(28) as usize;
        let name: String = (0..size)
            .map(|_| char::from(b"abcdefghijklmnopqrstuvwxyz0123456789+/=."[random(40) as usize]))
            .collect();
        // Mostly as near as makes hits rare, and seldom anything.
        let distance = match random(8) {
            0 => random(29),
            _ => (size as u64).saturating_sub(2 + random(4)),
        };
        let filter = filter(&name, distance as u8);
        let block = Block::new(length, first, count);
        let limit = 1 + random(20_000) as usize;
        let mut expected = Hits::with_limit(limit);
        let reached = portable.scan(&block, &filter, &mut expected);
        for kernel in &others {
            let mut hits = Hits::with_limit(limit);
            let message = format!(
                "{}: {block:?}, {name:?} within {distance}, at most {limit} hits",
                kernel.name()
            );
            assert_eq!(
                kernel.scan(&block, &filter, &mut hits),
                reached,
                "{message}"
            );
            assert!(*hits == *expected, "{message}");
            // Rarely, because it is only for benchmarks.
            if tried % 64 == 0 {
                assert_eq!(kernel.digest_sum(&block), portable.digest_sum(&block));
            }
        }
        tried += reached;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_ranges_and_names(
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

    /// Names taken out of a digest, so that near and exact matches really occur, at every offset.
    #[test]
    fn planted_names(
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
}
