//! No lease is lost but by a fault: neither a node's nor the run's.

use std::time::Duration;

use crate::rendezvous::Time;
use crate::sim::checks::Violation;
use crate::sim::model::Touched;
use crate::sim::node::Node;
use crate::sim::world::World;

/// What etcd takes to notice that a lease has run out, and the longest that a renewal is on its way.
const GRAIN: Duration = Duration::from_millis(700);

/// This lease has run out, which was granted for so long.
pub fn none_is_lost(world: &World, lease: i64, granted: Duration) -> Result<(), Violation> {
    let lost = |node: &Node, since: Time| {
        node.was_calm_for(world.now, granted + GRAIN) && world.now > since + granted + GRAIN
    };
    if lease == world.keys.run_lease() {
        let renews = |node: &Node| node.keep_alives.get(&lease).map(|known| known.since);
        let had_time = |node: &Node| renews(node).is_some_and(|since| lost(node, since));
        return match world.which(had_time)[..] {
            [] => Ok(()),
            [node, ..] => {
                let text = format!("the run's lease ran out, and n{node} was to renew it");
                Err(Violation::new("lease", text))
            }
        };
    }
    let holder = world.holder(lease).map(|node| (node, &world.nodes[node]));
    if let Some((node, state)) = holder
        && state.was_calm_for(world.now, granted)
    {
        return Err(Violation::new("lease", format!("n{node} lost its lease without a fault")));
    }
    Ok(())
}

/// In quiet times the run's lease does not run out. It may do so while all its nodes are cut off.
pub fn run_goes_on(world: &World, touched: &Touched) -> Result<(), Violation> {
    let gone = touched.deleted && touched.kv.key == world.keys.control().as_bytes();
    let (true, false, Some(healed)) = (gone, world.ended, world.healed) else { return Ok(()) };
    let soon = Duration::from_secs(3);
    let had_time = |node: &Node| {
        node.is_up() && world.is_of_the_run(node) && world.now > healed.max(node.started) + soon
    };
    let there = world.which(had_time).into_iter().find(|node| world.speaks(*node));
    there.map_or(Ok(()), |node| {
        Err(Violation::new("lease", format!("the run's lease ran out while n{node} was there")))
    })
}
