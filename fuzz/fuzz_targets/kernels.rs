//! Compares every kernel with the tests' oracle, for any block and any set of names.

#![no_main]

#[path = "../../crates/kernels/tests/oracle/mod.rs"]
mod oracle;

use arbitrary::Arbitrary;
use hashfinder_kernels::{Hits, Kernel, Secrets, Text};
use libfuzzer_sys::fuzz_target;
use oracle::{Search, Wanted};

/// Maximum number of secrets: usually more than the lanes of a row, and few enough for many runs
/// per second.
const MOST_SECRETS: u64 = 200;

/// Maximum length of a prefix and of a suffix: more than two blocks.
const MOST_AROUND: usize = 150;

#[derive(Arbitrary, Debug)]
struct Input {
    prefix: Vec<u8>,
    /// All bytes if it is empty. Only the first of equal bytes counts.
    alphabet: Vec<u8>,
    suffix: Vec<u8>,
    text: u8,
    length: u32,
    first: u64,
    count: u64,
    limit: usize,
    names: Vec<Name>,
}

#[derive(Arbitrary, Debug)]
struct Name {
    kind: Kind,
    is_anchored: bool,
    case_sensitive: bool,
}

#[derive(Arbitrary, Debug)]
enum Kind {
    /// Arbitrary letters, the place, and a maximum distance.
    Any(Vec<u8>, u8, u8),
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
    let mut search = search(&input);
    let longest = match search.alphabet.len() {
        1 => Secrets::MAX_SEARCHED,
        radix => (64 / radix.ilog2()).min(Secrets::MAX_SEARCHED),
    };
    let length = input.length % (longest + 1);
    let secrets = search.count(length);
    let first = input.first % secrets;
    let count = input.count % ((secrets - first).min(MOST_SECRETS) + 1);
    let names = input.names.iter();
    let names = names.filter_map(|name| wanted(&search, name, length, first, count));
    search.wanted = names.collect();
    if search.wanted.is_empty() {
        return;
    }

    let mut all = search.expected(length, first, count);
    // A scan whose list is full still reports all hits of its last secret.
    let limit = 1 + input.limit % 64;
    let mut tried = count;
    if let Some(last) = all.get(limit - 1).map(|hit| hit.offset) {
        all.retain(|hit| hit.offset <= last);
        tried = last + 1;
    }
    let (secrets, filter) = (search.secrets(), search.filter());
    let block = secrets.block(length, first, count);
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

fn search(input: &Input) -> Search {
    let mut alphabet: Vec<u8> = Vec::new();
    for byte in &input.alphabet {
        if !alphabet.contains(byte) {
            alphabet.push(*byte);
        }
    }
    if alphabet.is_empty() {
        alphabet = (0..=255).collect();
    }
    let around = |bytes: &[u8]| bytes[..bytes.len().min(MOST_AROUND)].to_vec();
    Search {
        prefix: around(&input.prefix),
        alphabet,
        suffix: around(&input.suffix),
        text: Text::ALL[usize::from(input.text) % Text::ALL.len()],
        wanted: Vec::new(),
    }
}

fn wanted(search: &Search, name: &Name, length: u32, first: u64, count: u64) -> Option<Wanted> {
    let places = search.text.places();
    let (letters, window, max_distance) = match &name.kind {
        Kind::Any(letters, window, most) => {
            let alphabet = b"abcdefghijklmnopqrstuvwxyz0123456789+/=.";
            let letters = letters.iter().take(places);
            let letter =
                |letter: &u8| char::from(alphabet[usize::from(*letter) % alphabet.len()]);
            let letters: String = letters.map(letter).collect();
            let windows = places + 1 - letters.len();
            (letters, usize::from(*window) % windows, most % 29)
        }
        Kind::Planted {
            secret,
            window,
            size,
            errors,
        } => {
            let text = search.text_of(length, first + secret.checked_rem(count)?);
            let window = usize::from(*window) % places;
            let size = 1 + usize::from(*size) % (places - window);
            let mut letters = text[window..window + size].to_owned();
            let errors = usize::from(*errors) % (1 + size / 4);
            for error in 0..errors {
                letters.replace_range(error * 3..=error * 3, "!");
            }
            (letters, window, errors as u8)
        }
    };
    (!letters.is_empty()).then_some(Wanted {
        name: letters,
        max_distance,
        at: name.is_anchored.then_some(window),
        case_sensitive: name.case_sensitive,
    })
}
