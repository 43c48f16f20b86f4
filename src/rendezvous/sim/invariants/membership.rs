//! I3: who returned from a round is in its member list in etcd.

use std::collections::BTreeMap;

use super::Violation;
use crate::rendezvous::machine::Outcome;
use crate::rendezvous::sim::node::NodeIx;
use crate::rendezvous::sim::world::World;

/// Who returned from which round, with what.
#[derive(Default)]
pub struct Returned(BTreeMap<u64, Vec<(NodeIx, Outcome)>>);

impl Returned {
    pub fn of(&self, round: u64) -> &[(NodeIx, Outcome)] {
        self.0.get(&round).map_or(&[], Vec::as_slice)
    }

    pub fn add(&mut self, node: NodeIx, outcome: &Outcome) {
        self.0.entry(outcome.round).or_default().push((node, outcome.clone()));
    }
}

pub fn listed(world: &World, node: NodeIx, outcome: &Outcome) -> Result<(), Violation> {
    let wrong = |text: &str| {
        Err(Violation::new("I3", format!("n{node} returned with {outcome:?}, but {text}")))
    };
    let Some(lease) = world.nodes[node].machine.lease else { return wrong("it has no lease") };
    let round = world.checks.history.round(outcome.round);
    let Some((round, (since, complete))) = round.and_then(|r| Some((r, r.completed.as_ref()?)))
    else {
        return wrong("that round is not complete");
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
    Ok(())
}
