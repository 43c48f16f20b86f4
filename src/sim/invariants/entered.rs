//! A node that believes that it has joined, or waits, has told so in etcd: others count by the keys.

use std::time::Duration;

use crate::rendezvous::records::State;
use crate::sim::checks::Violation;
use crate::sim::node::NodeIx;
use crate::sim::world::World;

pub fn has_its_key(world: &mut World) -> Result<(), Violation> {
    let wrong = wrong_about_themselves(world);
    let calm = world.healed.is_some();
    // Until its watch has told it what has happened to its key, and it has put it again.
    let bound = if calm { Duration::from_secs(2) } else { Duration::from_secs(20) };
    let since = &mut world.checks.entered.0;
    since.retain(|node, _| wrong.contains(node));
    let now = world.now;
    for node in wrong {
        let began = *since.entry(node).or_insert(now);
        let known = began.max(world.healed.unwrap_or_default());
        if now > known + bound && world.nodes[node].was_calm_for(now, bound) {
            let text = format!("n{node} has waited for {:?} without a key", now - began);
            return Err(Violation::new("entered", text));
        }
    }
    Ok(())
}

fn wrong_about_themselves(world: &World) -> Vec<NodeIx> {
    let Some(control) = world.control() else { return Vec::new() };
    let Some(round) = world.checks.history.round(control.round) else { return Vec::new() };
    let joining = world.up().into_iter().filter(|node| world.nodes[*node].is_joining());
    let wrong = joining.filter(|node| {
        let state = &world.nodes[*node];
        // A node that has lost its lease learns it at the next renewal.
        let lease = state.lease().filter(|lease| world.etcd.has_lease(*lease));
        let Some(lease) = lease else { return false };
        let progress = state.status().progress;
        if progress.round != control.round || state.forbidden || world.etcd_full {
            return false;
        }
        match control.state {
            State::Open { .. } => progress.entered && !round.joining.contains(&lease),
            State::Final(_) => progress.spare && !round.waiting.contains_key(&lease),
            State::Closed(_) => false,
        }
    });
    wrong.collect()
}
