//! Which nodes a world has places for.

use std::collections::BTreeSet;
use std::time::Duration;

use super::agent::Doing;
use super::checks::round::Limits;
use super::node::NodeIx;
use super::world::World;

impl World {
    /// For how many of these nodes a coordinator that goes by these limits has places.
    pub fn placeable(&self, nodes: &[NodeIx], limits: Limits) -> usize {
        let mut ids = BTreeSet::new();
        let labels = |node: &NodeIx| &self.nodes[*node].settings().labels;
        let counts = |node: &&NodeIx| {
            self.speaks(**node)
                && !self.is_denied(**node)
                && labels(node).node_id.clone().is_none_or(|id| ids.insert(id))
        };
        let nodes: Vec<NodeIx> = nodes.iter().filter(counts).copied().collect();
        limits.order.placeable(nodes.iter().map(|node| labels(node).domain.as_deref()))
    }

    /// Whether these are enough for a round, whichever of them coordinates it.
    pub fn are_enough(&self, nodes: &[NodeIx]) -> bool {
        let speaks = |node: &&NodeIx| self.speaks(**node);
        // Mostly they are equal.
        let mut distinct: Vec<Limits> = Vec::new();
        for limits in nodes.iter().filter(speaks).map(|node| self.limits_of(Some(*node))) {
            if !distinct.contains(&limits) {
                distinct.push(limits);
            }
        }
        let enough = |limits: &Limits| self.placeable(nodes, *limits) >= limits.min;
        !distinct.is_empty() && distinct.iter().all(enough)
    }

    /// The version that the run speaks.
    fn version(&self) -> u32 {
        self.control().map_or(self.scenario.settings.version, |control| control.version)
    }

    /// Knows the version that the run speaks.
    pub fn speaks(&self, node: NodeIx) -> bool {
        self.nodes[node].settings().version >= self.version()
    }

    pub fn start_enough(&mut self) {
        while !self.are_enough(&self.live()) {
            self.start_node();
        }
    }

    /// Takes part, or tries to.
    pub fn takes_part(&self, node: NodeIx) -> bool {
        let doing = &self.nodes[node].agent.doing;
        matches!(doing, Doing::Joining | Doing::Training { .. } | Doing::Stopping(_))
    }

    /// How long an agent may need to find out that it is not wanted.
    pub fn time_to_be_told(&self) -> Duration {
        self.scenario.poll + self.scenario.stop + Duration::from_secs(3)
    }
}
