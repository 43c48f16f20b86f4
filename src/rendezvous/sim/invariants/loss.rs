//! A lost member, or a node that fits in, shows to all members within a second of etcd's knowing it.

use std::time::Duration;

use super::Violation;
use crate::rendezvous::machine::OnMemberLoss;
use crate::rendezvous::records::State;
use crate::rendezvous::sim::agent::Doing;
use crate::rendezvous::sim::world::World;

const ONE: Duration = Duration::from_secs(1);

pub fn all_see_the_loss(world: &World) -> Result<(), Violation> {
    let Some(healed) = world.healed else { return Ok(()) };
    let Some(control) = world.control() else { return Ok(()) };
    let (State::Final(complete), Some(round)) =
        (&control.state, world.checks.history.round(control.round))
    else {
        return Ok(());
    };
    let restarts = world.checks.on_member_loss == OnMemberLoss::Restart;
    // Who was to tell of a loss may have been lost next: its own loss is told of when its lease has run
    // out.
    let untold = |lease| world.holder(lease).is_none_or(|node| !world.nodes[node].is_up());
    if round.live().any(untold) {
        return Ok(());
    }
    let lost = round.last_lost.filter(|_| restarts);
    // Room for a node that waits: from the beginning, or since a member was lost.
    let small = (complete.world as usize) < world.largest();
    let room = if small { Some(Duration::ZERO) } else { round.last_lost.map(|since| since.at) };
    // Where only whole segments count, the last one that came may be what matters.
    let waits = if world.has_segments() {
        round.waiting.values().map(|since| since.at).max()
    } else {
        round.waiting.values().map(|since| since.at).min()
    };
    let order = world.scenario.settings.order;
    let domain = |node: &i64| round.domains.get(node).and_then(Option::as_deref);
    let fitting = order.placeable(round.waiting.keys().map(domain));
    let waits = waits.filter(|_| fitting > 0);
    let waits = waits.and_then(|at| Some(at.max(room?)));
    let causes = [lost.map(|since| since.at), waits];
    let Some(cause) = causes.into_iter().flatten().min() else { return Ok(()) };
    let live = round.live().count();
    let missing = if restarts { round.members.len() - live } else { 0 };
    let expected = missing + fitting.min(world.largest().saturating_sub(live));
    for node in world.up() {
        let state = &world.nodes[node];
        let Doing::Training { outcome, since } = &state.agent.doing else { continue };
        // Who was lost itself learns it when it renews its lease.
        let there = state.machine.lease.is_some_and(|lease| world.etcd.has_lease(lease));
        let renewal = if there { Duration::ZERO } else { world.scenario.settings.ttl / 3 };
        let due = cause.max(healed).max(*since) + ONE + renewal;
        if outcome.round != control.round || world.now <= due {
            continue;
        }
        let status = state.machine.status();
        if status.waiting == 0 {
            let text = format!(
                "n{node} sees nobody waiting in round {} of {}; lost: {lost:?}, waiting: {waits:?}",
                control.round, complete.world
            );
            return Err(Violation::new("loss", text));
        }
        // Of several that were lost one is told of.
        let exact = if round.lost.is_none() { expected } else { 1 };
        if there
            && world.now > due.max(world.last_write + ONE)
            && !(exact..=expected).contains(&status.waiting)
        {
            let text = format!("n{node} sees {} waiting, not {expected}", status.waiting);
            return Err(Violation::new("loss", text));
        }
        if lost.is_some_and(|lost| world.now > lost.at.max(healed).max(*since) + ONE)
            && status.broken.is_none()
        {
            let text = format!("n{node} would let its stores wait for a lost member");
            return Err(Violation::new("loss", text));
        }
    }
    Ok(())
}
