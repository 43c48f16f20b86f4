//! What the simulator looks at inside of the protocol core. Nothing else of it does.

use std::collections::BTreeSet;

use super::node::Node;
use crate::rendezvous::keys::NodeId;
use crate::rendezvous::{Settings, Status};

impl Node {
    pub fn settings(&self) -> &Settings {
        self.machine.settings()
    }

    pub fn status(&self) -> Status {
        self.machine.status()
    }

    /// Its identity: its lease.
    pub fn lease(&self) -> Option<NodeId> {
        self.machine.node()
    }

    /// Its earlier identities, as far as it remembers them.
    pub fn formers(&self) -> impl Iterator<Item = NodeId> {
        self.machine.former_nodes()
    }

    /// Wants to be in the next round.
    pub fn is_joining(&self) -> bool {
        self.machine.is_joining()
    }

    /// The head was read, and its watch has shown everything up to this revision.
    pub fn has_seen_head(&self, revision: i64, etcd: u64) -> bool {
        let watch = self.machine.known_head().and_then(|watch| self.watches.get(&watch));
        watch.is_some_and(|w| w.open && w.etcd == etcd && w.scanned > revision)
    }

    /// All leases that it has had.
    pub fn all_leases(&self) -> &BTreeSet<NodeId> {
        &self.leases
    }
}
