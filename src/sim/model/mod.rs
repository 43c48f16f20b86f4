//! A model of etcd: what one healthy cluster answers, without a network, a disk or a clock.
//!
//! It takes the plain types of [`crate::etcd::kv`], so that the same script can be run through it and,
//! by the real client, through a real etcd (`conformance.rs` does). Time comes from the caller.

mod lease;
mod range;
mod refusal;
mod rules;
mod store;
mod txn;

use std::time::Duration;

use self::lease::Leases;
pub use self::range::in_range;
pub use self::refusal::refused;
use self::store::Store;
pub use self::store::Touched;
use crate::etcd::kv::{Event, Range, RangeReply, Txn, TxnReply, prefix_end};
use crate::etcd::{EtcdError, Refusal, WatchSpec};

#[derive(Default)]
pub struct Etcd {
    store: Store,
    leases: Leases,
}

impl Etcd {
    pub fn revision(&self) -> i64 {
        self.store.revision()
    }

    /// The oldest revision that can still be read.
    pub fn compacted(&self) -> i64 {
        self.store.compacted()
    }

    /// All or nothing, and all at one revision.
    pub fn txn(&mut self, txn: &Txn) -> Result<TxnReply, EtcdError> {
        rules::check(txn)?;
        txn::run(&mut self.store, &mut self.leases, txn)
    }

    /// Whether a transaction would put anything, which an etcd that is full refuses.
    pub fn would_put(&self, txn: &Txn) -> bool {
        txn::puts(&self.store, txn)
    }

    /// How many keys were looked at since this was last asked.
    pub fn take_visited(&self) -> u64 {
        self.store.take_visited()
    }

    /// Answers with the revision of the store, as the header of etcd's answer does.
    pub fn range(&self, range: &Range) -> Result<(i64, RangeReply), EtcdError> {
        rules::check_key(&range.key)?;
        self.store.check_readable(range.revision)?;
        Ok((self.store.revision(), self.store.range(range)))
    }

    pub fn grant(&mut self, now: Duration, id: i64, ttl: Duration) -> Result<(), EtcdError> {
        if self.leases.exists(id) {
            return Err(refused(Refusal::LeaseExists, "lease already exists"));
        }
        self.leases.grant(now, id, ttl);
        Ok(())
    }

    /// Deletes the lease's keys, all at one revision; `false` when there is no such lease.
    pub fn revoke(&mut self, id: i64) -> bool {
        let Some(keys) = self.leases.remove(id) else { return false };
        self.store.begin();
        for key in keys {
            self.store.delete(&key);
        }
        self.store.commit();
        true
    }

    pub fn renew(&mut self, now: Duration, id: i64) -> bool {
        self.leases.renew(now, id)
    }

    /// What is left of a lease and what it was granted for, in whole seconds as etcd tells it.
    pub fn time_to_live(&self, now: Duration, id: i64) -> Option<(Duration, Duration)> {
        self.leases.time_to_live(now, id)
    }

    pub fn has_lease(&self, id: i64) -> bool {
        self.leases.exists(id)
    }

    /// What the lease was granted for, which its renewals' answers tell.
    pub fn granted(&self, id: i64) -> Option<Duration> {
        self.leases.granted(id)
    }

    /// Revokes the leases that have run out, each at a revision of its own; names them, and what they were
    /// granted for.
    pub fn expire(&mut self, now: Duration) -> Vec<(i64, Duration)> {
        let overdue = self.leases.overdue(now);
        for (id, _) in &overdue {
            self.revoke(*id);
        }
        overdue
    }

    /// A new leader gives every lease its whole time again.
    pub fn extend_leases(&mut self, now: Duration) {
        self.leases.extend(now);
    }

    pub fn compact(&mut self, revision: i64) -> Result<(), EtcdError> {
        self.store.compact(revision)
    }

    /// The events of a watch from revision `from` on, each with its place in the history.
    pub fn events(&self, spec: &WatchSpec, from: i64) -> Result<Vec<(usize, Event)>, EtcdError> {
        if from < self.store.compacted() {
            let oldest = self.store.compacted();
            return Err(EtcdError::Compacted { requested: from, oldest });
        }
        let mut events = self.store.events(spec, from);
        if from == self.store.compacted() {
            // Versions before 3.4.34 and 3.5.16 lose them (etcd issue 18089).
            let lost =
                |event: &Event| matches!(event, Event::Delete(kv) if kv.mod_revision <= from);
            events.retain(|(_, event)| !lost(event));
        }
        Ok(events)
    }

    /// The events of a watch that was open when they happened: no compaction takes those away.
    pub fn events_sent_before(&self, spec: &WatchSpec, from: i64) -> Vec<(usize, Event)> {
        self.store.events(spec, from)
    }

    /// What a watch reports about one change to a key that it sees.
    pub fn change(&self, index: usize, spec: &WatchSpec) -> Option<Event> {
        self.store.change(index, spec)
    }

    /// The keys that were written or deleted since this was last asked.
    pub fn take_touched(&mut self) -> Vec<Touched> {
        self.store.take_touched()
    }

    /// The present value of a key.
    pub fn get(&self, key: &str) -> Option<crate::etcd::kv::KeyValue> {
        self.store.get(key.as_bytes()).cloned()
    }

    /// All present keys with a prefix, as only the simulator looks at them.
    pub fn list(&self, prefix: &str) -> Vec<crate::etcd::kv::KeyValue> {
        let kvs = self.store.find(prefix.as_bytes(), Some(&prefix_end(prefix.as_bytes())));
        kvs.into_iter().cloned().collect()
    }
}
