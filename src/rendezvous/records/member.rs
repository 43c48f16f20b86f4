//! A member's rank, under the member's own lease.

use serde::{Deserialize, Serialize};

use super::codec::{Reader, UnreadableRecord};
use super::labels::Labels;
use super::node::NodeInfo;
use super::text::for_people;
use crate::rendezvous::keys::NodeId;

/// A member's rank, under the member's own lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub rank: u32,
    /// The member that this one watches: that of the next rank, and of rank 0 for the last one.
    #[serde(default)]
    pub next: NodeId,
    #[serde(flatten)]
    pub node: NodeInfo,
    /// The address that it offered.
    #[serde(default, deserialize_with = "for_people")]
    pub addr: String,
    #[serde(flatten)]
    pub labels: Labels,
}

impl Reader {
    /// The member key of one's own in a world of that size.
    pub fn member(self, key: &str, value: &[u8], world: u32) -> Result<Member, UnreadableRecord> {
        let member: Member = self.record(key, value)?;
        if member.rank >= world {
            let cause = format!("it has rank {} in a world of {world}", member.rank);
            return Err(UnreadableRecord::garbage(key, &cause));
        }
        Ok(member)
    }
}
