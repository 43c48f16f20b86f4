//! A node that has left the run writes nothing there: what its calls would do is for a node that is gone.

use crate::sim::checks::Violation;
use crate::sim::node::{NodeIx, Request};
use crate::sim::world::World;

/// A request that was sent after its node had left, and whether it wrote something.
pub fn writes_nothing(
    world: &World,
    node: NodeIx,
    request: &Request,
    wrote: bool,
) -> Result<(), Violation> {
    // `set_closed()` is carried out nevertheless.
    let asked = world.nodes[node].agent.wish.is_some_and(|wish| wish.explicit);
    if !wrote || asked || world.nodes[node].is_live() {
        return Ok(());
    }
    let text = format!("n{node} has left, and its {request:?} takes effect");
    Err(Violation::new("ghost", text))
}
