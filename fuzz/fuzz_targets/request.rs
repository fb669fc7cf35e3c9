//! Fuzzes the requests of both contracts that start or estimate a search.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hashfinder_server::fuzzing::request(data));
