//! What the invariants remember of nodes, each for itself.

use std::collections::{BTreeMap, BTreeSet};

use super::round::Nth;
use crate::rendezvous::keys::{NodeId, node_of};
use crate::rendezvous::{Outcome, Time};
use crate::sim::model::Touched;
use crate::sim::node::NodeIx;

/// Which node returned from which round, with what.
#[derive(Default)]
pub struct Returned(BTreeMap<Nth, Vec<(NodeIx, Outcome)>>);

impl Returned {
    pub fn of(&self, nth: Nth) -> &[(NodeIx, Outcome)] {
        self.0.get(&nth).map_or(&[], Vec::as_slice)
    }

    pub fn add(&mut self, node: NodeIx, nth: Nth, outcome: &Outcome) {
        self.0.entry(nth).or_default().push((node, outcome.clone()));
    }
}

/// When a close returned.
#[derive(Clone, Copy, Debug)]
pub struct ClosedAt(pub Time);

/// Since when which round has had enough live nodes.
#[derive(Default)]
pub struct Progress {
    pub enough: Option<(u64, Time)>,
    /// The coordinators that were dead meanwhile. One after another may die before it could save its
    /// last call, and each is missed when its lease runs out.
    pub dead: BTreeSet<i64>,
    /// A live member of the last world was missing meanwhile: the coordinator waits for it.
    pub missed: bool,
}

/// How often keys were written: a node's own, and all.
#[derive(Default)]
pub struct Written {
    of_node: BTreeMap<NodeId, u64>,
    pub all: u64,
}

impl Written {
    pub fn take(&mut self, touched: &Touched) {
        if !touched.deleted {
            self.all += 1;
            if let Some(node) = node_of(&touched.kv.key) {
                *self.of_node.entry(node).or_default() += 1;
            }
        }
    }

    pub fn of(&self, node: NodeId) -> u64 {
        self.of_node.get(&node).copied().unwrap_or(0)
    }
}

/// Since when it has been so.
#[derive(Default)]
pub struct Excluded {
    pub denied: BTreeMap<NodeIx, Time>,
    pub doubled: BTreeMap<NodeIx, Time>,
}

/// Since when a node has been wrong about itself.
#[derive(Default)]
pub struct Entered(pub BTreeMap<NodeIx, Time>);
