//! Whether the member at the other end of a connection is there.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::StatusResponse;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::etcd::verdict::{Verdict, classify, is_answer};

pub struct Health {
    opened: Instant,
    /// Milliseconds after `opened` at which the last answer came.
    heard: AtomicU64,
    served: AtomicBool,
    silent: watch::Sender<bool>,
    /// Held while the member is being asked.
    proof: tokio::sync::Mutex<Proof>,
}

/// What the member said last of itself.
struct Proof {
    at: Instant,
    /// Where the log of its cluster was applied by it then.
    applied: Option<u64>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            opened: Instant::now(),
            heard: AtomicU64::new(0),
            served: AtomicBool::new(false),
            silent: watch::Sender::new(false),
            proof: tokio::sync::Mutex::new(Proof { at: Instant::now(), applied: None }),
        }
    }
}

impl Health {
    /// Something has come from the member.
    pub fn note_answer(&self, served: bool) {
        self.heard.store(self.age_ms(), Ordering::Relaxed);
        if served {
            self.served.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it did what it was asked for, once at least.
    pub fn served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether the member is there, when an answer is late. It is asked by `status` for what it can say by itself: it
    /// may be slow because thousands want something at once, and a client that left it, reconnected and asked again
    /// would add to that. Calls that ask at the same time share one question.
    ///
    /// A member that says that it has applied nothing since `applied`, which it had said while the same answer was
    /// waited for, does not work off a queue: its disk hangs, or it is being defragmented, and the other members may
    /// well serve.
    pub async fn answers(
        &self,
        status: impl Future<Output = Result<StatusResponse, etcd_client::Error>>,
        limit: Duration,
        applied: &mut Option<u64>,
    ) -> bool {
        let (wondered, wondered_ms) = (Instant::now(), self.age_ms());
        let mut proof = self.proof.lock().await;
        if self.is_silent() {
            return false;
        }
        if proof.at < wondered {
            let said = tokio::time::timeout(limit, status).await;
            let answers = match &said {
                Ok(Ok(_)) => true,
                Ok(Err(error)) => is_answer(error) && classify(error) != Verdict::NotApplied,
                // Others may have got theirs.
                Err(_) => self.heard.load(Ordering::Relaxed) > wondered_ms,
            };
            if !answers {
                self.silent.send_replace(true);
                return false;
            }
            proof.at = Instant::now();
            // Versions before 3.4 do not say it.
            let said = said.ok().and_then(Result::ok).map(|said| said.raft_applied_index());
            proof.applied = said.filter(|index| *index > 0);
        }
        let stalled = applied.is_some() && *applied == proof.applied;
        *applied = proof.applied;
        if stalled {
            self.silent.send_replace(true);
        }
        !stalled
    }

    pub fn is_silent(&self) -> bool {
        *self.silent.borrow()
    }

    /// Returns when the member did not answer in time: streams need not wait for a ping to be lost.
    pub async fn fell_silent(&self) {
        // Cannot fail: the sender is ours.
        let _ = self.silent.subscribe().wait_for(|silent| *silent).await;
    }
}
