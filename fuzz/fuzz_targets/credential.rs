//! Fuzzes credentials and the file of API keys.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hashfinder_server::fuzzing::credential(data));
