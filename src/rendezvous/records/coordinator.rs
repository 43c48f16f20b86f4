//! The node that completes the round.

use serde::{Deserialize, Serialize};

use super::absent::is_unknown;
use super::node::NodeInfo;

/// The node that completes the round, and how far the round has come (for the log lines of those that wait).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coordinator {
    #[serde(flatten)]
    pub node: NodeInfo,
    pub joined: u32,
    /// The last call has begun: enough nodes are there.
    pub last_call: bool,
    /// Its limits, and since when it has coordinated.
    #[serde(default)]
    pub min: u32,
    #[serde(default)]
    pub max: u32,
    #[serde(default, skip_serializing_if = "is_unknown")]
    pub at: u64,
}
