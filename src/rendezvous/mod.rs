//! The rendezvous: a protocol core without I/O ([`Machine`]) and its driver.
//!
//! The core takes inputs (a node wants to join, an answer of etcd, a watch event, time has passed) and
//! returns actions (a transaction, a watch, a result). It has no socket, task, clock or source of
//! randomness, so that the simulator can run thousands of nodes from one seed in one thread.
//! `docs/protocol.md` has the keys, the states and the reasons.
//!
//! Each module knows only those before it: `keys`, `records`, `ranks`; `api`, the plain types of the core;
//! `core`; `driver`.

mod api;
mod core;
mod deny_list;
mod driver;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod keys;
mod phases;
mod ranks;
pub mod records;
pub mod reopen;
mod variant;

pub use self::api::{
    Action, Answer, Broken, CallId, Cause, Close, Input, Member, OnMemberLoss, Outcome, Progress,
    RendezvousError, Settings, Status, Time, Tuning, Wanted, WatchId,
};
pub use self::core::Machine;
pub use self::driver::Handle;
pub use self::keys::{Keys, NodeId, RoundId};
pub use self::phases::Phases;
pub use self::records::{
    Closed, Control, Ended, LONGEST_ADDRESS, LONGEST_LABEL, Labels, Master, NodeInfo, RankOrder,
    Reader, VERSION,
};
pub use self::reopen::Opening;
pub use self::variant::Variant;
