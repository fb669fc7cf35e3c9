//! Fuzzes the messages of both contracts that request a search.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hashfinder_server::fuzzing::request(data));
