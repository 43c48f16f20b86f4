//! I3: a node that returned from a round is in its member list in etcd.

use crate::rendezvous::Outcome;
use crate::sim::checks::Violation;
use crate::sim::checks::round::Nth;
use crate::sim::node::NodeIx;
use crate::sim::world::World;

/// Tells which round it is.
pub fn listed(world: &World, node: NodeIx, outcome: &Outcome) -> Result<Nth, Violation> {
    let wrong = |text: &str| {
        Err(Violation::new("I3", format!("n{node} returned with {outcome:?}, but {text}")))
    };
    let Some(lease) = world.nodes[node].lease() else { return wrong("it has no lease") };
    let own = world.nodes[node].all_leases();
    let nth = world.checks.history.returned(own, outcome);
    let round = nth.and_then(|nth| world.checks.history.get(nth));
    let Some((round, (since, complete))) = round.and_then(|r| Some((r, r.final_()?))) else {
        return wrong("no completed round has it as a member of that rank");
    };
    let keys = round.written.get(&lease).map_or(&[][..], Vec::as_slice);
    let listed = keys.iter().any(|key| {
        key.rank == outcome.rank
            && key.attempt == complete.attempt
            && key.revision <= since.revision
    });
    if !listed {
        return wrong(&format!("its keys of that round are {keys:?}, complete is {complete:?}"));
    }
    if (complete.world, &complete.master_addr) != (outcome.world, &outcome.master.addr) {
        return wrong(&format!("the record says {complete:?}"));
    }
    Ok(nth.unwrap_or_default())
}
