//! I8 and I9: nobody restarts for ever, whatever nodes there are, and a loss costs one restart.

use crate::sim::checks::Violation;
use crate::sim::world::World;

/// So many rounds may follow the end of the faults: for those who were there, for those who came while the
/// first was completed, and for what was lost last.
///
/// Each node that leaves later costs one more: at the end of a seed agents end one after the other, and those that
/// are left form a smaller world each time, as torch's do.
const ROUNDS: u64 = 5;

pub fn not_without_end(world: &World) -> Result<(), Violation> {
    let Some(healed) = world.healed else { return Ok(()) };
    let opened = world.checks.history.opened - world.checks.opened_when_healed;
    let came = world.which(|node| node.started >= healed).len() as u64;
    let gone = world.checks.live_when_healed + came - world.live().len() as u64;
    let epochs = world.checks.history.epoch;
    if opened <= ROUNDS + 2 * came + gone {
        return Ok(());
    }
    let text = format!(
        "{opened} rounds were opened since {healed:?}, {came} nodes came, {gone} went, {epochs}"
    );
    Err(Violation::new("I8", text))
}

/// A member was lost in calm times, when so many rounds had been completed.
pub fn one_for_a_loss(world: &World, completed: u64) -> Result<(), Violation> {
    let more = world.checks.history.completed - completed;
    if more <= 1 {
        return Ok(());
    }
    Err(Violation::new("I9", format!("the loss of one member has cost {more} restarts")))
}
