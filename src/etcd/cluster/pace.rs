//! When the endpoints may be tried again.

use tokio::time::Instant;

use super::backoff::Backoff;

pub struct Pace {
    backoff: Backoff,
    /// While the password is refused.
    log_in: Backoff,
    next: Instant,
}

impl Default for Pace {
    fn default() -> Self {
        Self { backoff: Backoff::default(), log_in: Backoff::log_in(), next: Instant::now() }
    }
}

impl Pace {
    pub fn begin_anew(&mut self) {
        self.backoff.reset();
        self.log_in.reset();
        self.next = Instant::now();
    }

    /// Returns when the next attempt is due.
    pub async fn due(&self) {
        tokio::time::sleep_until(self.next).await;
    }

    pub fn pause(&mut self) {
        self.next = Instant::now() + self.backoff.pause();
    }

    pub fn pause_after_refused_log_in(&mut self) {
        self.next = Instant::now() + self.log_in.pause();
    }
}
