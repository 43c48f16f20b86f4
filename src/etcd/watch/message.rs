//! What goes between a watch's user, the task that serves a client's watches, and its stream.

use tokio::sync::mpsc::UnboundedSender;

use crate::etcd::error::EtcdError;
use crate::etcd::kv::Event;

/// What to watch. `range_end` of `None` watches one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchSpec {
    pub key: Vec<u8>,
    pub range_end: Option<Vec<u8>>,
    /// The first revision of interest; 0 means from now on.
    pub start_revision: i64,
    /// Only deletions.
    pub deletes_only: bool,
    /// What was deleted comes with the deletion; etcd reads it for each of them.
    pub with_previous: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchMessage {
    /// The watch sees all that happens after this revision. Comes first and once, where no
    /// revision was asked for. A watch that begins in the past waits up to 100 ms for its events, since
    /// etcd looks after those only so often (`watchable_store.go`, `syncWatchersLoop`); one that begins
    /// now does not. So who cannot wait watches first and reads then.
    Started(i64),
    /// Events in the order of their revisions, none twice and none left out.
    Events(Vec<Event>),
    /// Events are missing: read the range, then watch again. The watch has ended.
    Compacted { oldest: i64 },
    /// etcd has another history than before: what was read is of no more use, and leases are gone or
    /// from before. The watch has ended.
    HistoryLost,
    /// The watch has ended and would end again.
    Failed(EtcdError),
}

pub enum Command {
    Add(i64, Watching),
    Cancel(i64),
}

pub struct Watching {
    pub spec: WatchSpec,
    /// The revision to resume from; 0 until etcd said what "now" is.
    pub next: i64,
    /// etcd has confirmed it before.
    pub opened: bool,
    /// The history that its revisions are of.
    pub history: u64,
    pub sender: UnboundedSender<WatchMessage>,
}
