//! Random steps on few keys, so that they meet: what etcd allows and what it refuses.

use std::time::Duration;

use super::super::model::Etcd;
use super::super::rng::Rng;
use crate::etcd::WatchSpec;
use crate::etcd::kv::{Compare, Op, Ordering, Range, Target, Txn, prefix_end};

#[derive(Clone, Debug)]
pub enum Step {
    Txn(Txn),
    Range(Range),
    Grant(i64, Duration),
    Revoke(i64),
    Renew(i64),
    TimeToLive(i64),
    Compact(i64),
    Watch(WatchSpec),
    /// Compare what the watches have brought.
    Drain,
}

const KEYS: [&[u8]; 8] = [b"a", b"a/1", b"a/2", b"a/3", b"b", b"b\0", b"c", b"\xff\xff"];
const VALUES: [&[u8]; 4] = [b"", b"1", b"2", b"\xff\0x"];
const LEASES: [i64; 5] = [1, 2, 3, 4, i64::MAX];

pub struct Script {
    rng: Rng,
}

impl Script {
    pub fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed) }
    }

    pub fn next(&mut self, model: &Etcd) -> Step {
        let ttl = Duration::from_secs(self.rng.between(1, 3) * 200);
        match self.rng.below(100) {
            0..=54 => Step::Txn(self.txn(model, 2)),
            55..=69 => Step::Range(self.range(model)),
            70..=77 => Step::Grant(self.lease(), ttl),
            78..=81 => Step::Revoke(self.lease()),
            82..=83 => Step::Renew(self.lease()),
            84..=86 => Step::TimeToLive(self.lease()),
            // No revision is 0: what a compaction to it does depends on whether there was one before.
            87 => Step::Compact(self.revision(model).max(1)),
            88..=90 => Step::Watch(self.watch(model)),
            91 => Step::Txn(self.large()),
            _ => Step::Drain,
        }
    }

    fn key(&mut self) -> Vec<u8> {
        if self.rng.chance(5) { Vec::new() } else { KEYS[self.rng.below(KEYS.len())].to_vec() }
    }

    fn lease(&mut self) -> i64 {
        LEASES[self.rng.below(LEASES.len())]
    }

    fn value(&mut self) -> Vec<u8> {
        VALUES[self.rng.below(VALUES.len())].to_vec()
    }

    /// Old ones, present ones, compacted ones and future ones.
    fn revision(&mut self, model: &Etcd) -> i64 {
        let newest = u64::try_from(model.revision()).unwrap_or(0);
        let oldest = u64::try_from(model.compacted()).unwrap_or(0);
        let revision = match self.rng.below(10) {
            0 => newest + 1,
            1 => self.rng.between(0, newest),
            _ => self.rng.between(oldest.max(newest.saturating_sub(30)), newest),
        };
        i64::try_from(revision).unwrap_or(0)
    }

    fn range_end(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        match self.rng.below(8) {
            0..=2 => None,
            3..=5 => Some(prefix_end(key)),
            6 => Some(vec![0]),
            _ => Some(self.key()),
        }
    }

    fn range(&mut self, model: &Etcd) -> Range {
        let key = self.key();
        Range {
            range_end: self.range_end(&key),
            key,
            limit: if self.rng.chance(400) { self.rng.between(1, 4) as i64 } else { 0 },
            keys_only: self.rng.chance(200),
            count_only: self.rng.chance(150),
            revision: if self.rng.chance(300) { self.revision(model) } else { 0 },
        }
    }

    fn compare(&mut self, model: &Etcd) -> Compare {
        let key = self.key();
        let number = if self.rng.chance(500) { self.rng.between(0, 3) as i64 } else { -1 };
        let revision = if number < 0 { self.revision(model) } else { number };
        let target = match self.rng.below(5) {
            0 => Target::Value(self.value()),
            1 => Target::Version(number.max(0)),
            2 => Target::CreateRevision(revision),
            3 => Target::ModRevision(revision),
            _ => Target::Lease(if number < 0 { self.lease() } else { number }),
        };
        let orders = [Ordering::Equal, Ordering::NotEqual, Ordering::Less, Ordering::Greater];
        let ordering = orders[self.rng.below(4)];
        let range_end = if self.rng.chance(300) { self.range_end(&key) } else { None };
        Compare { key, range_end, ordering, target }
    }

    fn op(&mut self, model: &Etcd, depth: usize) -> Op {
        match self.rng.below(10) {
            0..=2 => Op::Get(self.range(model)),
            3..=6 => {
                let lease = if self.rng.chance(500) { self.lease() } else { 0 };
                Op::Put { key: self.key(), value: self.value(), lease }
            }
            7 | 8 => {
                let key = self.key();
                Op::Delete { range_end: self.range_end(&key), key }
            }
            _ if depth > 0 => Op::Txn(self.txn(model, depth - 1)),
            _ => Op::get("a"),
        }
    }

    fn txn(&mut self, model: &Etcd, depth: usize) -> Txn {
        let some = |rng: &mut Rng, most: usize| rng.below(most + 1);
        let (guards, then, otherwise) =
            (some(&mut self.rng, 2), some(&mut self.rng, 4), some(&mut self.rng, 3));
        Txn {
            compares: (0..guards).map(|_| self.compare(model)).collect(),
            success: (0..then).map(|_| self.op(model, depth)).collect(),
            failure: (0..otherwise).map(|_| self.op(model, depth)).collect(),
        }
    }

    /// At and above the limit of operations, also where a nested transaction has its share of it.
    fn large(&mut self) -> Txn {
        let puts = |count: usize| -> Vec<Op> {
            // Outside of all ranges: keys of one creation come in no order that is promised.
            (0..count).map(|n| Op::put(format!("0/{n}"), "", 0)).collect()
        };
        let outer = 120 + self.rng.below(12);
        if self.rng.chance(500) {
            return Txn::when([]).then(puts(outer));
        }
        let mut ops: Vec<Op> = (1..outer).map(|_| Op::get("a")).collect();
        ops.push(Op::Txn(Txn::when([]).then(puts(self.rng.below(10)))));
        Txn::when([]).then(ops)
    }

    fn watch(&mut self, model: &Etcd) -> WatchSpec {
        let key = KEYS[self.rng.below(KEYS.len())].to_vec();
        let range_end = match self.rng.below(3) {
            0 => None,
            1 => Some(prefix_end(&key)),
            _ => Some(vec![0]),
        };
        let revision = match self.rng.below(6) {
            0 => 0,
            1 => model.revision() + 1,
            _ => self.revision(model),
        };
        // At the compacted revision itself the versions differ.
        let start_revision = if revision == model.compacted() { 0 } else { revision };
        WatchSpec {
            key,
            range_end,
            start_revision,
            deletes_only: self.rng.chance(400),
            ..WatchSpec::default()
        }
    }
}
