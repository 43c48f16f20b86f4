//! Queues: each entry is a key of its own, and the keys are in the order of their creation.

use std::time::Duration;

use tokio::time::Instant;

use super::core::Store;
use super::error::{StoreError, display};
use super::value::{Content, decode};
use super::wait::{Waiter, Wake, seen, timed_out};
use crate::etcd::kv::{Compare, Event, KeyValue, Op, Range, Txn, prefix_end};
use crate::etcd::{Branch, OnceOutcome, WatchSpec, unique};

impl Store {
    pub(super) async fn queue_push(
        &self,
        key: &[u8],
        value: &[u8],
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let queue = self.keys.queue(key);
        let now = Range::key(self.keys.key(key)).count_only();
        let (mut revision, _) = self.client.range(&now, deadline).await?;
        loop {
            // etcd reads all of a range that it sorts by anything but the key. So the key tells the order.
            let mut entry = [&queue[..], format!("{revision:016x}").as_bytes()].concat();
            // Whoever has read a later revision may have pushed meanwhile: what is pushed now comes behind that.
            let last =
                Compare { range_end: Some(prefix_end(&queue)), ..Compare::absent(entry.clone()) };
            entry.extend_from_slice(format!("{:032x}", unique()).as_bytes());
            let put = self.sized_put(key, entry, value)?;
            match self.write("queue_push", key, &Txn::when([last]).then([put]), deadline).await? {
                OnceOutcome::Answered(reply) if !reply.succeeded => revision = reply.revision,
                _ => return Ok(()),
            }
        }
    }

    pub(super) async fn queue_len(&self, key: &[u8], deadline: Instant) -> Result<i64, StoreError> {
        let entries = Range::prefix(self.keys.queue(key)).count_only();
        Ok(self.client.range(&entries, deadline).await?.1.count)
    }

    /// Takes the oldest entry. When there is none: waits for one up to `timeout`, or with `None` fails.
    pub(super) async fn queue_pop(
        &self,
        key: &[u8],
        timeout: Option<Duration>,
        request_timeout: Duration,
    ) -> Result<Vec<u8>, StoreError> {
        let mut waiter = Waiter::new(self, timeout.unwrap_or_default());
        loop {
            let read_deadline = match timeout {
                Some(_) => waiter.read_deadline(),
                None => self.client.deadline_after(Some(request_timeout)),
            };
            let (revision, oldest) = self.oldest(key, read_deadline).await?;
            let Some(entry) = oldest else {
                if timeout.is_none() {
                    return Err(StoreError::QueueEmpty { queue: display(key) });
                }
                self.wait_for_entry(key, revision, &mut waiter).await?;
                continue;
            };
            if let Some(value) = self.pop(key, entry, request_timeout).await? {
                return Ok(value);
            }
        }
    }

    async fn oldest(
        &self,
        key: &[u8],
        deadline: Instant,
    ) -> Result<(i64, Option<KeyValue>), StoreError> {
        let (revision, reply) = self.client.range(&self.oldest_range(key), deadline).await?;
        Ok((revision, reply.kvs.into_iter().next()))
    }

    fn oldest_range(&self, key: &[u8]) -> Range {
        Range { limit: 1, ..Range::prefix(self.keys.queue(key)) }
    }

    /// Takes this entry, or whichever is the oldest by then; `None` when the queue is empty.
    async fn pop(
        &self,
        key: &[u8],
        mut entry: KeyValue,
        request_timeout: Duration,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        loop {
            let deadline = self.client.deadline_after(Some(request_timeout));
            let mine = Compare::create_revision(entry.key.clone(), entry.create_revision);
            let mut taken = Branch::default();
            let oldest = taken.get(self.oldest_range(key));
            let txn = Txn::when([mine]).then([Op::delete(entry.key.clone())]).or_else(taken);
            let popped = match self.write("queue_pop", key, &txn, deadline).await {
                Ok(OnceOutcome::Answered(mut reply)) if !reply.succeeded => {
                    match oldest.take(&mut reply.replies).kvs.into_iter().next() {
                        Some(next) => entry = next,
                        None => return Ok(None),
                    }
                    false
                }
                Ok(_) => true,
                Err(error) if error.is_no_space() => {
                    let delete = [Op::delete(entry.key.clone())];
                    if self.delete_when_full("queue_pop", key, delete, deadline).await? == 0 {
                        return Ok(None);
                    }
                    true
                }
                Err(error) => return Err(error),
            };
            if popped {
                return match decode(key, &entry.value)? {
                    Content::Literal(value) => Ok(Some(value)),
                    Content::Counter(_) => Err(StoreError::Foreign { key: display(key) }),
                };
            }
        }
    }

    async fn wait_for_entry(
        &self,
        key: &[u8],
        revision: i64,
        waiter: &mut Waiter,
    ) -> Result<(), StoreError> {
        let Range { key: start, range_end, .. } = Range::prefix(self.keys.queue(key));
        let mut watch = self.client.watch(WatchSpec {
            key: start,
            range_end,
            start_revision: 0,
            ..WatchSpec::default()
        });
        loop {
            match waiter.next(&mut watch, None).await? {
                Wake::Started(since) if since > revision => {
                    // Something was written between the read and the watch: it may be an entry.
                    if self.oldest(key, waiter.read_deadline()).await?.1.is_some() {
                        return Ok(());
                    }
                }
                Wake::Started(_) => {}
                Wake::Look => {
                    let look = self.oldest(key, waiter.look_deadline()).await;
                    if let Some((_, Some(_))) = seen(look)? {
                        return Ok(());
                    }
                }
                Wake::Missed => return Ok(()),
                Wake::Events(events) => {
                    if events.iter().any(|event| matches!(event, Event::Put(_))) {
                        return Ok(());
                    }
                }
                Wake::Over(over) => return Err(timed_out(waiter, over, 1, &[key])),
            }
        }
    }
}
