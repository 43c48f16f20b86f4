//! What a node says of itself besides its name and its address.

use serde::{Deserialize, Deserializer, Serialize};

use super::records::plain;

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

/// Anybody may have written it.
pub(super) fn label<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(|text| plain(&text)))
}
