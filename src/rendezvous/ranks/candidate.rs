//! A node that may get a rank.

use crate::rendezvous::keys::NodeId;

/// A node that joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidate<'a> {
    pub node: NodeId,
    /// The revision at which it joined: the order of arrival.
    pub arrival: i64,
    /// Its rank in the last completed round, when it, or an earlier one of its `node_id`, was a member there.
    pub previous: Option<u32>,
    pub infra: Option<u64>,
    pub domain: Option<&'a str>,
}

impl Candidate<'_> {
    /// Members of the last world come first, by rank, and then the others as they came.
    pub fn claim(&self) -> (u32, i64, NodeId) {
        (self.previous.unwrap_or(u32::MAX), self.arrival, self.node)
    }
}
