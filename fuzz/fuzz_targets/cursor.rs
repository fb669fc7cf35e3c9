//! Fuzzes cursors: arbitrary texts, and arbitrary fields with a correct checksum, which a fuzzer
//! could not guess.

#![no_main]

use data_encoding::BASE64URL_NOPAD;
use hashfinder_search::Cursor;
use libfuzzer_sys::fuzz_target;
use sha1::{Digest, Sha1};

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let text = match kind % 8 {
        0 | 4 => match str::from_utf8(rest) {
            Ok(text) => text.to_owned(),
            Err(_) => return,
        },
        1 | 5 => closed("hf1_", rest),
        6 => closed("hf3_", rest),
        7 => closed("hf4_", rest),
        _ => closed("hf2_", rest),
    };
    let Ok(cursor) = text.parse::<Cursor>() else {
        return;
    };
    assert!(cursor.frontier() <= cursor.query().keyspace().end());
    // Several texts may mean the same cursor, but its printed form must parse to the same cursor.
    let printed = cursor.to_string();
    assert_eq!(printed.parse().as_ref(), Ok(&cursor), "{text}");
    let again = Cursor::new(&cursor.query(), cursor.frontier());
    assert_eq!(again.with_nearest(cursor.nearest()), cursor);
});

fn closed(prefix: &str, fields: &[u8]) -> String {
    let sum = Sha1::new()
        .chain_update(prefix)
        .chain_update(fields)
        .finalize();
    let closed = [fields, &sum[..4]].concat();
    format!("{prefix}{}", BASE64URL_NOPAD.encode(&closed))
}
