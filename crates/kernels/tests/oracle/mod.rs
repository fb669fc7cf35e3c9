//! The oracle that kernels are compared with. It is slow and simple: it writes every secret, and
//! compares its text character by character.

use data_encoding::{BASE32, BASE64, HEXLOWER};
use hashfinder_kernels::{CharSet, Filter, Hit, Secrets, Target, Text};
use sha1::{Digest, Sha1};

/// A name, and where and how it must occur.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) max_distance: u8,
    pub(crate) at: Option<usize>,
    pub(crate) case_sensitive: bool,
}

impl Wanted {
    fn agrees(&self, letter: char, shown: char) -> bool {
        letter == shown || !self.case_sensitive && letter.eq_ignore_ascii_case(&shown)
    }

    /// Returns the set that satisfies a character.
    fn set(&self, text: Text, letter: char) -> CharSet {
        if letter == '=' && text == Text::Base64 {
            return CharSet::PADDING;
        }
        let digits = digits(text);
        CharSet::values_where(|value| {
            let shown = digits.get(usize::from(value));
            shown.is_some_and(|shown| self.agrees(letter, char::from(*shown)))
        })
    }

    /// Returns the smallest distance and its first window.
    fn nearest(&self, text: &str) -> (u8, u8) {
        let text: Vec<char> = text.chars().collect();
        let name: Vec<char> = self.name.chars().collect();
        let mut best = (u8::MAX, 0);
        for window in 0..=text.len() - name.len() {
            if self.at.is_some_and(|at| at != window) {
                continue;
            }
            let mut distance = 0;
            for index in 0..name.len() {
                if !self.agrees(name[index], text[window + index]) {
                    distance += 1;
                }
            }
            if distance < best.0 {
                best = (distance, u8::try_from(window).unwrap());
            }
        }
        best
    }
}

fn digits(text: Text) -> &'static [u8] {
    match text {
        Text::Base64 => b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
        Text::Base32 => b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567",
        Text::Hex => b"0123456789abcdef",
    }
}

/// A search: the secrets, their text, and what is wanted in it.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    pub(crate) prefix: Vec<u8>,
    pub(crate) alphabet: Vec<u8>,
    pub(crate) suffix: Vec<u8>,
    pub(crate) text: Text,
    pub(crate) wanted: Vec<Wanted>,
}

impl Search {
    pub(crate) fn secrets(&self) -> Secrets {
        Secrets::new(&self.prefix, &self.alphabet, &self.suffix)
    }

    /// Returns the number of secrets with a searched part of `length` bytes, at most 2^64 - 1.
    pub(crate) fn count(&self, length: u32) -> u64 {
        let count = (self.alphabet.len() as u64).checked_pow(length);
        count.unwrap_or(u64::MAX)
    }

    /// Returns the text of a secret.
    pub(crate) fn text_of(&self, length: u32, counter: u64) -> String {
        let radix = self.alphabet.len() as u64;
        let mut searched = Vec::new();
        let mut left = counter;
        for _ in 0..length {
            searched.insert(0, self.alphabet[(left % radix) as usize]);
            left /= radix;
        }
        let secret = [&self.prefix[..], &searched, &self.suffix].concat();
        let digest = Sha1::digest(&secret);
        match self.text {
            Text::Base64 => BASE64.encode(&digest),
            Text::Base32 => BASE32.encode(&digest),
            Text::Hex => HEXLOWER.encode(&digest),
        }
    }

    pub(crate) fn filter(&self) -> Filter {
        let sets: Vec<Vec<CharSet>> = self
            .wanted
            .iter()
            .map(|wanted| {
                let letters = wanted.name.chars();
                letters
                    .map(|letter| wanted.set(self.text, letter))
                    .collect()
            })
            .collect();
        let targets = self.wanted.iter().zip(&sets).map(|(wanted, sets)| Target {
            characters: sets,
            max_distance: wanted.max_distance,
            at: wanted.at,
        });
        Filter::any(self.text, targets)
    }

    /// Returns the hits that every kernel must find among the secrets of a block.
    pub(crate) fn expected(&self, length: u32, first: u64, count: u64) -> Vec<Hit> {
        let mut hits = Vec::new();
        for offset in 0..count {
            let text = self.text_of(length, first + offset);
            for (number, wanted) in self.wanted.iter().enumerate() {
                let (distance, window) = wanted.nearest(&text);
                if distance <= wanted.max_distance {
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
}
