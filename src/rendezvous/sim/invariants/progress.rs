//! I5: a round completes within last call + TTL + 1 s after enough live nodes have joined.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Violation;
use crate::rendezvous::machine::Time;
use crate::rendezvous::records::{Control, State};
use crate::rendezvous::sim::agent::Doing;
use crate::rendezvous::sim::node::NodeIx;
use crate::rendezvous::sim::world::World;

/// Since when which round has had enough live nodes.
#[derive(Default)]
pub struct Progress {
    enough: Option<(u64, Time)>,
    /// The coordinators that were dead meanwhile. One after another may die before it could save its
    /// last call, and each is missed when its lease runs out.
    dead: BTreeSet<i64>,
}

pub fn in_time(world: &mut World) -> Result<(), Violation> {
    let enough = world.healed.and_then(|_| enough_joined(world));
    let Some(round) = enough else {
        world.checks.progress = Progress::default();
        return Ok(());
    };
    let coordinator = world.etcd.get(&world.keys.coordinator()).map(|kv| kv.lease);
    let is_up = |lease: i64| world.holder(lease).is_some_and(|node| world.nodes[node].is_up());
    let dead = coordinator.filter(|lease| !is_up(*lease));
    let progress = &mut world.checks.progress;
    let known = progress.enough.filter(|(known, _)| *known == round);
    let (_, since) = *progress.enough.insert(known.unwrap_or((round, world.now)));
    progress.dead.extend(dead);
    let deaths = u32::try_from(progress.dead.len()).unwrap_or(u32::MAX).max(1);
    let settings = &world.scenario.settings;
    let allowed = settings.last_call + (settings.ttl + Duration::from_secs(1)) * deaths;
    // The messages of the takeover and this check's own grain.
    let grain = world.scenario.calm_latency() * 16 + Duration::from_millis(100);
    if world.now > since + allowed + grain {
        let text = format!(
            "round {round} has had its {} live nodes for {:?} and is not complete",
            settings.min,
            world.now - since
        );
        return Err(Violation::new("I5", text));
    }
    Ok(())
}

/// The open round, when at least `min` live nodes have joined it.
fn enough_joined(world: &World) -> Option<u64> {
    let control = world.control().filter(|c| matches!(c.state, State::Open { .. }))?;
    let joins = world.etcd.list(&world.keys.joins(control.round));
    let live = joins.iter().filter_map(|kv| world.holder(kv.lease));
    let live = live.filter(|node| world.nodes[*node].is_up() && world.nodes[*node].is_joining());
    let live: Vec<NodeIx> = live.collect();
    (world.placeable(&live) >= world.scenario.settings.min).then_some(control.round)
}

/// Why the world is not yet as it should be for ever if nothing happens; `None` when it is.
pub fn unsettled(world: &World) -> Option<String> {
    let up = world.up();
    let joining: Vec<NodeIx> = up
        .iter()
        .copied()
        .filter(|node| world.nodes[*node].agent.doing == Doing::Joining)
        .collect();
    let training = world.training();
    // Who closed it may have died before it knew.
    let closed = matches!(world.control(), Some(Control { state: State::Closed(_), .. }));
    if closed || world.checks.closed.is_some() {
        let blocked: Vec<_> = up.into_iter().filter(|node| !training.contains(node)).collect();
        return (!blocked.is_empty()).then(|| format!("closed, and {blocked:?} still wait"));
    }
    if let Some(node) = up.iter().find(|node| world.is_denied(**node)) {
        return Some(format!("n{node} is denied and still there"));
    }
    if world.placeable(&up) < world.scenario.settings.min && training.is_empty() {
        // Nothing more can happen.
        return (joining != up).then(|| format!("too few, and of {up:?} only {joining:?} wait"));
    }
    let Some(control) = world.control() else { return Some("no control record".into()) };
    if !matches!(control.state, State::Final(_)) {
        return Some(format!("the record is {control:?}"));
    }
    let elsewhere = training.iter().find(|node| {
        !matches!(&world.nodes[**node].agent.doing,
            Doing::Training { outcome, .. } if outcome.round == control.round)
    });
    if let Some(node) = elsewhere {
        return Some(format!("n{node} is {:?}", world.nodes[*node].agent.doing));
    }
    if let Some(node) = training.iter().find(|n| world.nodes[**n].machine.status().waiting > 0) {
        return Some(format!("n{node} sees nodes waiting"));
    }
    let round = world.checks.history.round(control.round)?;
    let is_up = |lease: &i64| world.holder(*lease).is_some_and(|node| world.nodes[node].is_up());
    if let Some(dead) = round.live().find(|lease| !is_up(lease)) {
        return Some(format!("the lease of the dead member {dead:016x} has time left"));
    }
    let full = training.len() >= world.largest() || world.placeable(&joining) == 0;
    if training.len() + joining.len() < up.len() || (!joining.is_empty() && !full) {
        return Some(format!("{up:?} are up, {training:?} train, {joining:?} wait"));
    }
    None
}
