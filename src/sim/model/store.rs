//! The key space with its history.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Bound;

use super::range::in_range;
use super::refusal::refused;
use crate::etcd::kv::{Event, KeyValue, Range, RangeReply};
use crate::etcd::{EtcdError, Refusal, WatchSpec};

/// One step of the history: a key's state after it, and before it.
struct Change {
    /// Of a deletion only the key and the revision.
    kv: KeyValue,
    deleted: bool,
    previous: Option<KeyValue>,
}

/// A key that was written or deleted, for the delivery of watch events.
#[derive(Clone, Debug)]
pub struct Touched {
    pub kv: KeyValue,
    pub deleted: bool,
    /// Where it stands in the history, for [`Store::change`].
    pub index: usize,
}

pub struct Store {
    revision: i64,
    compacted: i64,
    keys: BTreeMap<Vec<u8>, KeyValue>,
    history: Vec<Change>,
    touched: usize,
    /// The transaction under way has written something.
    dirty: bool,
    /// How many keys were looked at so far.
    visited: Cell<u64>,
}

impl Default for Store {
    fn default() -> Self {
        // An empty etcd is at revision 1.
        Self {
            revision: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            history: Vec::new(),
            touched: 0,
            dirty: false,
            visited: Cell::new(0),
        }
    }
}

