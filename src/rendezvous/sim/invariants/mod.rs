//! What must be true whatever happens, one file each. The names are those of the design's section 4.

pub mod agreement;
pub mod closed;
pub mod costs;
pub mod excluded;
pub mod exclusivity;
pub mod garbage;
pub mod history;
pub mod loss;
pub mod membership;
pub mod progress;
pub mod ranks;
pub mod run_lease;
pub mod waiting;

use std::fmt;

use self::history::History;
use super::model::Touched;
use super::node::NodeIx;
use super::scenario::Scenario;
use super::world::World;
use crate::rendezvous::machine::{OnMemberLoss, Outcome, RendezvousError, Time};
use crate::rendezvous::ranks::RankOrder;

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub invariant: &'static str,
    pub text: String,
}

impl Violation {
    pub fn new(invariant: &'static str, text: impl Into<String>) -> Self {
        Self { invariant, text: text.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.text)
    }
}

/// What the invariants remember.
pub struct Checks {
    pub min: usize,
    pub max: usize,
    pub on_member_loss: OnMemberLoss,
    pub history: History,
    pub returned: membership::Returned,
    pub closed: Option<closed::ClosedAt>,
    pub progress: progress::Progress,
    pub written: costs::Written,
    pub excluded: excluded::Excluded,
    order: RankOrder,
}

impl Checks {
    pub fn new(scenario: &Scenario) -> Self {
        let settings = &scenario.settings;
        Self {
            min: settings.min,
            max: settings.max,
            on_member_loss: settings.on_member_loss,
            history: History::new(&settings.keys),
            returned: membership::Returned::default(),
            closed: None,
            progress: progress::Progress::default(),
            written: costs::Written::default(),
            excluded: excluded::Excluded::default(),
            order: settings.order,
        }
    }

    /// After each write.
    pub fn key_touched(&mut self, now: Time, touched: &Touched) -> Result<(), Violation> {
        self.written.take(touched);
        let completed = self.history.take(now, touched)?;
        if self.history.control.is_none() {
            self.returned = membership::Returned::default();
            self.closed = None;
        }
        if let Some(round) = completed {
            agreement::of_the_record(&self.history, round, self.min, self.max)?;
            ranks::in_order(&self.history, round, self.order)?;
        }
        Ok(())
    }
}

/// After each end of a [`crate::rendezvous::machine::Input::Join`].
pub fn returned(
    world: &mut World,
    node: NodeIx,
    result: &Result<Outcome, RendezvousError>,
) -> Result<(), Violation> {
    if let Ok(outcome) = result {
        membership::listed(world, node, outcome)?;
        agreement::among_the_returned(world, node, outcome)?;
        closed::not_after_the_close(world, node, outcome)?;
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
            .and_then(|()| excluded::not_for_long(self));
        self.require(result);
    }
}
