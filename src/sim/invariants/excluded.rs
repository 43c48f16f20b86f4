//! A node that is denied, or whose `node_id` another agent has, is out soon.

use std::collections::BTreeMap;

use crate::rendezvous::records::{Control, State};
use crate::sim::checks::Violation;
use crate::sim::checks::memory::Excluded;
use crate::sim::node::NodeIx;
use crate::sim::world::World;

pub fn not_for_long(world: &mut World) -> Result<(), Violation> {
    let closed = matches!(world.control(), None | Some(Control { state: State::Closed(_), .. }));
    let Some(healed) = world.healed.filter(|_| !closed) else {
        world.checks.excluded = Excluded::default();
        return Ok(());
    };
    if world.denied.is_empty() && !world.scenario.node_ids {
        return Ok(());
    }
    let up: Vec<NodeIx> = world.up().into_iter().filter(|node| world.takes_part(*node)).collect();
    let denied = up.iter().copied().filter(|node| world.is_denied(*node)).collect();
    let id = |node: &NodeIx| world.nodes[*node].settings().labels.node_id.as_ref();
    let mut seen: BTreeMap<&String, usize> = BTreeMap::new();
    up.iter().filter_map(id).for_each(|id| *seen.entry(id).or_default() += 1);
    let twin = |node: &NodeIx| id(node).is_some_and(|id| seen.get(id) > Some(&1));
    let doubled = up.iter().copied().filter(twin).collect();
    let bound = world.time_to_be_told();
    let now = world.now;
    let Excluded { denied: old_denied, doubled: old_doubled } = &mut world.checks.excluded;
    for (name, since, nodes) in [("denied", old_denied, denied), ("identity", old_doubled, doubled)]
    {
        let nodes: Vec<NodeIx> = nodes;
        since.retain(|node, _| nodes.contains(node));
        for node in nodes {
            let began = *since.entry(node).or_insert(now);
            if now > began.max(healed) + bound {
                let text = format!("n{node} is still there after {:?}", now - began);
                return Err(Violation::new(name, text));
            }
        }
    }
    Ok(())
}
