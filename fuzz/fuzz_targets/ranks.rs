#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| _torchetcd::rendezvous::fuzzing::assign_ranks(data));
