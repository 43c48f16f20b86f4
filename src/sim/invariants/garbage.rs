//! I6: after the last node is gone and the run's lease has run out, etcd holds no key of the run.

use crate::rendezvous::records::{Control, State};
use crate::sim::checks::Violation;
use crate::sim::model::in_range;
use crate::sim::node::Node;
use crate::sim::world::World;

pub fn none_is_left(world: &World) -> Result<(), Violation> {
    let keys = world.etcd.list("/");
    if keys.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = keys.iter().map(|kv| String::from_utf8_lossy(&kv.key)).collect();
    Err(Violation::new("I6", format!("left: {}", names.join(", "))))
}

/// No key is without a lease at any time.
pub fn all_have_leases(world: &World) -> Result<(), Violation> {
    match world.etcd.list("/").into_iter().find(|kv| kv.lease == 0) {
        None => Ok(()),
        Some(kv) => {
            let text = format!("{} has no lease", String::from_utf8_lossy(&kv.key));
            Err(Violation::new("I6", text))
        }
    }
}

/// Of other rounds than the present one, if that is complete, and of other attempts to complete it, nothing is
/// left, unless who would have deleted it is gone.
pub fn of_old_rounds(world: &World) -> Result<(), Violation> {
    let Some((current, round)) = world.checks.history.current() else { return Ok(()) };
    if !matches!(world.control(), Some(Control { state: State::Final(_), .. })) {
        // It may have been closed before it was swept, and is deleted as a whole then.
        return Ok(());
    }
    let completer = world.checks.completer.filter(|(nth, _)| *nth == current);
    let completer = completer.map(|(_, node)| &world.nodes[node]);
    let recent = round.final_().is_some_and(|(since, _)| Some(since.at) > world.healed);
    let is_member = |node: &Node| round.members.values().any(|m| Some(*m) == node.lease());
    if !recent || !completer.is_some_and(|node| node.is_up() && is_member(node)) {
        return Ok(());
    }
    let Some(id) = round.final_().map(|(_, complete)| complete.id(current.round)) else {
        return Ok(());
    };
    let all = world.keys.other_rounds(&id);
    let is_old = |key: &Vec<u8>| all.iter().any(|(from, end)| in_range(key, from, Some(end)));
    let old = world.etcd.list("/").into_iter().map(|kv| kv.key).find(is_old);
    match old {
        None => Ok(()),
        Some(key) => {
            let text = format!("{} is left in {current:?}", String::from_utf8_lossy(&key));
            Err(Violation::new("old rounds", text))
        }
    }
}
