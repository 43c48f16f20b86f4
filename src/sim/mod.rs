//! A simulation of many nodes and one etcd, from one seed, in one thread.
//!
//! The nodes run the real protocol core ([`crate::rendezvous::Machine`]); what is simulated is everything
//! around it: etcd (`model/`, compared with the real one by `conformance/`), the driver and the network
//! (`network.rs`, `watches.rs`), the agents of torchrun (`agents.rs`), and faults (`faults.rs`, `traps.rs`).
//! `world.rs` is all that there is, `checks/` what its keys have said, and `invariants/` what must hold; `play.rs` lets
//! it happen. Each seed is a time of chaos, then one without faults in
//! which progress must be made: a world that cannot heal has a bug.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::format_collect,
    clippy::match_same_arms,
    clippy::needless_for_each,
    clippy::struct_excessive_bools,
    clippy::trivially_copy_pass_by_ref,
    clippy::unchecked_time_subtraction,
    clippy::unused_self,
    clippy::type_complexity,
    reason = "a simulation's numbers are small, and one that computes a negative time has to fail"
)]

mod agent;
mod agents;
mod checks;
mod conformance;
mod crowds;
mod fault;
mod faults;
mod index;
mod invariants;
mod model;
mod network;
mod node;
mod operator;
mod placing;
mod play;
mod probe;
mod reader;
mod rng;
mod scale;
mod scenario;
mod seeds;
mod single;
mod trace;
mod trap;
mod traps;
mod unequal;
mod watchers;
mod watches;
mod world;
mod wrong;
