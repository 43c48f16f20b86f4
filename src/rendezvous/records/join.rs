//! A node that takes part in a round.

use serde::{Deserialize, Serialize};

use super::codec::Reader;
use super::labels::Labels;
use super::node::{Master, NodeInfo, Stay, check_address};
use super::order::RankOrder;
use super::text::label;
use crate::etcd::kv::KeyValue;
use crate::rendezvous::keys::NodeId;

/// A node that takes part in a round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    #[serde(flatten)]
    pub node: NodeInfo,
    /// Where this node's workers could be reached if it became rank 0.
    pub master_addr: String,
    pub master_port: u16,
    #[serde(flatten)]
    pub stay: Stay,
    #[serde(flatten)]
    pub labels: Labels,
    /// Its `rank_order`, unless it is the default.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "label")]
    rank_order: Option<String>,
}

impl Join {
    pub fn new(node: NodeInfo, master: Master, stay: Stay, labels: Labels) -> Self {
        let Master { addr: master_addr, port: master_port } = master;
        Self { node, master_addr, master_port, stay, labels, rank_order: None }
    }

    pub fn with_order(mut self, order: RankOrder) -> Self {
        self.rank_order = (order != RankOrder::Stable).then(|| order.to_string());
        self
    }

    /// By what it wants ranks to be.
    pub fn order(&self) -> &str {
        self.rank_order.as_deref().unwrap_or("stable")
    }
}

impl Reader {
    /// The join that a node has written itself; `None` for whatever else lies there.
    pub fn join(self, kv: &KeyValue) -> Option<(NodeId, Join)> {
        let (node, join): (NodeId, Join) = self.of_its_node(kv)?;
        check_address(&join.master_addr).ok()?;
        Some((node, join))
    }
}
