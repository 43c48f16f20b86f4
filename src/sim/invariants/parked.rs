//! A node that waits in a full world has no deadline: its time begins when there may be a place for it.

use std::time::Duration;

use crate::sim::checks::Violation;
use crate::sim::node::NodeIx;
use crate::sim::world::World;

/// The barrier of this node has ended because its time was up.
pub fn has_no_deadline(world: &World, node: NodeIx, text: &str) -> Result<(), Violation> {
    let (Some((round, _)), Some(healed)) = (world.checks.history.complete(), world.healed) else {
        return Ok(());
    };
    let (Some(limits), Some((completed, _))) = (round.limits(), round.final_()) else {
        return Ok(());
    };
    let own = world.nodes[node].all_leases();
    let waits = round.waiting.iter().find(|(lease, _)| own.contains(lease));
    // It has had the time to be told.
    let soon = Duration::from_secs(2);
    let long_ago = |at: Duration| world.now > at.max(healed) + soon;
    let waited = waits.is_some_and(|(_, since)| long_ago(since.at)) && long_ago(completed.at);
    if waited && round.lost.is_none() && round.members.len() >= limits.largest() {
        return Err(Violation::new("parked", format!("n{node} gives up: {text}")));
    }
    Ok(())
}
