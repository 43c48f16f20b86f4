//! How far a node's barrier has come, and when: for those who want to know where the time went.

use super::api::{Progress, Time};

/// Times since the node began to join, each the first time; `None` for what did not happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// The node was among those of a round that was not complete.
    pub entered: Option<Time>,
    /// A round was complete without the node, which waited for the next one.
    pub spare: Option<Time>,
    /// The minimum was reached, and there was a last call for more.
    pub last_call: Option<Time>,
    /// The barrier ended, well or not.
    pub ended: Option<Time>,
}

#[derive(Default)]
pub(super) struct Stopwatch {
    began: Option<Time>,
    phases: Phases,
}

impl Stopwatch {
    pub fn begin(&mut self, now: Time) {
        *self = Self { began: Some(now), phases: Phases::default() };
    }

    pub fn see(&mut self, now: Time, progress: &Progress, ended: bool) -> Phases {
        let Some(began) = self.began else { return self.phases };
        let since = now.saturating_sub(began);
        let note = |phase: &mut Option<Time>, reached: bool| {
            if reached && phase.is_none() {
                *phase = Some(since);
            }
        };
        let phases = &mut self.phases;
        note(&mut phases.entered, progress.entered);
        note(&mut phases.spare, progress.spare);
        // Taken back when nodes leave. When the round is complete the coordinator tells nothing any more.
        if progress.joined > 0 && !progress.last_call {
            phases.last_call = None;
        }
        note(&mut phases.last_call, progress.last_call);
        note(&mut phases.ended, ended);
        if ended {
            self.began = None;
        }
        self.phases
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Time {
        Duration::from_secs(seconds)
    }

    #[test]
    fn each_phase_is_noted_when_it_begins() {
        let mut stopwatch = Stopwatch::default();
        let mut progress = Progress::default();
        assert_eq!(stopwatch.see(at(1), &progress, false), Phases::default());
        stopwatch.begin(at(10));
        progress.spare = true;
        stopwatch.see(at(11), &progress, false);
        progress.spare = false;
        progress.entered = true;
        stopwatch.see(at(13), &progress, false);
        (progress.joined, progress.last_call) = (2, true);
        stopwatch.see(at(14), &progress, false);
        stopwatch.see(at(15), &progress, false);
        progress = Progress::default();
        let phases = stopwatch.see(at(16), &progress, true);
        let wanted = [Some(at(1)), Some(at(3)), Some(at(4)), Some(at(6))];
        assert_eq!([phases.spare, phases.entered, phases.last_call, phases.ended], wanted);
        // What happens to the member later is no part of it.
        progress.spare = true;
        assert_eq!(stopwatch.see(at(99), &progress, false), phases);
    }

    #[test]
    fn a_last_call_that_is_taken_back_did_not_happen() {
        let mut stopwatch = Stopwatch::default();
        stopwatch.begin(at(0));
        let mut progress = Progress { joined: 2, last_call: true, ..Progress::default() };
        assert_eq!(stopwatch.see(at(1), &progress, false).last_call, Some(at(1)));
        (progress.joined, progress.last_call) = (1, false);
        assert_eq!(stopwatch.see(at(2), &progress, false).last_call, None);
        (progress.joined, progress.last_call) = (2, true);
        assert_eq!(stopwatch.see(at(5), &progress, false).last_call, Some(at(5)));
    }
}
