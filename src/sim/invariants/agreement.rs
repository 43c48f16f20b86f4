//! I1: all who return from a round report the same world, within its bounds, and distinct ranks of it.

use super::Violation;
use super::history::History;
use super::round::{Limits, Nth};
use crate::rendezvous::Outcome;
use crate::sim::node::NodeIx;
use crate::sim::world::World;

/// The record of a completed round and the keys of its members say the same.
pub fn of_the_record(history: &History, nth: Nth) -> Result<(), Violation> {
    let (Some(state), number) = (history.get(nth), nth.round) else { return Ok(()) };
    let Some((_, complete, limits)) = &state.completed else { return Ok(()) };
    let (Limits { min, max, .. }, world) = (*limits, complete.world as usize);
    let told = (complete.story.min as usize, complete.story.max as usize);
    if told != (min, max) || complete.order != limits.order {
        let text = format!(
            "round {number} tells limits of {told:?} and {}, its coordinator has {limits:?}",
            complete.order
        );
        return Err(Violation::new("I1", text));
    }
    if world < min || world > max {
        let text = format!("round {number} has a world of {world}, allowed are {min} to {max}");
        return Err(Violation::new("I1", text));
    }
    let ranks: Vec<u32> = state.members.keys().copied().collect();
    if ranks != (0..complete.world).collect::<Vec<_>>() {
        let text = format!("round {number} has a world of {world} and members of ranks {ranks:?}");
        return Err(Violation::new("I1", text));
    }
    Ok(())
}

pub fn among_the_returned(
    world: &mut World,
    node: NodeIx,
    nth: Nth,
    outcome: &Outcome,
) -> Result<(), Violation> {
    let round = nth.round;
    if outcome.rank >= outcome.world {
        let text = format!("n{node} returned from round {round} with {outcome:?}");
        return Err(Violation::new("I1", text));
    }
    let returned = world.checks.returned.of(nth);
    if let Some((other, first)) = returned.iter().next()
        && (first.world, &first.master) != (outcome.world, &outcome.master)
    {
        let text = format!("n{other} returned with {first:?}, n{node} with {outcome:?}");
        return Err(Violation::new("I1", text));
    }
    if let Some((other, _)) = returned.iter().find(|(_, first)| first.rank == outcome.rank) {
        let text = format!("n{other} and n{node} both have rank {} in {round}", outcome.rank);
        return Err(Violation::new("I1", text));
    }
    world.checks.returned.add(node, nth, outcome);
    Ok(())
}
