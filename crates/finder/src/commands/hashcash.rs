//! `hashfinder hashcash`: mints and checks stamps, as hashcash.org defines them. A stamp takes work
//! to mint, but almost none to check.

use std::str::FromStr;

use anyhow::{Result, anyhow};
use base64::{Engine, prelude::BASE64_STANDARD};
use clap::Args;
use hashfinder_search::{
    Algorithm, Alphabet, Anchor, DesiredName, Distance, Encoding, Keyspace, Query, Spelling,
};
use hashfinder_system::{clock, threads::block_on};
use jiff::{civil::DateTime, tz::TimeZone};
use ring::rand::{SecureRandom, SystemRandom};

use super::find::{self, TimeLimit};
use crate::{
    arguments::{SearchArguments, values::number},
    exit::Exit,
    terminal::{print, say},
};

/// Default number of zero bits.
const USUAL_BITS: u32 = 20;

/// Maximum number of zero bits: the length of a SHA-1.
const MAXIMUM_BITS: u32 = 160;

/// Number of bits in a hexadecimal digit.
const BITS_OF_DIGIT: u32 = 4;

/// Number of random bytes that make each stamp unique. In base64, they have 16 characters.
const RANDOM_BYTES: usize = 12;

/// Spelling of a stamp's SHA-1, which must begin with zero bits.
const SPELLING: Spelling = Spelling {
    algorithm: Algorithm::Sha1,
    encoding: Encoding::Hex,
    anchor: Anchor::Prefix,
    case_sensitive: false,
};

/// Mint or check a hashcash stamp.
///
/// A version 1 stamp is `1:BITS:DATE:RESOURCE::RANDOM:COUNTER`. Its SHA-1 begins with BITS zero
/// bits. The new stamp is printed on stdout. As with hashcash, the resource is converted to lower
/// case, and --check ignores case.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder hashcash me@example.com
  hashfinder hashcash me@example.com --bits 24 --maximum-time 1m
  hashfinder hashcash --check 1:20:040927:mertz@gnosis.cx::odVZhQMP:7ca28

--check cannot detect whether a stamp is too old or was used before.

Exit codes:
    0  minted; with --check: the stamp is right
    1  with --check: the stamp is wrong
    2  the command line is wrong
    3  the maximum time has passed
    5  the system has no random bytes, or the output failed
  130  stopped by ctrl-C (129: SIGHUP, 131: SIGQUIT, 143: SIGTERM)")]
pub(crate) struct HashcashArguments {
    /// Recipient of the stamp, such as an email address
    ///
    /// With --check, the stamp must be for this resource.
    #[arg(value_name = "RESOURCE", required_unless_present = "check", value_parser = resource)]
    resource: Option<String>,

    /// Number of zero bits [default: 20; with --check: those that the stamp claims]
    #[arg(long, value_name = "N", value_parser = number(1..=MAXIMUM_BITS))]
    bits: Option<u32>,

    /// Date of the stamp: YYMMDD, optionally with hhmm or hhmmss [default: today, UTC]
    #[arg(long, value_name = "DATE", value_parser = date, conflicts_with = "check")]
    date: Option<String>,

    /// Check this stamp instead of minting one
    #[arg(long, value_name = "STAMP")]
    check: Option<String>,

    #[command(flatten)]
    search: SearchArguments,
}

fn resource(text: &str) -> Result<String, String> {
    let wrong = |c: &char| *c == ':' || c.is_whitespace() || c.is_control();
    match text.chars().find(wrong) {
        Some(character) => Err(format!(
            "a stamp cannot contain {character:?}; use an address or another name without colons, \
             spaces and control characters"
        )),
        None if text.is_empty() => Err("it is empty; use an address or another name".to_owned()),
        None => Ok(text.to_owned()),
    }
}

fn date(text: &str) -> Result<String, String> {
    match is_date(text) {
        true => Ok(text.to_owned()),
        false => Err("expected a date as YYMMDD, such as 261121".to_owned()),
    }
}

/// Returns whether `text` is a date of this century, with or without the time of day.
fn is_date(text: &str) -> bool {
    let time = match text.len() {
        6 => "000000",
        10 => "00",
        12 => "",
        _ => return false,
    };
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits && DateTime::strptime("%Y%m%d%H%M%S", format!("20{text}{time}")).is_ok()
}

