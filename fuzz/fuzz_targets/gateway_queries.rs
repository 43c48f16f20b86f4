#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| _torchetcd::gateway::fuzzing::read_queries(data));
