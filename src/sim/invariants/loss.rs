//! A lost member, or a node that fits in, shows to all members within a second of etcd's knowing it.

use std::time::Duration;

use crate::rendezvous::OnMemberLoss;
use crate::sim::agent::Doing;
use crate::sim::checks::Violation;
use crate::sim::world::World;

const ONE: Duration = Duration::from_secs(1);

pub fn all_see_the_loss(world: &World) -> Result<(), Violation> {
    let Some(healed) = world.healed else { return Ok(()) };
    let Some((round, complete)) = world.checks.history.complete() else { return Ok(()) };
    let Some((current, _)) = world.checks.history.current() else { return Ok(()) };
    let Some(limits) = round.limits() else { return Ok(()) };
    // The node that had to report a loss may have been lost next. Its own loss is reported when its lease has
    // expired.
    let untold = |lease| world.holder(lease).is_none_or(|node| !world.nodes[node].is_up());
    // The same holds for nodes that a lost usher had to report. Where none of the waiting nodes lives, nobody
    // reports them.
    let usher = world.etcd.get(&world.keys.usher()).map(|kv| kv.lease);
    if round.live().chain(usher).chain(round.waiting.keys().copied()).any(untold) {
        return Ok(());
    }
    // Room for a node that waits: from the beginning, or since a member was lost.
    let small = (complete.world as usize) < limits.largest();
    let room = if small { Some(Duration::ZERO) } else { round.last_lost.map(|since| since.at) };
    // Where only whole segments count, the last one that came may be what matters.
    let waits = if limits.has_segments() {
        round.waiting.values().map(|since| since.at).max()
    } else {
        round.waiting.values().map(|since| since.at).min()
    };
    let waiting = round.waiting.keys().filter_map(|lease| world.holder(*lease)).collect::<Vec<_>>();
    let fitting = world.placeable(&waiting, limits);
    let waits = waits.filter(|_| fitting > 0);
    let ushered = world.checks.history.usher_changed;
    let waits = waits.and_then(|at| Some(at.max(room?).max(ushered)));
    let live = round.live().count();
    let room = limits.largest().saturating_sub(live);
    for node in world.up() {
        let state = &world.nodes[node];
        let Doing::Training { nth, since, .. } = &state.agent.doing else { continue };
        let restarts = state.settings().on_member_loss == OnMemberLoss::Restart;
        let lost = round.last_lost.filter(|_| restarts);
        let causes = [lost.map(|since| since.at), waits];
        let Some(cause) = causes.into_iter().flatten().min() else { continue };
        let missing = if restarts { round.members.len() - live } else { 0 };
        // A node that was lost itself learns it when it renews its lease.
        let there = state.lease().is_some_and(|lease| world.etcd.has_lease(lease));
        let renewal = if there { Duration::ZERO } else { state.settings().ttl / 3 };
        // What was refused just before is asked again after a second.
        let due = cause.max(healed + ONE).max(*since) + ONE + renewal;
        if *nth != current || world.now <= due {
            continue;
        }
        let status = state.status();
        if status.waiting == 0 {
            let text = format!(
                "n{node} sees nobody waiting in round {} of {}; lost: {lost:?}, waiting: {waits:?}",
                current.round, complete.world
            );
            return Err(Violation::new("loss", text));
        }
        // Of several lost nodes one is reported, and the number that may wait is reported once in a while.
        if there && world.now > due.max(world.last_write + ONE) && status.waiting > missing + room {
            let text = format!("n{node} sees {} waiting, there is room for {room}", status.waiting);
            return Err(Violation::new("loss", text));
        }
        if lost.is_some_and(|lost| world.now > lost.at.max(healed + ONE).max(*since) + ONE)
            && status.broken.is_none()
        {
            let text = format!("n{node} would let its stores wait for a lost member");
            return Err(Violation::new("loss", text));
        }
    }
    Ok(())
}