/// Runs the command.
pub(crate) fn run(arguments: &HashcashArguments) -> Result<Exit> {
    if let Some(stamp) = &arguments.check {
        return check(stamp, arguments);
    }
    let limit = TimeLimit::start(arguments.search.maximum_time);
    // hashcash also converts the resource to lower case, unless -C is given. A checker that
    // compares case expects that.
    let resource = arguments.resource.as_deref().unwrap_or_default();
    let resource = resource.to_ascii_lowercase();
    let bits = arguments.bits.unwrap_or(USUAL_BITS);
    let date = match &arguments.date {
        Some(date) => date.clone(),
        None => {
            let now = clock::now()?.to_zoned(TimeZone::UTC);
            now.strftime("%y%m%d").to_string()
        }
    };
    let stamp = format!("1:{bits}:{date}:{resource}::");
    let stamp = format!("{stamp}{}:", random(stamp.len())?);
    let query = match query(&stamp, bits) {
        Ok(query) => query,
        Err(wrong) => {
            say(wrong);
            return Ok(Exit::Usage);
        }
    };
    // Another run mints another stamp, and a search has no memory, so there is nothing to resume.
    let how_to_resume =
        |_| "the same command mints another stamp, with the same chance of success".to_owned();
    let found = match block_on(find::first(
        vec![query],
        &arguments.search,
        limit,
        how_to_resume,
    ))? {
        Ok(found) => found,
        Err(exit) => return Ok(exit),
    };
    print([&*found.secret, b"\n"].concat())?;
    Ok(Exit::Success)
}

/// Returns the query for a counter, given the stamp up to the counter.
fn query(stamp: &str, bits: u32) -> Result<Query, String> {
    let names = zeros(bits).into_iter();
    let names =
        names.map(|name| DesiredName::new(&name, SPELLING).map_err(|wrong| wrong.to_string()));
    let names: Vec<DesiredName> = names.collect::<Result<_, _>>()?;
    let counters = Keyspace::new(stamp.as_bytes(), Alphabet::alphanumeric(), b"");
    let counters = counters.map_err(|_| too_long(stamp))?;
    let query = Query::any(names, Distance::ZERO).map_err(|error| error.to_string())?;
    // Index 0 is the empty counter, which is skipped.
    Ok(query.among(counters).starting_at(1))
}

/// Returns the message that says by how much the resource is too long, given the stamp up to the
/// counter.
fn too_long(stamp: &str) -> String {
    let (length, most) = (stamp.len(), Keyspace::MAX_PREFIX);
    let excess = length - most;
    let bytes = if excess == 1 { "byte" } else { "bytes" };
    format!(
        "the resource is too long: the stamp has {length} bytes without its counter, and the \
         maximum is {most}; shorten the resource by at least {excess} {bytes}"
    )
}

/// Returns the hexadecimal prefixes of all digests that begin with this number of zero bits: zeros,
/// followed by each digit whose upper bits are zero.
fn zeros(bits: u32) -> Vec<String> {
    let digits = "0".repeat((bits / BITS_OF_DIGIT) as usize);
    match bits % BITS_OF_DIGIT {
        0 => vec![digits],
        upper => {
            let last = 0..1 << (BITS_OF_DIGIT - upper);
            last.map(|last| format!("{digits}{last:x}")).collect()
        }
    }
}

/// Returns random bytes in base64, for a stamp with this number of bytes before them.
fn random(before: usize) -> Result<String> {
    let mut bytes = vec![0; random_bytes(before)];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| anyhow!("cannot get random bytes from the system"))?;
    Ok(BASE64_STANDARD.encode(bytes))
}

/// Returns how many random bytes there should be, at least [`RANDOM_BYTES`].
///
/// SHA-1 takes 64 bytes at a time. More random bytes move the counter so that the end of its block
/// has room for it and for the nine bytes that the algorithm appends. Otherwise each counter would
/// take twice as long.
fn random_bytes(before: usize) -> usize {
    const BLOCK: usize = 64;
    const LONGEST_COUNTER: usize = 10;
    let is_well_placed = |bytes: &usize| {
        let begin = before + bytes.div_ceil(3) * 4 + 1;
        begin % BLOCK + LONGEST_COUNTER + 9 <= BLOCK && begin <= Keyspace::MAX_PREFIX
    };
    let mut numbers = (RANDOM_BYTES..RANDOM_BYTES + BLOCK).step_by(3);
    numbers.find(is_well_placed).unwrap_or(RANDOM_BYTES)
}

