//! I1: all who return from a round report the same world, within its bounds, and distinct ranks of it.

use crate::rendezvous::Outcome;
use crate::sim::checks::Violation;
use crate::sim::checks::round::Nth;
use crate::sim::node::NodeIx;
use crate::sim::world::World;

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
