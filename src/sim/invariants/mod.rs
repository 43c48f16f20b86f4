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
pub mod history;
pub mod leases;
pub mod loss;
pub mod membership;
pub mod parked;
pub mod progress;
pub mod ranks;
pub mod restarts;
pub mod round;
pub mod waiting;

use std::fmt;

use self::history::History;
use self::round::{Limits, Nth};
use super::model::Touched;
use super::node::NodeIx;
use super::scenario::Scenario;
use super::world::World;
use crate::rendezvous::{Outcome, RendezvousError, Time};

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
    pub history: History,
    pub returned: membership::Returned,
    pub closed: Option<closed::ClosedAt>,
    pub progress: progress::Progress,
    pub written: costs::Written,
    pub excluded: excluded::Excluded,
    pub entered: entered::Entered,
    /// How many rounds had been opened when the faults ended.
    pub opened_when_healed: u64,
    /// How many agents were there then.
    pub live_when_healed: u64,
    /// The writers of completed rounds.
    pub completer: Option<(Nth, NodeIx)>,
}

impl Checks {
    pub fn new(scenario: &Scenario) -> Self {
        Self {
            history: History::new(&scenario.settings.keys),
            returned: membership::Returned::default(),
            closed: None,
            progress: progress::Progress::default(),
            written: costs::Written::default(),
            excluded: excluded::Excluded::default(),
            entered: entered::Entered::default(),
            opened_when_healed: 0,
            live_when_healed: 0,
            completer: None,
        }
    }

    /// After each write, by a node that goes by these limits.
    pub fn key_touched(
        &mut self,
        now: Time,
        touched: &Touched,
        limits: Limits,
        writer: Option<NodeIx>,
    ) -> Result<(), Violation> {
        self.written.take(touched);
        let completed = self.history.take(now, touched, limits)?;
        if touched.kv.key == self.history.control_key.as_bytes() && touched.deleted {
            self.closed = None;
        }
        if let Some(nth) = completed {
            self.completer = writer.map(|writer| (nth, writer));
            agreement::of_the_record(&self.history, nth)?;
            ranks::in_order(&self.history, nth)?;
        }
        Ok(())
    }

    /// etcd was wiped.
    pub fn begin_anew(&mut self) {
        self.history.begin_anew();
        self.closed = None;
    }
}

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
