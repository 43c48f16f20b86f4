//! What a node says of itself besides its name and its address.

use serde::{Deserialize, Serialize};

use super::text::label;

/// No label is longer (in bytes).
pub const LONGEST_LABEL: usize = 128;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    /// The place in the run that this node takes, whichever process is there at present.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "label")]
    pub node_id: Option<String>,
    /// The rank that the infrastructure gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub infra_rank: Option<u64>,
    /// What it shares with its neighbours, such as a rack.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "label")]
    pub domain: Option<String>,
}
