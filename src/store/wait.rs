//! Operations that wait for keys: `get`, `multi_get`, `wait`, and `check`, which only looks.
//!
//! One read tells what is missing, one watch over all of it from the next revision on tells when it
//! comes. Now and then a wait reads once more, should the watch not be one. `wait` takes a key that came and went again as there, as `TCPStore` does. `get` and `multi_get`
//! answer with values that the keys had at the same time (at one revision, counters aside).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::chunks::{MAX_OPS, chunks};
use super::error::{StoreError, display_some};
use super::handle::Store;
use super::keys::Keys;
use super::read::Contents;
use super::value::{Cell, Content, decode};
use super::waiter::{Over, Waiter, Wake, seen, watch_between};
use crate::etcd::kv::{Event, Op, Range, Txn, prefix_end};
use crate::etcd::{Repeat, WatchReceiver, WatchSpec};

/// By etcd key.
type Values = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a wait for keys has left to wait for.
struct Missing {
    /// A revision at which these keys were missing.
    revision: i64,
    /// etcd keys.
    keys: BTreeSet<Vec<u8>>,
}

impl Store {
    pub async fn get(&self, key: &[u8], timeout: Duration) -> Result<Vec<u8>, StoreError> {
        let mut values = self.multi_get(&[key.to_vec()], timeout).await?;
        Ok(values.pop().unwrap_or_default())
    }

    /// Waits until all keys are there, then the values in the order asked for.
    pub async fn multi_get(
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
                return Ok(self.in_order(keys, &values));
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
            let ops = keys.iter().flat_map(|key| self.cell_ops(key, 0)).collect::<Vec<_>>();
            let reply = self.client.txn(&Txn::when([]).then(ops), Repeat::Safely, deadline).await?;
            for (index, (etcd_key, key)) in chunk.iter().zip(keys).enumerate() {
                match Cell::from_replies(key, &reply.replies, 2 * index)? {
                    Some(cell) => drop(values.insert(etcd_key.clone(), cell.value())),
                    None => return Ok(None),
                }
            }
        }
        Ok(Some(values))
    }

    fn in_order(&self, keys: &[Vec<u8>], values: &Values) -> Vec<Vec<u8>> {
        let value = |key: &Vec<u8>| values.get(&self.keys.key(key)).cloned().unwrap_or_default();
        keys.iter().map(value).collect()
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
        Ok(values.map(|values| self.in_order(keys, &values)))
    }

    /// Whether all keys are there now, as values or as queues that are not empty.
    pub async fn check(&self, keys: &[Vec<u8>], deadline: Instant) -> Result<bool, StoreError> {
        let wanted = self.etcd_keys(keys);
        Ok(self.missing(&wanted, deadline).await?.keys.is_empty())
    }

    /// Waits until each key has been there, as a value or as a queue that is not empty.
    pub async fn wait(&self, keys: &[Vec<u8>], timeout: Duration) -> Result<(), StoreError> {
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
        let any_queue = Op::Get(Range::prefix(self.keys.queues()).count_only());
        let mut keys = wanted.clone();
        let few = wanted.len() < MAX_OPS && wanted.iter().map(Vec::len).sum::<usize>() < 1 << 20;
        let (revision, queues) = if few {
            let mut ops: Vec<_> =
                wanted.iter().map(|key| Op::Get(Range::key(key.clone()).keys_only())).collect();
            ops.push(any_queue);
            let reply = self.client.txn(&Txn::when([]).then(ops), Repeat::Safely, deadline).await?;
            for index in 0..wanted.len() {
                for kv in reply.range(index).kvs {
                    keys.remove(&kv.key);
                }
            }
            (reply.revision, reply.range(wanted.len()).count)
        } else {
            let range_end = Some([last.as_slice(), &[0]].concat());
            let range = Range { key: first.clone(), range_end, ..Range::default() };
            let (revision, present) = self.list(&[range], deadline).await?;
            for key in present {
                keys.remove(&key);
            }
            let count = Txn::when([]).then([any_queue]);
            let reply = self.client.txn(&count, Repeat::Safely, deadline).await?;
            (revision, reply.range(0).count)
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
            let heads = chunk.iter().map(|etcd_key| {
                let key = self.keys.decode(etcd_key).unwrap_or_default();
                Op::Get(Range { limit: 1, ..Range::prefix(self.keys.queue(&key)).keys_only() })
            });
            let txn = Txn::when([]).then(heads.collect::<Vec<_>>());
            let reply = self.client.txn(&txn, Repeat::Safely, deadline).await?;
            for (index, etcd_key) in chunk.iter().enumerate() {
                if reply.range(index).count > 0 {
                    keys.remove(etcd_key);
                }
            }
        }
        Ok(())
    }
}

/// The result of the last look: where the wait was ended by its maker, that is the error to report.
fn unless_aborted<T>(over: &Over, look: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match (look, over) {
        (Ok(found), _) => Ok(Some(found)),
        (Err(_), Over::Aborted(_)) => Ok(None),
        (Err(error), Over::TimedOut) => Err(error),
    }
}

pub(super) fn timed_out(
    waiter: &Waiter,
    over: Over,
    wanted: usize,
    missing: &[&[u8]],
) -> StoreError {
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
