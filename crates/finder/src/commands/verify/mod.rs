//! `hashfinder verify`: checks whether the hash of a secret contains a name.

mod arguments;

use anyhow::Result;
use base64::{Engine, prelude::BASE64_STANDARD};
use hashfinder_search::DesiredName;

pub(crate) use self::arguments::VerifyArguments;
use super::find::{EMPTY, Finding};
use crate::{
    exit::Exit,
    terminal::{json, print, say},
};

/// Prints the secret's hashed name and distance. Returns whether it is near enough, as the exit
/// code.
pub(crate) fn run(arguments: &VerifyArguments) -> Result<Exit> {
    let text = &arguments.secret;
    let secret = if text == EMPTY {
        Ok(Vec::new())
    } else if arguments.hex {
        from_hex(text).ok_or("hexadecimal; give two digits for each byte")
    } else {
        let why = "standard base64 with padding; for hexadecimal, use --hex";
        BASE64_STANDARD.decode(text).map_err(|_| why)
    };
    let secret = match secret {
        Ok(secret) => secret,
        Err(why) => {
            say(format_args!("the secret {text:?} is not {why}"));
            return Ok(Exit::Usage);
        }
    };
    let name = match DesiredName::new(&arguments.name, arguments.spelling.spelling()) {
        Ok(name) => name,
        Err(wrong) => {
            say(wrong);
            return Ok(Exit::Usage);
        }
    };
    let finding = Finding::of(secret, &name);
    let within = finding.distance <= arguments.ideal_distance.get();
    let line = if arguments.json {
        let object = serde_json::json!({
            "name": arguments.name,
            "ideal_distance": arguments.ideal_distance.get(),
            "hashed_name": finding.hashed_name.as_str(),
            "secret": BASE64_STANDARD.encode(&finding.secret),
            "hex": finding.hex(),
            "distance": finding.distance,
            "window": finding.window,
            "within": within,
        });
        json(&object)
    } else {
        finding.to_string()
    };
    print(format!("{line}\n"))?;
    Ok(if within { Exit::Success } else { Exit::No })
}

/// Returns the bytes of a hexadecimal text, in upper or lower case; `None` if it is invalid.
fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.chars().map(|character| character.to_digit(16));
    let digits: Vec<u32> = digits.collect::<Option<_>>()?;
    let bytes = digits.chunks_exact(2);
    bytes
        .remainder()
        .is_empty()
        .then(|| bytes.map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_is_decoded() {
        assert_eq!(from_hex(""), Some(vec![]));
        assert_eq!(from_hex("a4eD06"), Some(vec![0xa4, 0xed, 0x06]));
        for wrong in ["a", "a4e", "0x", "+1", "\u{e9}\u{e9}", " a"] {
            assert_eq!(from_hex(wrong), None, "{wrong:?}");
        }
    }
}
