//! The rendezvous: a protocol core without I/O ([`Machine`]) and its driver.
//!
//! The core takes inputs (a node wants to join, an answer of etcd, a watch event, time has passed) and
//! gives back actions (a transaction, a watch, a result). It has no socket, task, clock or source of
//! randomness, so that the simulator can run thousands of nodes from one seed in one thread.
//! `docs/protocol.md` has the keys, the states and the reasons.

mod chronicle;
mod denied;
mod driver;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod identity;
mod keys;
mod labels;
mod lead;
mod machine;
mod member;
mod phases;
mod ranks;
mod records;
pub mod reopen;
mod roll;
#[cfg(test)]
#[allow(
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
mod sim;
mod steps;
mod sweep;
mod usher;
mod variants;

pub use driver::Handle;
pub use keys::{Keys, NodeId};
pub use labels::{LONGEST_LABEL, Labels};
pub use machine::{
    Action, Answer, CallId, Close, Input, Machine, Member, OnMemberLoss, Outcome, Progress,
    RendezvousError, Settings, Status, Time, Wanted, WatchId,
};
pub use phases::Phases;
pub use ranks::RankOrder;
pub use records::{
    Closed, Control, Ended, LONGEST_ADDRESS, Master, NodeInfo, Reader, RoundId, VERSION,
};
pub use reopen::Opening;
