//! Whether etcd still has the history that this client knows. One that was restored from a backup, or
//! wiped and started anew, goes on from an earlier revision: a watch that waits for the next one would
//! sleep until the new history has come as far, and miss all until then.

use std::sync::{Mutex, MutexGuard, PoisonError};

use etcd_client::ResponseHeader;
use tokio::sync::watch;

pub(super) struct History {
    known: Mutex<Known>,
    /// Counts histories. Behind a channel, so that the watches hear of the next one.
    number: watch::Sender<u64>,
}

#[derive(Clone, Copy, Default)]
struct Known {
    /// 0 before etcd has said it.
    cluster: u64,
    /// The highest revision that etcd has spoken of.
    revision: i64,
}

impl Default for History {
    fn default() -> Self {
        Self { known: Mutex::default(), number: watch::Sender::new(0) }
    }
}

impl History {
    pub fn revision(&self) -> i64 {
        self.known().revision
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
    pub fn answered(&self, header: Option<&ResponseHeader>, before: i64) {
        let Some(header) = header else { return };
        if self.is_another(header) || header.revision() < before {
            self.begin_anew(header);
        } else {
            self.heard(header);
        }
    }

    /// Of a watch that has begun. The answer is `false` where the member is behind what is known: it may
    /// lag behind others, so a linearizable read has to tell.
    pub fn watch_began(&self, header: Option<&ResponseHeader>, before: i64) -> bool {
        let Some(header) = header else { return true };
        if self.is_another(header) {
            self.begin_anew(header);
            return true;
        }
        self.heard(header);
        header.revision() >= before
    }

    /// Revisions of events, and of whatever else can only be a part of what is known.
    pub fn heard(&self, header: &ResponseHeader) {
        let mut known = self.known();
        if known.cluster == 0 {
            known.cluster = header.cluster_id();
        }
        known.revision = known.revision.max(header.revision());
    }

    fn is_another(&self, header: &ResponseHeader) -> bool {
        let known = self.known().cluster;
        known != 0 && header.cluster_id() != 0 && header.cluster_id() != known
    }

    fn begin_anew(&self, header: &ResponseHeader) {
        *self.known() = Known { cluster: header.cluster_id(), revision: header.revision() };
        self.number.send_modify(|number| *number += 1);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
