//! Leases: their time and the keys that go with them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// etcd grants no lease for less (`minLeaseTTL`: three halves of its election timeout, rounded up).
const SHORTEST: Duration = Duration::from_secs(2);

struct Lease {
    ttl: Duration,
    expires: Duration,
    keys: BTreeSet<Vec<u8>>,
}

#[derive(Default)]
pub struct Leases {
    leases: BTreeMap<i64, Lease>,
}

impl Leases {
    pub fn exists(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    pub fn grant(&mut self, now: Duration, id: i64, ttl: Duration) {
        // The client asks for whole seconds.
        let seconds = u64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(u64::MAX);
        let ttl = Duration::from_secs(seconds).max(SHORTEST);
        self.leases.insert(id, Lease { ttl, expires: now + ttl, keys: BTreeSet::new() });
    }

    /// Returns the keys that were attached.
    pub fn remove(&mut self, id: i64) -> Option<BTreeSet<Vec<u8>>> {
        self.leases.remove(&id).map(|lease| lease.keys)
    }

    pub fn renew(&mut self, now: Duration, id: i64) -> bool {
        let Some(lease) = self.leases.get_mut(&id) else { return false };
        lease.expires = now + lease.ttl;
        true
    }

    pub fn granted(&self, id: i64) -> Option<Duration> {
        self.leases.get(&id).map(|lease| lease.ttl)
    }

    pub fn extend(&mut self, now: Duration) {
        for lease in self.leases.values_mut() {
            lease.expires = now + lease.ttl;
        }
    }

    pub fn time_to_live(&self, now: Duration, id: i64) -> Option<(Duration, Duration)> {
        let lease = self.leases.get(&id)?;
        let left = lease.expires.saturating_sub(now);
        Some((Duration::from_secs(left.as_secs()), lease.ttl))
    }

    pub fn overdue(&self, now: Duration) -> Vec<(i64, Duration)> {
        let overdue = self.leases.iter().filter(|(_, lease)| lease.expires <= now);
        overdue.map(|(id, lease)| (*id, lease.ttl)).collect()
    }

    pub fn attach(&mut self, id: i64, key: &[u8]) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.insert(key.to_vec());
        }
    }

    pub fn detach(&mut self, id: i64, key: &[u8]) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.remove(key);
        }
    }
}
