//! `wait` and `check`: whether keys are there, as values or as queues with an entry.
//!
//! `wait` takes a key that came and went again as there, as `TCPStore` does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::waiter::{Over, Waiter, Wake, seen, timed_out, unless_aborted, watch_between};
use crate::etcd::kv::{Event, Range, Txn, prefix_end};
use crate::etcd::{Branch, Repeat, WatchReceiver, WatchSpec};
use crate::store::chunks::{MAX_OPS, chunks};
use crate::store::core::Store;
use crate::store::error::StoreError;
use crate::store::keys::Keys;

/// What a wait for keys has left to wait for.
struct Missing {
    /// A revision at which these keys were missing.
    revision: i64,
    /// etcd keys.
    keys: BTreeSet<Vec<u8>>,
}

impl Store {
    /// Whether all keys are there now, as values or as queues that are not empty.
    pub(in crate::store) async fn check(
        &self,
        keys: &[Vec<u8>],
        deadline: Instant,
    ) -> Result<bool, StoreError> {
        let wanted = self.etcd_keys(keys);
        Ok(self.missing(&wanted, deadline).await?.keys.is_empty())
    }

    /// Waits until each key has been there, as a value or as a queue that is not empty.
    pub(in crate::store) async fn wait(
        &self,
        keys: &[Vec<u8>],
        timeout: Duration,
    ) -> Result<(), StoreError> {
        let mut waiter = Waiter::new(self, timeout);
        let all = self.etcd_keys(keys);
        let mut wanted = all.clone();
        loop {
            let mut missing = self.missing(&wanted, waiter.read_deadline()).await?;
            match self.wait_for_presence(&mut missing, &mut waiter).await? {
                None => return Ok(()),
                Some(Wake::Over(over)) => {
                    if let Some(deadline) = waiter.last_look(&over) {
                        let look = self.missing(&missing.keys, deadline).await;
                        match unless_aborted(&over, look)? {
                            Some(left) if left.keys.is_empty() => return Ok(()),
                            Some(left) => missing = left,
                            None => {}
                        }
                    }
                    let names: Vec<_> =
                        missing.keys.iter().filter_map(|key| self.keys.decode(key)).collect();
                    let names: Vec<_> = names.iter().map(Vec::as_slice).collect();
                    return Err(timed_out(&waiter, over, all.len(), &names));
                }
                Some(_) => wanted = missing.keys,
            }
        }
    }

    async fn wait_for_presence(
        &self,
        missing: &mut Missing,
        waiter: &mut Waiter,
    ) -> Result<Option<Wake>, StoreError> {
        if missing.keys.is_empty() {
            return Ok(None);
        }
        if waiter.expired() {
            return Ok(Some(Wake::Over(Over::TimedOut)));
        }
        let keys = missing.keys.iter().map(Vec::as_slice);
        let Some(mut watch) = watch_between(self, keys) else { return Ok(None) };
        // Queues by their prefix, so that an entry's event tells which key it is.
        let mut queues = BTreeMap::new();
        for etcd_key in &missing.keys {
            if let Some(key) = self.keys.decode(etcd_key) {
                queues.insert(self.keys.queue(&key), etcd_key.clone());
            }
        }
        let mut queue_watch = self.watch_queues(&queues);
        while !missing.keys.is_empty() {
            let events = match waiter.next(&mut watch, queue_watch.as_mut()).await? {
                Wake::Events(events) => events,
                // Something was written between the read and the watch: it may have been one of these.
                Wake::Started(since) if since > missing.revision => {
                    *missing = self.missing(&missing.keys, waiter.read_deadline()).await?;
                    continue;
                }
                Wake::Started(_) => continue,
                Wake::Look => {
                    let look = self.missing(&missing.keys, waiter.look_deadline()).await;
                    if let Some(left) = seen(look)? {
                        *missing = left;
                    }
                    continue;
                }
                other => return Ok(Some(other)),
            };
            for event in events {
                let Event::Put(kv) = event else { continue };
                if !missing.keys.remove(&kv.key)
                    && let Some(etcd_key) = queues.get(Keys::queue_of(&kv.key))
                {
                    missing.keys.remove(etcd_key);
                }
            }
        }
        Ok(None)
    }

    fn watch_queues(&self, queues: &BTreeMap<Vec<u8>, Vec<u8>>) -> Option<WatchReceiver> {
        let (first, last) = (queues.keys().next()?, queues.keys().next_back()?);
        Some(self.client.watch(WatchSpec {
            key: first.clone(),
            range_end: Some(prefix_end(last)),
            start_revision: 0,
            ..WatchSpec::default()
        }))
    }

    fn etcd_keys(&self, keys: &[Vec<u8>]) -> BTreeSet<Vec<u8>> {
        keys.iter().map(|key| self.keys.key(key)).collect()
    }

    /// Which of the etcd keys are neither there nor queues with an entry, at one revision.
    async fn missing(
        &self,
        wanted: &BTreeSet<Vec<u8>>,
        deadline: Instant,
    ) -> Result<Missing, StoreError> {
        let (Some(first), Some(last)) = (wanted.first(), wanted.last()) else {
            return Ok(Missing { revision: 0, keys: BTreeSet::new() });
        };
        // Mostly there are no queues at all, and then there is nothing to ask for each key.
        let mut reads = Branch::default();
        let any_queue = reads.get(Range::prefix(self.keys.queues()).count_only());
        let mut keys = wanted.clone();
        let few = wanted.len() < MAX_OPS && wanted.iter().map(Vec::len).sum::<usize>() < 1 << 20;
        let (revision, queues) = if few {
            let slots: Vec<_> =
                wanted.iter().map(|key| reads.get(Range::key(key.clone()).keys_only())).collect();
            let txn = Txn::when([]).then(reads);
            let mut reply = self.client.txn(&txn, Repeat::Safely, deadline).await?;
            for slot in slots {
                for kv in slot.take(&mut reply.replies).kvs {
                    keys.remove(&kv.key);
                }
            }
            (reply.revision, any_queue.take(&mut reply.replies).count)
        } else {
            let range_end = Some([last.as_slice(), &[0]].concat());
            let range = Range { key: first.clone(), range_end, ..Range::default() };
            let (revision, present) = self.list(&[range], deadline).await?;
            for key in present {
                keys.remove(&key);
            }
            let txn = Txn::when([]).then(reads);
            let mut reply = self.client.txn(&txn, Repeat::Safely, deadline).await?;
            (revision, any_queue.take(&mut reply.replies).count)
        };
        if queues > 0 && !keys.is_empty() {
            self.remove_queues(&mut keys, deadline).await?;
        }
        Ok(Missing { revision, keys })
    }

    /// Takes those keys away whose queue has an entry now.
    async fn remove_queues(
        &self,
        keys: &mut BTreeSet<Vec<u8>>,
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let all: Vec<_> = keys.iter().cloned().collect();
        for chunk in chunks(&all, MAX_OPS, Vec::len) {
            let mut heads = Branch::default();
            let slots = chunk.iter().map(|etcd_key| {
                let key = self.keys.decode(etcd_key).unwrap_or_default();
                let queue = Range::prefix(self.keys.queue(&key)).keys_only();
                heads.get(Range { limit: 1, ..queue })
            });
            let slots: Vec<_> = slots.collect();
            let txn = Txn::when([]).then(heads);
            let mut reply = self.client.txn(&txn, Repeat::Safely, deadline).await?;
            for (etcd_key, slot) in chunk.iter().zip(slots) {
                if slot.take(&mut reply.replies).count > 0 {
                    keys.remove(etcd_key);
                }
            }
        }
        Ok(())
    }
}