/// Prints whether a stamp is right.
fn check(stamp: &str, arguments: &HashcashArguments) -> Result<Exit> {
    let wanted = arguments.resource.as_deref();
    let (verdict, exit) = match checked(stamp, wanted, arguments.bits) {
        Ok(verdict) => (verdict, Exit::Success),
        Err(why) => (format!("wrong: {why}"), Exit::No),
    };
    print(format!("{verdict}\n"))?;
    Ok(exit)
}

/// Returns a description of the stamp if it is right, otherwise what is wrong with it.
///
/// Its SHA-1 must begin with the zero bits that it claims. If `resource` is given, the stamp must
/// be for it; if `bits` is given, the stamp must claim at least `bits` zero bits.
fn checked(text: &str, resource: Option<&str>, bits: Option<u32>) -> Result<String, String> {
    let stamp: Stamp<'_> = Stamp::parse(text)?;
    // hashcash also ignores case, unless -C is given.
    let is_other = |resource: &&str| !resource.eq_ignore_ascii_case(stamp.resource);
    if let Some(resource) = resource.filter(is_other) {
        return Err(format!(
            "it is for {:?}, not for {resource:?}",
            stamp.resource
        ));
    }
    if let Some(bits) = bits.filter(|bits| *bits > stamp.bits) {
        return Err(format!("it claims {} bits, not {bits}", stamp.bits));
    }
    let zeros = zero_bits(text);
    if zeros < stamp.bits {
        return Err(format!(
            "it claims {} bits, but its SHA-1 begins with {zeros} zero bits",
            stamp.bits
        ));
    }
    Ok(format!(
        "right: {} bits for {}, dated {}",
        stamp.bits,
        stamp.resource.escape_debug(),
        stamp.date
    ))
}

/// Returns the number of zero bits at the start of a text's SHA-1.
fn zero_bits(text: &str) -> u32 {
    let digest = SPELLING.hashed_name(text.as_bytes());
    let mut bits = 0;
    for digit in digest.as_str().chars() {
        match digit.to_digit(16) {
            Some(0) => bits += BITS_OF_DIGIT,
            digit => {
                let leading = digit.map_or(0, u32::leading_zeros);
                return bits + leading.saturating_sub(u32::BITS - BITS_OF_DIGIT);
            }
        }
    }
    bits
}

/// The fields of a version 1 stamp that a check uses.
#[derive(Debug, PartialEq, Eq)]
struct Stamp<'a> {
    bits: u32,
    date: &'a str,
    resource: &'a str,
}

