#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| torchetcd::etcd::fuzzing::read_endpoints(data));
