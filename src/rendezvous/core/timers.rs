//! All times at which a node has something to do, by name.

use crate::rendezvous::api::Time;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// No step before it: the last one failed in a way that time heals.
    Pause,
    /// The time of the barrier is up.
    Join,
    /// Whoever asked to close the run is answered.
    Close,
    /// Whoever asked for the state of the run is answered.
    Observe,
    /// The node claims the key of the coordinator, or of the usher, which is missing.
    Claim,
    /// The node looks if a closed run can be opened again.
    Reopen,
    /// The coordinator waits for more nodes, or for survivors.
    LastCall,
    /// The coordinator tells how many have joined.
    Report,
    /// The usher tells how many wait.
    Tell,
}

const COUNT: usize = Timer::Tell as usize + 1;

#[derive(Debug, Default)]
pub struct Timers([Option<Time>; COUNT]);

impl Timers {
    pub fn set(&mut self, timer: Timer, at: Time) {
        self.0[timer as usize] = Some(at);
    }

    /// Sets a timer that is not set. Returns when it fires.
    pub fn start(&mut self, timer: Timer, at: Time) -> Time {
        *self.0[timer as usize].get_or_insert(at)
    }

    pub fn clear(&mut self, timer: Timer) {
        self.0[timer as usize] = None;
    }

    pub fn get(&self, timer: Timer) -> Option<Time> {
        self.0[timer as usize]
    }

    /// The first of these.
    pub fn earliest(&self, among: &[Timer]) -> Option<Time> {
        among.iter().filter_map(|timer| self.get(*timer)).min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_earliest_is_of_those_that_are_asked_for() {
        let mut timers = Timers::default();
        timers.set(Timer::Join, Duration::from_secs(9));
        timers.set(Timer::Tell, Duration::from_secs(3));
        assert_eq!(timers.start(Timer::Tell, Duration::from_secs(5)), Duration::from_secs(3));
        let at = timers.earliest(&[Timer::Pause, Timer::Join]);
        assert_eq!(at, Some(Duration::from_secs(9)));
        timers.clear(Timer::Join);
        assert_eq!(timers.earliest(&[Timer::Pause, Timer::Join]), None);
    }
}
