//! Compares every kernel with the tests' oracle, for any block and any set of names.

#![no_main]

#[path = "../../crates/kernels/tests/oracle/mod.rs"]
mod oracle;

use arbitrary::Arbitrary;
use hashfinder_kernels::{Block, Hits, Kernel};
use libfuzzer_sys::fuzz_target;
use oracle::{Target, expected, filter, text};

/// Maximum number of secrets: more than the 64 lanes of a row, and few enough for many runs per
/// second.
const MOST_SECRETS: u64 = 200;

#[derive(Arbitrary, Debug)]
struct Input {
    length: u32,
    first: u64,
    count: u64,
    limit: usize,
    names: Vec<Name>,
}

#[derive(Arbitrary, Debug)]
enum Name {
    /// Arbitrary letters, and a maximum distance.
    Any(Vec<u8>, u8),
    /// A part of the hashed name of one of the block's secrets: which secret, the position and the
    /// length of the part, and how many of its characters are replaced.
    Planted {
        secret: u64,
        window: u8,
        size: u8,
        errors: u8,
    },
}

fuzz_target!(|input: Input| {
    let length = input.length % 9;
    let secrets = 1_u128 << (8 * length);
    let first = (u128::from(input.first) % secrets) as u64;
    let most = (secrets - u128::from(first)).min(MOST_SECRETS.into()) as u64;
    let block = Block::new(length, first, input.count % (most + 1));

    let names: Vec<(String, u8)> = input
        .names
        .iter()
        .filter_map(|name| match name {
            Name::Any(letters, most) => any_name(letters, *most),
            Name::Planted {
                secret,
                window,
                size,
                errors,
            } => {
                let counter = first + secret.checked_rem(block.count())?;
                let text = text(length, counter);
                let window = usize::from(window % 28);
                let size = 1 + usize::from(*size) % (28 - window);
                let mut name = text[window..window + size].to_ascii_lowercase();
                let errors = usize::from(*errors) % (1 + size / 4);
                for error in 0..errors {
                    name.replace_range(error * 3..=error * 3, "!");
                }
                Some((name, errors as u8))
            }
        })
        .collect();
    if names.is_empty() {
        return;
    }
    let targets: Vec<Target<'_>> = names
        .iter()
        .map(|(name, most)| (&name[..], *most))
        .collect();

    let mut all = expected(length, first, block.count(), &targets);
    // A scan whose list is full still reports all hits of its last secret.
    let limit = 1 + input.limit % 64;
    let mut tried = block.count();
    if let Some(last) = all.get(limit - 1).map(|hit| hit.offset) {
        all.retain(|hit| hit.offset <= last);
        tried = last + 1;
    }
    let filter = filter(&targets);
    for kernel in Kernel::all() {
        let mut hits = Hits::with_limit(limit);
        assert_eq!(
            kernel.scan(&block, &filter, &mut hits),
            tried,
            "{}",
            kernel.name()
        );
        assert_eq!(*hits, *all, "{}", kernel.name());
    }
});

fn any_name(letters: &[u8], most: u8) -> Option<(String, u8)> {
    let alphabet = b"abcdefghijklmnopqrstuvwxyz0123456789+/=.";
    let letters = letters.iter().take(28);
    let letter = |letter: &u8| char::from(alphabet[usize::from(*letter) % alphabet.len()]);
    let name: String = letters.map(letter).collect();
    (!name.is_empty()).then_some((name, most % 29))
}
