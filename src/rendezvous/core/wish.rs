//! A node's wish to be in the next round, and where it has put itself for that.

use crate::rendezvous::api::Time;
use crate::rendezvous::records::Master;

#[allow(clippy::struct_excessive_bools, reason = "each is about something else")]
#[derive(Clone, Debug)]
pub struct Wish {
    pub master: Master,
    pub started: Time,
    /// What this node knew, as a member of a world, when it was told to join again.
    pub why: Option<String>,
    /// The head was read since, so that nobody is turned away for what was.
    pub confirmed: bool,
    /// It was a member of no world when it was told to join.
    pub newcomer: bool,
    /// It has seen the run open since: a close that comes after is for it, too.
    pub seen_open: bool,
    /// It waits in a full world, or for a segment: the deadline does not run.
    pub parked: bool,
    /// The last call had begun when its time was up.
    pub extended: bool,
}

/// Where this node has put itself for the round that the control record names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    Outside,
    Joined(u64),
    Waiting(u64),
}
