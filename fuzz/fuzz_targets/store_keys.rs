#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| torchetcd::store::fuzzing::read_keys(data));
