//! What the keys of a run have said so far, and what the invariants remember of it.

pub mod history;
pub mod memory;
mod ranks;
mod record;
pub mod round;
mod violation;

use self::history::History;
use self::memory::{ClosedAt, Entered, Excluded, Progress, Returned, Written};
use self::round::{Limits, Nth};
pub use self::violation::Violation;
use super::model::Touched;
use super::node::NodeIx;
use super::scenario::Scenario;
use crate::rendezvous::Time;

/// What the invariants remember.
pub struct Checks {
    pub history: History,
    pub returned: Returned,
    pub closed: Option<ClosedAt>,
    pub progress: Progress,
    pub written: Written,
    pub excluded: Excluded,
    pub entered: Entered,
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
            returned: Returned::default(),
            closed: None,
            progress: Progress::default(),
            written: Written::default(),
            excluded: Excluded::default(),
            entered: Entered::default(),
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
            record::of_the_record(&self.history, nth)?;
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
