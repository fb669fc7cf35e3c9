//! Prints on stdout and stderr, and escapes text for terminals and shells.

pub(crate) mod figures;
pub(crate) mod live;

use std::{
    env, fmt,
    io::{self, Write},
};

use anyhow::Context;
use serde_json::Value;

pub(crate) use hashfinder_system::text::as_text;

/// Prints a message on stderr, as one line in which control characters are escaped. Errors in
/// writing to stderr are ignored.
pub(crate) fn say(what: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "hashfinder: {}", as_text(&what.to_string()));
}

/// Returns an object as one line of JSON without control characters. JSON strings may contain some
/// control characters, but a terminal would interpret them.
pub(crate) fn json(object: &Value) -> String {
    let mut line = String::new();
    for character in object.to_string().chars() {
        if character.is_control() {
            line += &format!("\\u{:04x}", u32::from(character));
        } else {
            line.push(character);
        }
    }
    line
}

/// Prints to stdout and flushes it. Returns whether stdout is still open: a reader that closes it
/// early, as `head` does, is not an error.
pub(crate) fn print(what: impl AsRef<[u8]>) -> anyhow::Result<bool> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(what.as_ref());
    is_read(written.and_then(|()| stdout.flush()))
}

/// Returns whether stdout is still open, given the result of writing to it.
pub(crate) fn is_read(written: io::Result<()>) -> anyhow::Result<bool> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to stdout"),
    }
}

/// Returns whether the terminal understands escape sequences, according to the environment.
pub(crate) fn takes_escapes() -> bool {
    env::var_os("TERM").is_some_and(|terminal| !terminal.is_empty() && terminal != "dumb")
}

/// Quotes a word for a shell. A word with control characters is written as `$'...'`, which bash,
/// zsh, ksh and POSIX 2024 shells read.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:%+,@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else if word.contains(char::is_control) {
        let escape = |c: char| match c {
            '\'' | '\\' => format!("\\{c}"),
            c if c.is_control() => {
                let mut bytes = [0; 4];
                let bytes = c.encode_utf8(&mut bytes).bytes();
                bytes.map(|byte| format!("\\{byte:03o}")).collect()
            }
            c => c.to_string(),
        };
        format!("$'{}'", word.chars().map(escape).collect::<String>())
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_no_control_characters() {
        let object = serde_json::json!({"text": "\x1b[2J\n\u{7f}\u{9b}31m\u{e9}"});
        let line = json(&object);
        assert!(!line.contains(char::is_control), "{line}");
        assert_eq!(line.parse::<Value>().unwrap(), object);
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        for (word, shown) in [
            ("a/b-c.1", "a/b-c.1"),
            ("", "''"),
            ("it's", r"'it'\''s'"),
            ("caf\u{e9}", "'caf\u{e9}'"),
            ("a\x1b[31m\n'\\", r"$'a\033[31m\012\'\\'"),
            ("\u{9b}", r"$'\302\233'"),
        ] {
            assert_eq!(quoted(word), shown);
        }
    }
}
