//! A simulation of many nodes and one etcd, from one seed, in one thread.
//!
//! The nodes run the real protocol core ([`super::machine::Machine`]); what is simulated is everything
//! around it: etcd (`model/`, compared with the real one by `conformance.rs`), the driver and the network
//! (`network.rs`, `watches.rs`), the agents of torchrun (`agent.rs`), and what befalls them (`faults.rs`).
//! `invariants/` says what must hold meanwhile. Each seed is a time of chaos, then one without faults in
//! which progress must be made: a world that cannot heal has a bug.

mod agent;
mod conformance;
mod faults;
pub(super) mod hooks;
mod invariants;
mod model;
mod network;
mod node;
mod operator;
mod rng;
mod scale;
mod scenario;
mod seeds;
mod trace;
mod traps;
mod watches;
mod world;
mod wrong;
