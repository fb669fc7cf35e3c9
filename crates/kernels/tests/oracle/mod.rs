//! The oracle that kernels are compared with. It is slow and simple: it compares the `base64`
//! crate's text character by character.

use base64::{Engine, prelude::BASE64_STANDARD};
use hashfinder_kernels::{CharSet, Filter, Hit};
use sha1::{Digest, Sha1};

/// Returns the set that satisfies a character of a name, in either case.
fn character(letter: char) -> CharSet {
    if letter == '=' {
        CharSet::PADDING
    } else {
        CharSet::digits_where(|c| char::from(c).eq_ignore_ascii_case(&letter))
    }
}

/// A name, and the maximum distance at which a secret is a hit.
pub(crate) type Target<'a> = (&'a str, u8);

/// Returns the filter for these names, in either case.
pub(crate) fn filter(targets: &[Target<'_>]) -> Filter {
    let names: Vec<(Vec<CharSet>, u8)> = targets
        .iter()
        .map(|(name, most)| (name.chars().map(character).collect(), *most))
        .collect();
    Filter::any(names.iter().map(|(name, most)| (&name[..], *most)))
}

/// Returns the smallest distance and its first window, by comparing text.
fn nearest(text: &str, name: &str) -> (u8, u8) {
    let text: Vec<char> = text.chars().collect();
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

/// Returns the hashed name of a secret of `length` bytes.
pub(crate) fn text(length: u32, counter: u64) -> String {
    let secret = counter.to_be_bytes();
    BASE64_STANDARD.encode(Sha1::digest(&secret[8 - length as usize..]))
}

/// Returns the hits that every kernel must find among the secrets of a block.
pub(crate) fn expected(length: u32, first: u64, count: u64, targets: &[Target<'_>]) -> Vec<Hit> {
    let mut hits = Vec::new();
    for offset in 0..count {
        let text = text(length, first + offset);
        for (number, (name, most)) in targets.iter().enumerate() {
            let (distance, window) = nearest(&text, name);
            if distance <= *most {
                hits.push(Hit {
                    offset,
                    name: u16::try_from(number).unwrap(),
                    distance,
                    window,
                });
            }
        }
    }
    hits
}
