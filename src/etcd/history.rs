//! Whether etcd still has the history that this client knows. An etcd that was restored from a backup, or
//! wiped and restarted, goes on from an earlier revision. A watch that waits for the next revision would
//! sleep until the new history reaches it, and miss all events until then.

use std::sync::{Mutex, MutexGuard, PoisonError};

use etcd_client::ResponseHeader;
use tokio::sync::watch;

pub struct History {
    known: Mutex<Known>,
    /// Its number, so that the watches hear of the next one.
    number: watch::Sender<u64>,
}

/// What is known of etcd, and was when a request was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Counts histories: what was sent in an earlier one says nothing of this one.
    number: u64,
    /// 0 before etcd has said it.
    cluster: u64,
    /// The highest revision that etcd has spoken of.
    revision: i64,
}

impl Known {
    /// For a request that any member answers by itself, which may be behind the others.
    pub fn at_any_revision(self) -> Self {
        Self { revision: 0, ..self }
    }
}

impl Default for History {
    fn default() -> Self {
        Self { known: Mutex::default(), number: watch::Sender::new(0) }
    }
}

impl History {
    pub fn known(&self) -> Known {
        *self.lock()
    }

    pub fn number(&self) -> u64 {
        *self.number.borrow()
    }

    /// Changes with each new history.
    pub fn numbers(&self) -> watch::Receiver<u64> {
        self.number.subscribe()
    }

    /// Of a linearizable answer, to a request that was sent when `before` was known: etcd cannot be
    /// behind that.
    pub fn answered(&self, header: Option<&ResponseHeader>, before: Known) {
        if let Some(header) = header {
            self.learn(header.cluster_id(), header.revision(), before, true);
        }
    }

    /// Of a watch that has begun. The answer is `false` where the member is behind what is known: it may
    /// lag behind others, so a linearizable read has to tell.
    pub fn watch_began(&self, header: Option<&ResponseHeader>, before: Known) -> bool {
        header
            .is_none_or(|header| self.learn(header.cluster_id(), header.revision(), before, false))
    }

    /// Of events, and of whatever else can only be a part of what is known.
    pub fn heard(&self, header: &ResponseHeader, before: Known) {
        let before = before.at_any_revision();
        self.learn(header.cluster_id(), header.revision(), before, false);
    }

    /// `false` where the answer is behind what was known, and that decides nothing.
    fn learn(&self, cluster: u64, revision: i64, before: Known, decides: bool) -> bool {
        let mut known = self.lock();
        if known.number != before.number {
            return true;
        }
        let another = known.cluster != 0 && cluster != 0 && cluster != known.cluster;
        let behind = revision < before.revision;
        if another || (behind && decides) {
            *known = Known { number: known.number + 1, cluster, revision };
            self.number.send_replace(known.number);
            return true;
        }
        if known.cluster == 0 {
            known.cluster = cluster;
        }
        known.revision = known.revision.max(revision);
        !behind
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_were_asked_for_before_the_loss_lose_it_once() {
        let history = History::default();
        let answered = |revision, before| history.learn(1, revision, before, true);
        answered(100, history.known());
        let before = history.known();
        for _ in 0..3 {
            answered(5, before);
        }
        assert_eq!(history.number(), 1);
        // Nor do late answers of the former history, or events.
        answered(120, before);
        history.learn(1, 130, before, false);
        assert_eq!((history.number(), history.known().revision), (1, 5));
        answered(6, history.known());
        assert_eq!((history.number(), history.known().revision), (1, 6));
        history.learn(2, 7, history.known(), false);
        assert_eq!(history.number(), 2, "another cluster");
        answered(8, history.known());
        assert_eq!(history.number(), 3);
    }

    #[test]
    fn a_watch_that_begins_behind_is_a_doubt() {
        let history = History::default();
        history.learn(1, 100, history.known(), true);
        assert!(!history.learn(1, 99, history.known(), false));
        assert!(history.learn(1, 101, history.known(), false));
        assert_eq!((history.number(), history.known().revision), (0, 101));
    }
}
