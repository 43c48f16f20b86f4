//! The node that counts the waiting nodes, and how many there are.

use serde::{Deserialize, Serialize};

use super::absent::is_unknown;
use super::node::NodeInfo;
use crate::rendezvous::keys::RoundId;

/// The waiting node that counts, for all, those who wait for a place in the round after this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usher {
    #[serde(flatten)]
    pub node: NodeInfo,
    #[serde(flatten)]
    pub id: RoundId,
    /// For so many of them there are places.
    pub count: u32,
    #[serde(default, skip_serializing_if = "is_unknown")]
    pub at: u64,
}
