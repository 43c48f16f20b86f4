//! A node that arrived after the round was complete, and wants to be in the next one.

use serde::{Deserialize, Serialize};

use super::codec::Reader;
use super::labels::Labels;
use super::node::{NodeInfo, Stay};
use crate::etcd::kv::KeyValue;
use crate::rendezvous::keys::NodeId;

/// A node that arrived after the round was complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    #[serde(flatten)]
    pub node: NodeInfo,
    #[serde(flatten)]
    pub stay: Stay,
    #[serde(flatten)]
    pub labels: Labels,
}

impl Reader {
    /// The same of a node that waits.
    pub fn waiting(self, kv: &KeyValue) -> Option<(NodeId, Waiting)> {
        self.of_its_node(kv)
    }
}
