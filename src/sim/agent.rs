//! What an agent of torchrun is about.

use std::time::Duration;

use super::checks::round::Nth;
use super::rng::Rng;
use super::scenario::Scenario;
use crate::rendezvous::{Outcome, RendezvousError, Time};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Has not joined yet, or will join again after a pause.
    Nothing,
    Joining,
    Training {
        outcome: Outcome,
        /// Which round that was.
        nth: Nth,
        since: Time,
    },
    /// Its workers are being stopped; it rejoins at this time.
    Stopping(Time),
    /// Its workers are done, and it waits for those of the others; it shuts down at this time.
    Finishing(Time),
    /// Its workers have failed for the last time and are being stopped; it shuts down at this time.
    Failing(Time),
    /// The barrier has failed: it shuts down next.
    Ending,
    ShuttingDown,
    /// It calls `set_closed()` until the run is closed.
    Closing,
    /// That failed: it tries again.
    NotClosed,
    /// It has left for good.
    Done,
}

/// The last wish to close the run.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// By `set_closed()`, which closes whatever is.
    pub explicit: bool,
    /// etcd's revision when it was uttered.
    pub revision: i64,
}

pub struct Agent {
    pub doing: Doing,
    /// How often it asks for the number of waiting nodes.
    pub poll: Duration,
    /// How long it takes to stop its workers.
    pub stop: Duration,
    /// How often its workers may fail before it gives up; without end where there is no number.
    pub restarts: Option<u32>,
    /// Its workers are to fail at the next look: it will want a new round.
    pub fails: bool,
    /// Its workers are done: it will shut down.
    pub finishes: bool,
    pub wish: Option<Wish>,
    pub joined_at: Time,
    pub joins: u32,
    /// How many were in its place before, started again by the scheduler.
    pub replacements: u32,
    pub last_error: Option<RendezvousError>,
}

impl Agent {
    pub fn new(scenario: &Scenario, rng: &mut Rng) -> Self {
        let restarts = scenario.closes.then(|| u32::try_from(rng.below(4)).unwrap_or(0));
        Self {
            doing: Doing::Nothing,
            poll: rng.time(scenario.poll / 4, scenario.poll),
            stop: rng.time(Duration::ZERO, scenario.stop),
            restarts,
            fails: false,
            finishes: false,
            wish: None,
            joined_at: Duration::ZERO,
            joins: 0,
            replacements: 0,
            last_error: None,
        }
    }
}
