//! I5: a round completes within last call + TTL + 1 s after enough live nodes have joined.

use std::time::Duration;

use crate::rendezvous::records::{Control, State};
use crate::sim::agent::Doing;
use crate::sim::checks::Violation;
use crate::sim::checks::memory::Progress;
use crate::sim::node::{Node, NodeIx};
use crate::sim::world::World;

pub fn in_time(world: &mut World) -> Result<(), Violation> {
    let enough = world.healed.and_then(|_| enough_joined(world));
    let Some(round) = enough else {
        world.checks.progress = Progress::default();
        return Ok(());
    };
    let coordinator = world.etcd.get(&world.keys.coordinator()).map(|kv| kv.lease);
    let is_up = |lease: i64| world.holder(lease).is_some_and(|node| world.nodes[node].is_up());
    let dead = coordinator.filter(|lease| !is_up(*lease));
    let missed = is_a_survivor_missing(world, round);
    let progress = &mut world.checks.progress;
    let known = progress.enough.filter(|(known, _)| *known == round);
    progress.missed = missed || (progress.missed && known.is_some());
    let (_, since) = *progress.enough.insert(known.unwrap_or((round, world.now)));
    progress.dead.extend(dead);
    let grace = world.scenario.settings.survivor_grace * u32::from(progress.missed);
    let deaths = u32::try_from(progress.dead.len()).unwrap_or(u32::MAX).max(1);
    let settings = world.nodes.iter().map(Node::settings);
    let ttl = settings.map(|settings| settings.ttl).max().unwrap_or_default();
    let last_call = world.scenario.settings.last_call;
    let allowed = last_call + grace + (ttl + Duration::from_secs(1)) * deaths;
    // The messages of the takeover and this check's own grain.
    let grain = world.scenario.calm_latency() * 16 + Duration::from_millis(100);
    if world.now > since + allowed + grain {
        let text = format!(
            "round {round} has had enough live nodes for {:?} and is not complete",
            world.now - since
        );
        return Err(Violation::new("I5", text));
    }
    Ok(())
}

/// Whether a member of the last world has its key there, and has not joined this round.
fn is_a_survivor_missing(world: &World, round: u64) -> bool {
    let history = &world.checks.history;
    let Some(open) = history.round(round) else { return false };
    let last = open.previous.and_then(|last| history.round(last));
    last.is_some_and(|last| last.live().any(|member| !open.joining.contains(&member)))
}

/// The open round, when at least `min` live nodes have joined it.
fn enough_joined(world: &World) -> Option<u64> {
    let control = world.control().filter(|c| matches!(c.state, State::Open { .. }))?;
    let joins = world.etcd.list(&world.keys.joins(control.round));
    let live = joins.iter().filter_map(|kv| world.holder(kv.lease));
    let live = live.filter(|node| world.nodes[*node].is_up() && world.nodes[*node].is_joining());
    let live: Vec<NodeIx> = live.collect();
    world.are_enough(&live).then_some(control.round)
}

/// Why the world is not yet as it should be for ever if nothing happens; `None` when it is.
pub fn unsettled(world: &World) -> Option<String> {
    // A node that speaks another version is told so, and is none of the run.
    let of_the_run = |node: &NodeIx| world.speaks(*node);
    let up: Vec<NodeIx> = world.up().into_iter().filter(of_the_run).collect();
    let joining: Vec<NodeIx> = up
        .iter()
        .copied()
        .filter(|node| world.nodes[*node].agent.doing == Doing::Joining)
        .collect();
    if world.replacements > 0 {
        return Some("agents must be started again".into());
    }
    let training = world.training();
    // The node that closed it may have died before it knew.
    let closed = matches!(world.control(), Some(Control { state: State::Closed(_), .. }));
    if closed || world.checks.closed.is_some() {
        let blocked: Vec<_> = up.into_iter().filter(|node| !training.contains(node)).collect();
        return (!blocked.is_empty()).then(|| format!("closed, and {blocked:?} still wait"));
    }
    if let Some(node) = up.iter().find(|node| world.is_denied(**node)) {
        return Some(format!("n{node} is denied and still there"));
    }
    let id = |node: &NodeIx| world.nodes[*node].machine.settings().labels.node_id.clone();
    let mut ids = std::collections::BTreeSet::new();
    if let Some(node) = up.iter().find(|node| id(node).is_some_and(|id| !ids.insert(id))) {
        return Some(format!("n{node} has a node_id that another one has, too"));
    }
    if !world.are_enough(&up) && training.is_empty() {
        // Nothing more can happen.
        return (joining != up).then(|| format!("too few, and of {up:?} only {joining:?} wait"));
    }
    let Some(control) = world.control() else { return Some("no control record".into()) };
    if !matches!(control.state, State::Final(_)) {
        return Some(format!("the record is {control:?}"));
    }
    let current = world.checks.history.current().map(|(nth, _)| nth);
    let elsewhere = training.iter().find(|node| {
        !matches!(&world.nodes[**node].agent.doing,
            Doing::Training { nth, .. } if Some(*nth) == current)
    });
    if let Some(node) = elsewhere {
        return Some(format!("n{node} is {:?}", world.nodes[*node].agent.doing));
    }
    if let Some(node) = training.iter().find(|n| world.nodes[**n].status().waiting > 0) {
        return Some(format!("n{node} sees nodes waiting"));
    }
    let round = world.checks.history.round(control.round)?;
    let is_up = |lease: &i64| world.holder(*lease).is_some_and(|node| world.nodes[node].is_up());
    if let Some(dead) = round.live().find(|lease| !is_up(lease)) {
        return Some(format!("the lease of the dead member {dead:016x} has time left"));
    }
    // The others are told, and do not know it yet.
    let soon = Duration::from_secs(1);
    if round.last_lost.is_some_and(|lost| world.now < lost.at + soon) {
        return Some("a member was lost just now".into());
    }
    let comes_back = |node: &&NodeIx| {
        let lease = world.nodes[**node].lease();
        lease.is_some_and(|lease| round.live().any(|member| member == lease))
    };
    if let Some(node) = joining.iter().find(comes_back) {
        return Some(format!("n{node} has stopped its workers and is about to open a round"));
    }
    let limits = round.limits()?;
    let full = training.len() >= limits.largest() || world.placeable(&joining, limits) == 0;
    if training.len() + joining.len() < up.len() || (!joining.is_empty() && !full) {
        return Some(format!("{up:?} are up, {training:?} train, {joining:?} wait"));
    }
    None
}
