//! Attempts that are begun one after the other, a little apart, until one of them succeeds (RFC 8305 calls
//! connections made so "happy eyeballs"): one that hangs does not keep those behind it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

/// RFC 8305 recommends it.
const APART: Duration = Duration::from_millis(250);

/// From the beginning of an attempt that has got a connection: a member that takes many at once is slow with
/// its first answer, and whoever tried the next one as well would add to that.
const APART_CONNECTED: Duration = Duration::from_secs(1);

/// How far an attempt has come.
#[derive(Default)]
pub struct Progress(AtomicBool);

impl Progress {
    pub fn connected(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `attempt` for each candidate until one gives what `decides`. Gives all that came by then, in the order
/// in which it came; attempts that were still under way are dropped.
pub async fn race<C, T, Fut: Future<Output = T>>(
    candidates: Vec<C>,
    attempt: impl Fn(C, Arc<Progress>) -> Fut,
    decides: impl Fn(&T) -> bool,
) -> Vec<T> {
    let mut waiting = candidates.into_iter();
    let mut running = FuturesUnordered::new();
    let mut ended = Vec::new();
    loop {
        let progress = Arc::<Progress>::default();
        let begun = Instant::now();
        if let Some(candidate) = waiting.next() {
            running.push(attempt(candidate, progress.clone()));
        }
        tokio::select! {
            came = running.next() => match came {
                None => return ended,
                Some(outcome) => {
                    let decided = decides(&outcome);
                    ended.push(outcome);
                    if decided {
                        return ended;
                    }
                }
            },
            () = time_for_the_next(begun, &progress), if waiting.len() > 0 => {}
        }
    }
}

async fn time_for_the_next(begun: Instant, progress: &Progress) {
    sleep_until(begun + APART).await;
    if progress.0.load(Ordering::Relaxed) {
        sleep_until(begun + APART_CONNECTED).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds after which an attempt ends, whether it succeeds, and whether it gets a connection at once.
    type Plan = (f64, bool, bool);

    /// The one that succeeded, and how many had ended by then.
    async fn first_of(plans: &[Plan]) -> (Option<usize>, usize) {
        let attempt = |number: usize, progress: Arc<Progress>| async move {
            let (seconds, succeeds, connects) = plans[number];
            if connects {
                progress.connected();
            }
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            (number, succeeds)
        };
        let ended = race((0..plans.len()).collect(), attempt, |(_, succeeds)| *succeeds).await;
        let winner = ended.last().and_then(|(number, succeeds)| succeeds.then_some(*number));
        (winner, ended.len())
    }

    #[tokio::test]
    async fn one_that_hangs_does_not_keep_the_next() {
        for connects in [false, true] {
            let plans = [(60.0, true, connects), (0.0, true, false)];
            assert_eq!(first_of(&plans).await, (Some(1), 1));
        }
    }

    #[tokio::test]
    async fn one_that_is_connected_has_more_time() {
        assert_eq!(first_of(&[(0.4, true, true), (0.0, true, true)]).await, (Some(0), 1));
        assert_eq!(first_of(&[(0.4, true, false), (0.0, true, true)]).await, (Some(1), 1));
    }

    #[tokio::test]
    async fn a_failure_begins_the_next_at_once() {
        let plans =
            [(0.0, false, false), (0.0, false, true), (0.0, true, false), (0.0, true, false)];
        assert_eq!(first_of(&plans).await, (Some(2), 3));
    }

    #[tokio::test]
    async fn all_that_fail_are_told() {
        assert_eq!(first_of(&[(0.4, false, true), (0.0, false, true)]).await, (None, 2));
        assert_eq!(first_of(&[]).await, (None, 0));
    }
}
