//! I1: all who return from a round report the same world, within its bounds, and distinct ranks of it.

use super::Violation;
use super::history::History;
use crate::rendezvous::machine::Outcome;
use crate::rendezvous::sim::node::NodeIx;
use crate::rendezvous::sim::world::World;

/// The record of a completed round and the keys of its members say the same.
pub fn of_the_record(
    history: &History,
    round: u64,
    min: usize,
    max: usize,
) -> Result<(), Violation> {
    let Some((number, state)) = history.round(round).map(|state| (round, state)) else {
        return Ok(());
    };
    let Some((_, complete)) = &state.completed else { return Ok(()) };
    let world = complete.world as usize;
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
    outcome: &Outcome,
) -> Result<(), Violation> {
    let round = outcome.round;
    if outcome.rank >= outcome.world {
        let text = format!("n{node} returned from round {round} with {outcome:?}");
        return Err(Violation::new("I1", text));
    }
    let returned = world.checks.returned.of(round);
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
    world.checks.returned.add(node, outcome);
    Ok(())
}
