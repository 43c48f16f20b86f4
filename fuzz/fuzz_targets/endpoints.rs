#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| _torchetcd::etcd::fuzzing::read_endpoints(data));
