//! One wait: its deadline, its watches, and what can end it.

use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::etcd::kv::Event;
use crate::etcd::{EtcdError, WatchMessage, WatchReceiver, WatchSpec, uniform};
use crate::store::core::Store;
use crate::store::error::{StoreError, display_some};

/// What a read may take whatever the timeout of the wait is: even a timeout of 0 reads once. Less where
/// the client has less for a request.
const READ_AT_LEAST: Duration = Duration::from_secs(5);
/// Waits at least this long look once more before they report a timeout: etcd may have been out of
/// reach all the time, and then that is the error.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(5);
const LAST_LOOK: Duration = Duration::from_secs(3);
/// A wait looks by itself each time that a random time of these, in seconds, is over: its watch may not be one, where
/// something between here and etcd does not let it through, or where the member that it is at has stalled.
const LOOK: RangeInclusive<f64> = 15.0..=30.0;
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// Longer than any job; keeps sums of times within their types.
const LONGEST: Duration = Duration::from_secs(365 * 86400);

pub struct Waiter {
    started: Instant,
    deadline: Instant,
    timeout: Duration,
    next_look: Instant,
    read_at_least: Duration,
    abort: Option<watch::Receiver<Option<String>>>,
}

/// Why a wait went on.
pub enum Wake {
    /// Nothing after this revision will be missed: what a new watch says first.
    Started(i64),
    Events(Vec<Event>),
    /// It is time to read once more, whatever the watch says.
    Look,
    /// Events are missing: read again, then watch again.
    Missed,
    /// There is no more time.
    Over(Over),
}

pub enum Over {
    TimedOut,
    Aborted(String),
}

impl Waiter {
    pub fn new(store: &Store, timeout: Duration) -> Self {
        let started = Instant::now();
        let timeout = timeout.min(LONGEST);
        Self {
            started,
            deadline: started + timeout,
            timeout,
            next_look: next_look(),
            read_at_least: READ_AT_LEAST.min(store.client.config().request_timeout),
            abort: store.abort.clone(),
        }
    }

    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    pub fn read_deadline(&self) -> Instant {
        self.deadline.max(self.started + self.read_at_least)
    }

    /// For a read while the wait goes on. It is not raced with the watch: etcd 3.5.1 ends with a panic when a
    /// transaction that only reads is cancelled.
    pub fn look_deadline(&self) -> Instant {
        self.deadline.min(Instant::now() + LOOK_LIMIT)
    }

    /// For a read after the end: `None` where it is not worth one.
    pub fn last_look(&self, over: &Over) -> Option<Instant> {
        let worth = matches!(over, Over::Aborted(_)) || self.timeout >= LOOK_AGAIN_AFTER;
        worth.then(|| Instant::now() + LAST_LOOK)
    }

    /// Waits for the next event of either watch.
    pub async fn next(
        &mut self,
        watch: &mut WatchReceiver,
        second: Option<&mut WatchReceiver>,
    ) -> Result<Wake, StoreError> {
        let second = async {
            match second {
                Some(receiver) => receiver.next().await,
                None => std::future::pending().await,
            }
        };
        let aborted = async {
            if let Some(receiver) = &mut self.abort
                && let Ok(reason) = receiver.wait_for(Option::is_some).await
            {
                return reason.clone().unwrap_or_default();
            }
            // No reason will come: whoever would give it is gone.
            std::future::pending().await
        };
        let message = tokio::select! {
            message = watch.next() => message,
            message = second => message,
            reason = aborted => return Ok(Wake::Over(Over::Aborted(reason))),
            () = tokio::time::sleep_until(self.next_look), if self.next_look < self.deadline => {
                self.next_look = next_look();
                return Ok(Wake::Look);
            }
            () = tokio::time::sleep_until(self.deadline) => return Ok(Wake::Over(Over::TimedOut)),
        };
        match message {
            WatchMessage::Started(revision) => Ok(Wake::Started(revision)),
            WatchMessage::Events(events) => Ok(Wake::Events(events)),
            WatchMessage::Compacted { .. } | WatchMessage::HistoryLost => Ok(Wake::Missed),
            WatchMessage::Failed(error) => Err(error.into()),
        }
    }

    /// Whether there is no time to wait at all.
    pub fn expired(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

fn next_look() -> Instant {
    Instant::now() + Duration::from_secs_f64(uniform(LOOK))
}

/// What a look has found; `None` where etcd cannot be reached, as the next one may.
pub fn seen<T>(look: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match look {
        Err(StoreError::Etcd(EtcdError::Unreachable { .. } | EtcdError::Ambiguous { .. })) => {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// Watches from the smallest to the largest of some etcd keys, from now on; `None` for none.
pub fn watch_between<'a>(
    store: &Store,
    mut keys: impl DoubleEndedIterator<Item = &'a [u8]>,
) -> Option<WatchReceiver> {
    let first = keys.next()?.to_vec();
    let range_end = keys.next_back().map(|last| [last, &[0]].concat());
    Some(store.client.watch(WatchSpec {
        key: first,
        range_end,
        start_revision: 0,
        ..WatchSpec::default()
    }))
}

/// The result of the last look: where the wait was ended by its maker, that is the error to report.
pub fn unless_aborted<T>(
    over: &Over,
    look: Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    match (look, over) {
        (Ok(found), _) => Ok(Some(found)),
        (Err(_), Over::Aborted(_)) => Ok(None),
        (Err(error), Over::TimedOut) => Err(error),
    }
}

/// The error of a wait that is over.
pub fn timed_out(waiter: &Waiter, over: Over, wanted: usize, missing: &[&[u8]]) -> StoreError {
    match over {
        Over::Aborted(reason) => StoreError::MemberLost { reason },
        Over::TimedOut => StoreError::Timeout {
            waited: waiter.timeout(),
            wanted,
            missing: missing.len(),
            named: display_some(missing.iter().copied()),
        },
    }
}
