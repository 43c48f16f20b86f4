#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| _torchetcd::store::fuzzing::handle_requests(data));
