//! The record of a completed round and the keys of its members say the same.

use super::history::History;
use super::round::{Limits, Nth};
use super::violation::Violation;

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
