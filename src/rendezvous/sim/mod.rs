//! A simulation of many nodes and one etcd, from one seed, in one thread.
//!
//! The nodes run the real protocol core ([`super::machine::Machine`]); what is simulated is everything
//! around it: etcd (`model/`, compared with the real one by `conformance.rs`), the driver and the network
//! (`network.rs`, `watches.rs`), the agents of torchrun (`agent.rs`), and what befalls them (`faults.rs`).
//! `invariants/` says what must hold meanwhile. Each seed is a time of chaos, then one without faults in
//! which progress must be made: a world that cannot heal has a bug.

mod agent;
mod conformance;
mod crowds;
mod faults;
pub(super) mod hooks;
mod invariants;
mod model;
mod network;
mod node;
mod operator;
mod placing;
mod probe;
mod rng;
mod scale;
mod scenario;
mod seeds;
mod single;
mod trace;
mod traps;
mod unequal;
mod watchers;
mod watches;
mod world;
mod wrong;
