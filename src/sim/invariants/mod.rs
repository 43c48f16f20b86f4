//! What must be true whatever happens, one file each. The names are those of the design's section 4.

pub mod agreement;
pub mod closed;
pub mod closers;
pub mod costs;
pub mod entered;
pub mod excluded;
pub mod exclusivity;
pub mod garbage;
pub mod ghosts;
pub mod leases;
pub mod loss;
pub mod membership;
pub mod parked;
pub mod progress;
pub mod restarts;
pub mod waiting;

use super::checks::Violation;
use super::node::NodeIx;
use super::world::World;
use crate::rendezvous::{Outcome, RendezvousError};

/// After each end of a [`crate::rendezvous::Input::Join`].
pub fn returned(
    world: &mut World,
    node: NodeIx,
    result: &Result<Outcome, RendezvousError>,
) -> Result<(), Violation> {
    if let Ok(outcome) = result {
        let nth = membership::listed(world, node, outcome)?;
        agreement::among_the_returned(world, node, nth, outcome)?;
        closed::not_after_the_close(world, node, outcome)?;
    }
    if let Err(RendezvousError::Timeout(text)) = result {
        parked::has_no_deadline(world, node, text)?;
    }
    Ok(())
}

impl World {
    /// Every tenth of a second.
    pub fn check(&mut self) {
        let result = exclusivity::all_see_the_new_round(self)
            .and_then(|()| closed::nobody_is_blocked(self))
            .and_then(|()| loss::all_see_the_loss(self))
            .and_then(|()| progress::in_time(self))
            .and_then(|()| entered::has_its_key(self))
            .and_then(|()| restarts::not_without_end(self))
            .and_then(|()| excluded::not_for_long(self));
        self.require(result);
    }
}
