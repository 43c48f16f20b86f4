//! The rendezvous: a protocol core without I/O ([`Machine`]) and its driver.
//!
//! The core takes inputs (a node wants to join, an answer of etcd, a watch event, time has passed) and
//! gives back actions (a transaction, a watch, a result). It has no socket, task, clock or source of
//! randomness, so that the simulator can run thousands of nodes from one seed in one thread.
//! `docs/protocol.md` has the keys, the states and the reasons.

mod chronicle;
pub mod denied;
mod driver;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod identity;
pub mod keys;
pub mod labels;
mod lead;
pub mod machine;
mod member;
mod phases;
pub mod ranks;
pub mod records;
pub mod reopen;
mod roll;
mod steps;
mod sweep;
mod usher;
pub mod variants;

pub use driver::Handle;
pub use keys::{Keys, NodeId};
pub use labels::{LONGEST_LABEL, Labels};
pub use machine::{
    Action, Answer, Broken, CallId, Cause, Close, Input, Machine, Member, OnMemberLoss, Outcome,
    Progress, RendezvousError, Settings, Status, Time, Tuning, Wanted, WatchId,
};
pub use phases::Phases;
pub use ranks::RankOrder;
pub use records::{
    Closed, Control, Ended, LONGEST_ADDRESS, Master, NodeInfo, Reader, RoundId, VERSION,
};
pub use reopen::Opening;
