//! I7: the run is closed by an operator, by `set_closed()`, or by the shutdown of a live member of its last
//! completed world. A node that only waits, or belongs to an earlier world, leaves. What an operator has opened
//! again nobody closes by a wish from before.

use crate::rendezvous::records::State;
use crate::sim::checks::Violation;
use crate::sim::model::Touched;
use crate::sim::node::NodeIx;
use crate::sim::reader::READER;
use crate::sim::world::World;

/// Before the write is taken into the history.
pub fn may_close(
    world: &World,
    writer: Option<NodeIx>,
    touched: &Touched,
) -> Result<(), Violation> {
    let history = &world.checks.history;
    let is_control = touched.kv.key == world.keys.control().as_bytes() && !touched.deleted;
    // An operator may.
    let (true, Some(node)) = (is_control, writer) else { return Ok(()) };
    let control = READER.control("control", &touched.kv.value);
    if !control.is_ok_and(|control| matches!(control.state, State::Closed(_))) {
        return Ok(());
    }
    let Some(wish) = world.nodes[node].agent.wish else {
        return Err(Violation::new(
            "I7",
            format!("n{node} closes the run, which nobody asked for"),
        ));
    };
    let reopened = history.reopened;
    if let Some((closed, opened)) = reopened
        && wish.revision < closed.revision
    {
        let text = format!(
            "n{node} was to close the run at {}, it was closed at {}, reopened at {}, and is closed again",
            wish.revision, closed.revision, opened.revision
        );
        return Err(Violation::new("reopened", text));
    }
    if wish.explicit {
        return Ok(());
    }
    let last = history.last_completed();
    let own = |lease: i64| world.owners.get(&lease) == Some(&node);
    let Some((nth, round)) = last.filter(|(_, round)| round.live().any(own)) else {
        let text = format!(
            "n{node} shuts down and closes the run, as no live member of {:?}",
            last.map(|(nth, _)| nth)
        );
        return Err(Violation::new("I7", text));
    };
    let completed = round.final_().map(|(since, _)| since.revision);
    if let Some((_, opened)) = reopened
        && completed < Some(opened.revision)
    {
        let text = format!(
            "n{node}, a member of {nth:?} that was closed, shuts down and closes the run that was reopened \
             at {}",
            opened.revision
        );
        return Err(Violation::new("reopened", text));
    }
    Ok(())
}
