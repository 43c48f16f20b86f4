//! The run's lease is renewed for as long as a node is there.

use std::time::Duration;

use super::Violation;
use crate::rendezvous::sim::model::Touched;
use crate::rendezvous::sim::node::Node;
use crate::rendezvous::sim::world::World;

/// In quiet times, that is: it may run out while all its nodes are cut off.
pub fn is_renewed(world: &World, touched: &Touched) -> Result<(), Violation> {
    let gone = touched.deleted && touched.kv.key == world.keys.control().as_bytes();
    let (true, false, Some(healed)) = (gone, world.ended, world.healed) else { return Ok(()) };
    let soon = Duration::from_secs(3);
    let had_time = |node: &Node| node.is_up() && world.now > healed.max(node.started) + soon;
    if world.which(had_time).is_empty() {
        return Ok(());
    }
    Err(Violation::new("run lease", "the run's lease ran out while nodes were there"))
}
