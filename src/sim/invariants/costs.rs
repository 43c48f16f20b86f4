//! What a round may cost: per node at most 8 calls, 3 written keys and a few bytes, whatever the number
//! of nodes is; for the coordinator and for the whole round O(N).

use crate::sim::checks::Violation;
use crate::sim::node::{Costs, NodeIx};
use crate::sim::world::World;

const RPCS: u64 = 8;
const KEYS: u64 = 3;
/// Sent and received together. What it is does not matter, that it is the same for every N does.
const BYTES: u64 = 6000;

/// What a round has cost, at most for one node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bill {
    pub nodes: u64,
    pub rpcs: u64,
    pub keys: u64,
    pub bytes: u64,
    /// Of the one that completed the round.
    pub coordinator_rpcs: u64,
    pub coordinator_bytes: u64,
    /// Of all nodes together.
    pub all_rpcs: u64,
    pub all_keys: u64,
    pub all_bytes: u64,
}

impl Bill {
    /// The costs of all nodes since the last bill.
    pub fn of(world: &mut World, coordinator: NodeIx) -> Self {
        let mut bill = Self { nodes: world.nodes.len() as u64, ..Self::default() };
        for (index, node) in world.nodes.iter_mut().enumerate() {
            let Costs { rpcs, sent, received, .. } = std::mem::take(&mut node.costs);
            let bytes = sent + received;
            bill.all_rpcs += rpcs;
            bill.all_bytes += bytes;
            if index == coordinator {
                (bill.coordinator_rpcs, bill.coordinator_bytes) = (rpcs, bytes);
            } else {
                bill.rpcs = bill.rpcs.max(rpcs);
                bill.bytes = bill.bytes.max(bytes);
                let keys = node.lease().map_or(0, |lease| world.checks.written.of(lease));
                bill.keys = bill.keys.max(keys);
            }
        }
        bill.all_keys = std::mem::take(&mut world.checks.written).all;
        bill
    }

    pub fn check(&self) -> Result<(), Violation> {
        let n = self.nodes;
        let within = self.rpcs <= RPCS
            && self.keys <= KEYS
            && self.bytes <= BYTES
            && self.coordinator_rpcs <= 2 * RPCS + n / 30
            && self.coordinator_bytes <= BYTES + 1000 * n
            && self.all_keys <= KEYS * n + 10;
        if within { Ok(()) } else { Err(Violation::new("costs", format!("{self:?}"))) }
    }
}