impl<'a> Stamp<'a> {
    fn parse(text: &'a str) -> Result<Stamp<'a>, String> {
        let fields: Vec<&str> = text.split(':').collect();
        let ["1", bits, date, resource, _extension, _random, _counter] = fields[..] else {
            return Err(
                "expected a stamp of version 1: 1:BITS:DATE:RESOURCE:EXTENSION:RANDOM:COUNTER"
                    .to_owned(),
            );
        };
        let is_number = bits.bytes().all(|byte| byte.is_ascii_digit());
        let number = u32::from_str(bits)
            .ok()
            .filter(|bits| *bits <= MAXIMUM_BITS);
        let bits = number
            .filter(|_| is_number)
            .ok_or_else(|| format!("invalid number of bits {bits:?}"))?;
        if !is_date(date) {
            return Err(format!("invalid date {date:?}"));
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("it contains spaces or control characters".to_owned());
        }
        Ok(Stamp {
            bits,
            date,
            resource,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The usual example in descriptions of the format.
    const STAMP: &str = "1:20:040927:mertz@gnosis.cx::odVZhQMP:7ca28";

    /// Whatever the length of a resource, one block is hashed for each counter.
    #[test]
    fn counters_lie_where_one_block_is_hashed_for_each() {
        for before in 0..200 {
            let bytes = random_bytes(before);
            assert!(
                (RANDOM_BYTES..=RANDOM_BYTES + 15).contains(&bytes),
                "{before}"
            );
            let begin = before + BASE64_STANDARD.encode(vec![0; bytes]).len() + 1;
            for length in 1..=10 {
                assert_eq!(begin / 64, (begin + length + 9 - 1) / 64, "{before}");
            }
        }
    }

    #[test]
    fn stamps_are_checked() {
        let right = |text| checked(text, None, None);
        assert_eq!(
            right(STAMP).unwrap(),
            "right: 20 bits for mertz@gnosis.cx, dated 040927"
        );
        for (wrong, why) in [
            ("", "version 1"),
            ("0:040927:mertz@gnosis.cx:7ca28", "version 1"),
            ("2:20:040927:mertz@gnosis.cx::odVZhQMP:7ca28", "version 1"),
            ("1:20:040927:mertz@gnosis.cx::odVZhQMP:7ca28:", "version 1"),
            ("1:+20:040927:mertz@gnosis.cx::odVZhQMP:7ca28", "of bits"),
            ("1:161:040927:mertz@gnosis.cx::odVZhQMP:7ca28", "of bits"),
            ("1:20:041327:mertz@gnosis.cx::odVZhQMP:7ca28", "date"),
            ("1:20:04092:mertz@gnosis.cx::odVZhQMP:7ca28", "date"),
            ("1:20:040927:mertz@gnosis.cx::odVZhQMP:7ca28\n", "control"),
            ("1:20:040927:mertz@gnosis.cx::odVZhQMP:7ca29", "claims 20"),
        ] {
            let said = right(wrong).unwrap_err();
            assert!(said.contains(why), "{wrong:?}: {said}");
        }
        assert!(checked(STAMP, Some("mertz@gnosis.cx"), Some(20)).is_ok());
        assert!(checked(STAMP, Some("mertz@gnosis.cx"), Some(21)).is_err());
        assert!(checked(STAMP, Some("other@gnosis.cx"), None).is_err());
    }

    /// hashcash accepts a stamp whatever the case of its address, but mints stamps only in lower
    /// case.
    #[test]
    fn case_is_ignored() {
        for resource in ["mertz@gnosis.cx", "Mertz@Gnosis.CX", "MERTZ@GNOSIS.CX"] {
            assert!(checked(STAMP, Some(resource), None).is_ok(), "{resource}");
        }
        // Minted by hashcash 1.22 with -C.
        let stamp = "1:10:261129:Me@Example.COM::BrLwmWSroGGeF2JU:000007D";
        for resource in ["me@example.com", "Me@Example.COM", "ME@EXAMPLE.COM"] {
            let verdict = checked(stamp, Some(resource), None).unwrap();
            assert_eq!(verdict, "right: 10 bits for Me@Example.COM, dated 261129");
        }
        // As in hashcash, only the case of ASCII letters is ignored.
        assert!(checked("1:0:261129:\u{fc}::a:b", Some("\u{dc}"), None).is_err());
        assert!(checked("1:0:261129:\u{fc}::a:b", Some("\u{fc}"), None).is_ok());
    }

    /// Regression: the error was about an overlong prefix, although the user had given none.
    #[test]
    fn an_overlong_resource_is_rejected() {
        let stamp =
            |length: usize| format!("1:20:261129:{}::abcdefghijklmnop:", "r".repeat(length));
        let around = stamp(0).len();
        let longest = Keyspace::MAX_PREFIX - around;
        assert!(query(&stamp(longest), 20).is_ok());
        for (excess, bytes) in [(1, "1 byte"), (5, "5 bytes")] {
            let error = query(&stamp(longest + excess), 20).unwrap_err();
            let length = Keyspace::MAX_PREFIX + excess;
            let expected = format!(
                "the resource is too long: the stamp has {length} bytes without its counter, and the \
                 maximum is 65536; shorten the resource by at least {bytes}"
            );
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn zeros_covers_exactly_the_given_number_of_bits() {
        assert_eq!(zeros(8), ["00"]);
        assert_eq!(zeros(7), ["00", "01"]);
        assert_eq!(zeros(6), ["00", "01", "02", "03"]);
        assert_eq!(zeros(1), ["0", "1", "2", "3", "4", "5", "6", "7"]);
        assert_eq!(zeros(160), ["0".repeat(40)]);
    }

    #[test]
    fn dates_are_validated() {
        for right in ["261121", "2611212359", "261121235959", "000229"] {
            assert!(is_date(right), "{right}");
        }
        for wrong in ["", "26112", "2611211", "261131", "2611212460", "2611\u{e9}"] {
            assert!(!is_date(wrong), "{wrong}");
        }
    }
}
