//! `get` and `multi_get`: values that the keys had at the same time (at one revision, counters aside).

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::waiter::{Over, Waiter, Wake, seen, timed_out, unless_aborted, watch_between};
use crate::etcd::kv::{Event, Txn};
use crate::etcd::{Branch, Repeat};
use crate::store::chunks::{MAX_OPS, chunks};
use crate::store::core::Store;
use crate::store::error::StoreError;
use crate::store::read::Contents;
use crate::store::value::{Content, decode};

/// By etcd key.
type Values = BTreeMap<Vec<u8>, Vec<u8>>;

impl Store {
    pub(in crate::store) async fn get(
        &self,
        key: &[u8],
        timeout: Duration,
    ) -> Result<Vec<u8>, StoreError> {
        let mut values = self.multi_get(&[key.to_vec()], timeout).await?;
        Ok(values.pop().unwrap_or_default())
    }

    /// Waits until all keys are there, then the values in the order asked for.
    pub(in crate::store) async fn multi_get(
        &self,
        keys: &[Vec<u8>],
        timeout: Duration,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let wanted: BTreeMap<_, _> =
            keys.iter().map(|key| (self.keys.key(key), key.as_slice())).collect();
        let mut waiter = Waiter::new(self, timeout);
        loop {
            let mut contents = self.contents(&wanted, waiter.read_deadline()).await?;
            if contents.found.len() < wanted.len() {
                match self.wait_for_contents(&wanted, &mut contents, &mut waiter).await? {
                    None => {}
                    Some(Wake::Over(over)) => {
                        if let Some(values) =
                            self.last_values(keys, &wanted, &waiter, &over).await?
                        {
                            return Ok(values);
                        }
                        let missing = wanted
                            .iter()
                            .filter(|(key, _)| !contents.found.contains_key(key.as_slice()));
                        let missing: Vec<_> = missing.map(|(_, key)| *key).collect();
                        return Err(timed_out(&waiter, over, wanted.len(), &missing));
                    }
                    Some(_) => continue,
                }
            }
            // Deleted since: wait for it again.
            let read_deadline = waiter.read_deadline().max(Instant::now() + Duration::from_secs(1));
            if let Some(values) = self.values(&wanted, contents, read_deadline).await? {
                return Ok(self.in_order(keys, values));
            }
        }
    }

    /// Follows the keys until all are there (`None`) or something else happened.
    async fn wait_for_contents(
        &self,
        wanted: &BTreeMap<Vec<u8>, &[u8]>,
        contents: &mut Contents,
        waiter: &mut Waiter,
    ) -> Result<Option<Wake>, StoreError> {
        if waiter.expired() {
            return Ok(Some(Wake::Over(Over::TimedOut)));
        }
        // All of them, not only the missing ones: those may change or go while the others come.
        let keys = wanted.keys().map(Vec::as_slice);
        let Some(mut watch) = watch_between(self, keys) else { return Ok(None) };
        while contents.found.len() < wanted.len() {
            let events = match waiter.next(&mut watch, None).await? {
                Wake::Events(events) => events,
                // Something was written between the read and the watch: it may have been one of these.
                Wake::Started(since) if since > contents.revision => {
                    *contents = self.contents(wanted, waiter.read_deadline()).await?;
                    continue;
                }
                Wake::Started(_) => continue,
                Wake::Look => {
                    let look = self.contents(wanted, waiter.look_deadline()).await;
                    if let Some(now) = seen(look)? {
                        *contents = now;
                    }
                    continue;
                }
                other => return Ok(Some(other)),
            };
            for event in events {
                let Some(key) = wanted.get(&event.kv().key) else { continue };
                if event.kv().mod_revision <= contents.revision {
                    continue;
                }
                match event {
                    Event::Put(kv) => {
                        let content = decode(key, &kv.value)?;
                        contents.found.insert(kv.key, content);
                    }
                    Event::Delete(kv) => drop(contents.found.remove(&kv.key)),
                }
            }
        }
        Ok(None)
    }

    /// The values of contents, by etcd key; `None` when a counter is not there any more.
    async fn values(
        &self,
        wanted: &BTreeMap<Vec<u8>, &[u8]>,
        contents: Contents,
        deadline: Instant,
    ) -> Result<Option<Values>, StoreError> {
        let mut values = BTreeMap::new();
        let mut counters = Vec::new();
        for (etcd_key, content) in contents.found {
            match content {
                Content::Literal(value) => drop(values.insert(etcd_key, value)),
                Content::Counter(_) => counters.push(etcd_key),
            }
        }
        for chunk in chunks(&counters, MAX_OPS / 2, |key| 2 * key.len()) {
            let keys: Vec<_> =
                chunk.iter().map(|key| wanted.get(key).copied().unwrap_or_default()).collect();
            let mut gets = Branch::default();
            let slots: Vec<_> = keys.iter().map(|key| self.read_cell(&mut gets, key, 0)).collect();
            let txn = Txn::when([]).then(gets);
            let mut reply = self.client.txn(&txn, Repeat::Safely, deadline).await?;
            for ((etcd_key, key), slot) in chunk.iter().zip(keys).zip(slots) {
                match slot.take(key, &mut reply.replies)? {
                    Some(cell) => drop(values.insert(etcd_key.clone(), cell.into_value())),
                    None => return Ok(None),
                }
            }
        }
        Ok(Some(values))
    }

    /// The values in the order of `keys`, which may name one more than once.
    fn in_order(&self, keys: &[Vec<u8>], mut values: Values) -> Vec<Vec<u8>> {
        let repeated = keys.len() > values.len();
        let value = |key: &Vec<u8>| {
            let etcd_key = self.keys.key(key);
            if repeated { values.get(&etcd_key).cloned() } else { values.remove(&etcd_key) }
        };
        keys.iter().map(value).map(Option::unwrap_or_default).collect()
    }

    async fn last_values(
        &self,
        keys: &[Vec<u8>],
        wanted: &BTreeMap<Vec<u8>, &[u8]>,
        waiter: &Waiter,
        over: &Over,
    ) -> Result<Option<Vec<Vec<u8>>>, StoreError> {
        let Some(deadline) = waiter.last_look(over) else { return Ok(None) };
        let look = async {
            let contents = self.contents(wanted, deadline).await?;
            if contents.found.len() < wanted.len() {
                return Ok(None);
            }
            self.values(wanted, contents, deadline).await
        };
        let values = unless_aborted(over, look.await)?.flatten();
        Ok(values.map(|values| self.in_order(keys, values)))
    }
}
