//! I4: closed is final, unless an operator reopens the run. After the close has returned, every blocked and every later join ends with it.

use std::time::Duration;

use crate::rendezvous::Outcome;
use crate::sim::checks::Violation;
use crate::sim::checks::memory::ClosedAt;
use crate::sim::node::NodeIx;
use crate::sim::world::World;

pub fn closed(world: &mut World, node: NodeIx) -> Result<(), Violation> {
    if world.checks.history.closed.is_none()
        && world.checks.history.reopened.is_none()
        && world.checks.history.epoch == 0
    {
        let text = format!("n{node} has closed the run, says it, and the record does not");
        return Err(Violation::new("I4", text));
    }
    if world.checks.history.closed.is_some() {
        world.checks.closed.get_or_insert(ClosedAt(world.now));
    }
    Ok(())
}

/// What etcd answered before the close may still be on its way; nothing it answered after may end a
/// join well.
pub fn not_after_the_close(
    world: &World,
    node: NodeIx,
    outcome: &Outcome,
) -> Result<(), Violation> {
    let Some(closed) = &world.checks.history.closed else { return Ok(()) };
    let answered = world.nodes[node].answered;
    if answered < closed.revision || world.nodes[node].etcd != world.etcd_number {
        return Ok(());
    }
    let text = format!(
        "n{node} returned from round {} by an answer of revision {answered}, the run was closed at {}",
        outcome.round, closed.revision
    );
    Err(Violation::new("I4", text))
}

pub fn nobody_is_blocked(world: &World) -> Result<(), Violation> {
    let (Some(ClosedAt(closed)), Some(healed)) = (world.checks.closed, world.healed) else {
        return Ok(());
    };
    let bound = Duration::from_secs(1) + world.scenario.calm_latency() * 8;
    for node in world.up() {
        let state = &world.nodes[node];
        let since = closed.max(healed).max(state.agent.joined_at);
        if state.is_joining() && world.now > since + bound {
            let text = format!("n{node} still waits {:?} after the close", world.now - since);
            return Err(Violation::new("I4", text));
        }
    }
    Ok(())
}
