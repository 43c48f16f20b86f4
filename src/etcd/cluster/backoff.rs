//! Pauses between attempts: exponential with full jitter, so that clients that failed together do
//! not come back together.

use std::time::Duration;

use crate::etcd::unique::uniform;

const FIRST: Duration = Duration::from_millis(25);
const LONGEST: Duration = Duration::from_secs(1);

/// For a member with more to do than it can: it has a second's work waiting when it says so.
const FIRST_BUSY: Duration = Duration::from_millis(500);
const LONGEST_BUSY: Duration = Duration::from_secs(4);

/// For a password that is refused until somebody replaces it: etcd works for 60 ms on each log-in.
const FIRST_LOG_IN: Duration = Duration::from_secs(1);
const LONGEST_LOG_IN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    attempts: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: FIRST, longest: LONGEST, attempts: 0 }
    }
}

impl Backoff {
    pub fn busy() -> Self {
        Self { first: FIRST_BUSY, longest: LONGEST_BUSY, attempts: 0 }
    }

    pub fn log_in() -> Self {
        Self { first: FIRST_LOG_IN, longest: LONGEST_LOG_IN, attempts: 0 }
    }

    /// The next pause, between a quarter of the present step and the whole of it.
    pub fn pause(&mut self) -> Duration {
        let step = self.first.saturating_mul(1 << self.attempts.min(10)).min(self.longest);
        self.attempts = self.attempts.saturating_add(1);
        step.mul_f64(uniform(0.25..=1.0))
    }

    /// How many pauses there were since the last success.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_start_anew() {
        let mut backoff = Backoff::default();
        assert!(backoff.pause() <= FIRST);
        for _ in 0..40 {
            assert!(backoff.pause() <= LONGEST);
        }
        assert!(backoff.pause() >= LONGEST / 4);
        backoff.reset();
        assert!(backoff.pause() <= FIRST);
    }
}
