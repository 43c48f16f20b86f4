//! The inputs that the fuzz targets begin with, and those that once were findings, in every test run;
//! after them random ones, which are what a fuzzer tries first.

use std::path::PathBuf;

use crate::gateway::fuzzing as gateway;
use crate::rendezvous::fuzzing as rendezvous;
use crate::store::fuzzing as store;

const RANDOM: u64 = 2000;

fn check(target: &str, run: impl Fn(&[u8])) {
    let mut folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    folder.extend(["fuzz", "corpus", target]);
    let mut files = 0;
    for entry in std::fs::read_dir(&folder).expect("a folder for each target") {
        run(&std::fs::read(entry.expect("a readable folder").path()).expect("a readable file"));
        files += 1;
    }
    assert!(files > 0, "no seeds in {}", folder.display());
    for seed in 1..=RANDOM {
        // xorshift, which is random enough here.
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let bytes = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        });
        let length = usize::try_from(seed % 700).unwrap_or(0);
        run(&bytes.take(length).collect::<Vec<u8>>());
    }
}

#[test]
fn endpoints() {
    check("endpoints", crate::etcd::fuzzing::read_endpoints);
}

#[test]
fn rendezvous_keys() {
    check("rendezvous_keys", rendezvous::read_keys);
}

#[test]
fn rendezvous_records() {
    check("rendezvous_records", rendezvous::read_records);
}

#[test]
fn ranks() {
    check("ranks", rendezvous::assign_ranks);
}

#[test]
fn machine() {
    check("machine", rendezvous::run_machine);
}

#[test]
fn store_keys() {
    check("store_keys", store::read_keys);
}

#[test]
fn store_values() {
    check("store_values", store::read_values);
}

#[test]
fn store_chunks() {
    check("store_chunks", store::cut_chunks);
}

#[test]
fn store_requests() {
    check("store_requests", store::handle_requests);
}

#[test]
fn gateway_queries() {
    check("gateway_queries", gateway::read_queries);
}
