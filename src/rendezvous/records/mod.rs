//! The values of the run's keys, one record a file, and one codec for all.
//!
//! Anybody may have written what lies under our keys, so nothing of it is used before it was checked: no
//! number that a sum of ours could not take, no name that would not fit into our own keys and values.

mod absent;
mod codec;
mod control;
mod coordinator;
mod denial;
mod join;
mod labels;
mod last_call;
mod loss;
mod member;
mod node;
mod order;
mod past;
mod roster;
#[cfg(test)]
mod tests;
mod text;
mod usher;
mod waiting;

pub use codec::{OLDEST, Reader, UnreadableRecord, VERSION, encode};
pub use control::{Closed, Control, Ended, Final, Previous, State, Story};
pub use coordinator::Coordinator;
pub use denial::Denial;
pub use join::Join;
pub use labels::{LONGEST_LABEL, Labels};
pub use last_call::LastCall;
pub use loss::Loss;
pub use member::Member;
pub use node::{LONGEST_ADDRESS, Master, NodeInfo, Stay};
pub use order::RankOrder;
pub use past::{Past, ROUNDS_KEPT};
pub use roster::{Roster, RosterEntry};
pub use text::plain;
pub use usher::Usher;
pub use waiting::Waiting;