impl Store {
    pub fn revision(&self) -> i64 {
        self.revision
    }

    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    pub fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        self.keys.get(key)
    }

    /// Everything written until [`Store::commit`] has the next revision.
    pub fn begin(&mut self) {
        self.dirty = false;
    }

    /// The revision does not change when nothing was written.
    pub fn commit(&mut self) -> i64 {
        self.revision += i64::from(self.dirty);
        self.dirty = false;
        self.revision
    }

    /// Returns the lease that the key had before.
    pub fn put(&mut self, key: &[u8], value: &[u8], lease: i64) -> i64 {
        let revision = self.write();
        let previous = self.keys.get(key).cloned();
        let kv = KeyValue {
            key: key.to_vec(),
            value: value.to_vec(),
            create_revision: previous.as_ref().map_or(revision, |kv| kv.create_revision),
            mod_revision: revision,
            version: previous.as_ref().map_or(1, |kv| kv.version + 1),
            lease,
        };
        self.keys.insert(key.to_vec(), kv.clone());
        let old_lease = previous.as_ref().map_or(0, |kv| kv.lease);
        self.history.push(Change { kv, deleted: false, previous });
        old_lease
    }

    pub fn delete(&mut self, key: &[u8]) {
        let Some(previous) = self.keys.remove(key) else { return };
        let mod_revision = self.write();
        let kv = KeyValue { key: key.to_vec(), mod_revision, ..KeyValue::default() };
        self.history.push(Change { kv, deleted: true, previous: Some(previous) });
    }

    fn write(&mut self) -> i64 {
        self.dirty = true;
        self.revision + 1
    }

    /// How many keys etcd has looked at since this was last asked.
    pub fn take_visited(&self) -> u64 {
        self.visited.take()
    }

    /// Whatever is asked of a range, etcd's index visits all keys in it: a limit cuts the answer only, since
    /// the answer tells how many there are (`mvcc/index.go`, `Revisions`).
    pub fn within(&self, key: &[u8], range_end: Option<&[u8]>) -> Vec<&KeyValue> {
        let found = self.find(key, range_end);
        self.visited.set(self.visited.get() + found.len().max(1) as u64);
        found
    }

    pub fn find(&self, key: &[u8], range_end: Option<&[u8]>) -> Vec<&KeyValue> {
        match range_end {
            None | Some([]) => self.keys.get(key).into_iter().collect(),
            Some([0]) => self.keys.range(key.to_vec()..).map(|(_, kv)| kv).collect(),
            Some(end) if end <= key => Vec::new(),
            Some(end) => {
                let bounds = (Bound::Included(key.to_vec()), Bound::Excluded(end.to_vec()));
                self.keys.range(bounds).map(|(_, kv)| kv).collect()
            }
        }
    }

    pub fn check_readable(&self, revision: i64) -> Result<(), EtcdError> {
        if revision > self.revision {
            let text = "required revision is a future revision";
            return Err(refused(Refusal::Other, text));
        }
        if revision > 0 && revision < self.compacted {
            return Err(EtcdError::Compacted { requested: 0, oldest: 0 });
        }
        Ok(())
    }

    pub fn range(&self, range: &Range) -> RangeReply {
        let end = range.range_end.as_deref();
        let mut kvs: Vec<KeyValue> = if range.revision <= 0 {
            self.within(&range.key, end).into_iter().cloned().collect()
        } else {
            self.as_of(range.revision, &range.key, end)
        };
        let count = i64::try_from(kvs.len()).unwrap_or(i64::MAX);
        if range.count_only {
            return RangeReply { kvs: Vec::new(), count, more: false };
        }
        let limit = usize::try_from(range.limit).unwrap_or(0);
        let more = limit > 0 && kvs.len() > limit;
        if more {
            kvs.truncate(limit);
        }
        if range.keys_only {
            for kv in &mut kvs {
                kv.value.clear();
                // From 3.7 on etcd answers from its index, which does not know the lease.
                kv.lease = 0;
            }
        }
        RangeReply { kvs, count, more }
    }

    /// Undoes what came after.
    fn as_of(&self, revision: i64, key: &[u8], range_end: Option<&[u8]>) -> Vec<KeyValue> {
        let present = self.within(key, range_end);
        let mut kvs: BTreeMap<&[u8], &KeyValue> =
            present.into_iter().map(|kv| (&kv.key[..], kv)).collect();
        let later = self.history.iter().rev();
        for change in later.take_while(|change| change.kv.mod_revision > revision) {
            if in_range(&change.kv.key, key, range_end) {
                match &change.previous {
                    Some(previous) => drop(kvs.insert(&change.kv.key, previous)),
                    None => drop(kvs.remove(&change.kv.key[..])),
                }
            }
        }
        kvs.into_values().cloned().collect()
    }

    pub fn compact(&mut self, revision: i64) -> Result<(), EtcdError> {
        if revision <= self.compacted {
            return Err(EtcdError::Compacted { requested: 0, oldest: 0 });
        }
        self.check_readable(revision)?;
        self.compacted = revision;
        Ok(())
    }

    /// Each with its place in the history.
    pub fn events(&self, spec: &WatchSpec, from: i64) -> Vec<(usize, Event)> {
        let first = self.history.partition_point(|change| change.kv.mod_revision < from);
        let end = spec.range_end.as_deref();
        let mut events = Vec::new();
        for (index, change) in self.history.iter().enumerate().skip(first) {
            if (change.deleted || !spec.deletes_only) && in_range(&change.kv.key, &spec.key, end) {
                events.push((index, self.event(index, spec)));
            }
        }
        events
    }

    /// A change as a watch that sees its key reports it; `None` where the watch gets deletions only.
    pub fn change(&self, index: usize, spec: &WatchSpec) -> Option<Event> {
        let told = self.history[index].deleted || !spec.deletes_only;
        told.then(|| self.event(index, spec))
    }

    fn event(&self, index: usize, spec: &WatchSpec) -> Event {
        let change = &self.history[index];
        let mut kv = change.kv.clone();
        if !change.deleted {
            return Event::Put(kv);
        }
        // The previous value is read at the revision before, which may be compacted away; what the same
        // transaction did to the key before it deleted it does not count.
        if spec.with_previous && kv.mod_revision > self.compacted {
            let same_revision = self.history[..index].iter().rev();
            let first = same_revision
                .take_while(|earlier| earlier.kv.mod_revision == kv.mod_revision)
                .filter(|earlier| earlier.kv.key == kv.key)
                .last()
                .unwrap_or(change);
            kv.value = first.previous.as_ref().map(|kv| kv.value.clone()).unwrap_or_default();
        }
        Event::Delete(kv)
    }

    pub fn take_touched(&mut self) -> Vec<Touched> {
        let fresh = &self.history[self.touched..];
        let touched = fresh.iter().zip(self.touched..).map(|(change, index)| Touched {
            kv: change.kv.clone(),
            deleted: change.deleted,
            index,
        });
        let touched = touched.collect();
        self.touched = self.history.len();
        touched
    }
}
