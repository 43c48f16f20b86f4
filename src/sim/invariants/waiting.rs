//! `num_nodes_waiting` is positive for a reason only: spares never make a full, healthy world restart,
//! nor do members that leave after a close.

use crate::rendezvous::OnMemberLoss;
use crate::sim::agent::Doing;
use crate::sim::checks::Violation;
use crate::sim::node::NodeIx;
use crate::sim::world::World;

pub fn positive_for_a_reason(world: &World, node: NodeIx, waiting: usize) -> Result<(), Violation> {
    let state = &world.nodes[node];
    let Doing::Training { outcome, nth, .. } = &state.agent.doing else { return Ok(()) };
    if waiting == 0 {
        return Ok(());
    }
    let history = &world.checks.history;
    let Some(round) = history.get(*nth) else { return Ok(()) };
    // A reason counts if it existed before the run was closed.
    let counts = |revision: i64| history.closed.is_none_or(|closed| revision < closed.revision);
    if nth.epoch != history.epoch {
        // The run has restarted.
        return Ok(());
    }
    let next = history.current().filter(|(current, _)| current > nth);
    let next = next.and_then(|(_, round)| round.opened);
    let restarts = state.settings().on_member_loss == OnMemberLoss::Restart;
    let lost = round.lost.map(|since| since.revision);
    let room = (outcome.world as usize) < round.limits().map_or(0, |limits| limits.largest())
        || lost.is_some_and(counts);
    let member = round.members.get(&outcome.rank);
    let reasons = [
        next.map(|since| since.revision),
        lost.filter(|_| restarts),
        round.waited.map(|since| since.revision).filter(|_| room),
    ];
    let expelled = member.is_none_or(|lease| !world.etcd.has_lease(*lease));
    // It was told so by a key that may be gone again.
    let excluded = state.status().excluded.is_some();
    if excluded || reasons.into_iter().flatten().any(counts) || expelled {
        return Ok(());
    }
    let text = format!(
        "n{node} sees {waiting} waiting in round {} of {} without a reason; lost: {:?}, waited: {:?}, \
         closed: {:?}",
        outcome.round, outcome.world, round.lost, round.waited, history.closed
    );
    Err(Violation::new("waiting", text))
}
