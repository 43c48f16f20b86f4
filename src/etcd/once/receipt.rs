//! Receipts: what a guarded transaction writes beside its own effect, and what it says of it later.

use std::sync::atomic::{AtomicU64, Ordering as Atomic};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::etcd::branch::{Branch, Nested, Slot};
use crate::etcd::kv::{
    Compare, KeyValue, Op, OpReply, Ordering, Range, RangeReply, Target, Txn, TxnReply,
};
use crate::etcd::unique::unique;

/// The receipts of one client, one for each transaction under way at the same time.
pub struct Receipts {
    /// Ends with this client's own random part, so that no two clients share a receipt.
    prefix: Vec<u8>,
    free: Mutex<Vec<Receipt>>,
    pub made: AtomicU64,
    runs: AtomicU64,
}

#[derive(Default)]
pub struct Receipt {
    pub key: Vec<u8>,
    pub version: i64,
}

impl Receipts {
    pub fn new(prefix: &[u8]) -> Self {
        let unique = unique();
        let mut prefix = prefix.to_vec();
        prefix.extend_from_slice(format!("{unique:032x}.").as_bytes());
        let (made, runs) = Default::default();
        Self { prefix, free: Mutex::default(), made, runs }
    }

    pub fn hold(&self) -> Held<'_> {
        let free = self.free().pop();
        let receipt = free.unwrap_or_else(|| {
            let number = self.made.fetch_add(1, Atomic::Relaxed);
            let key = [&self.prefix, number.to_string().as_bytes()].concat();
            Receipt { key, version: 0 }
        });
        Held { receipts: self, receipt, run: self.runs.fetch_add(1, Atomic::Relaxed) }
    }

    pub fn free(&self) -> MutexGuard<'_, Vec<Receipt>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A receipt in use. It is released when the use ends, which may be by a cancellation.
pub struct Held<'a> {
    receipts: &'a Receipts,
    pub receipt: Receipt,
    /// Of the transaction that uses it now.
    run: u64,
}

/// What a receipt says that is not as it was expected.
pub enum Found {
    /// The transaction wrote something, at this revision.
    Wrote(i64),
    /// It took effect by writing nothing else, or another one did that was given up. No copy of it that was sent
    /// so far can take effect any more.
    NotApplied,
    /// The receipt is gone with its lease, etcd was restored from a backup, or a stranger wrote it.
    Gone,
}

/// A transaction with its receipt.
pub struct Guarded {
    pub txn: Txn,
    /// The receipt, where it or what the transaction compares is not as expected.
    found: Slot<RangeReply>,
    /// What the transaction does where only its own compares fail. Without any there is nothing.
    otherwise: Option<Slot<Nested>>,
}

impl Held<'_> {
    fn compare(&self) -> Compare {
        let version = Target::Version(self.receipt.version);
        Compare::new(self.receipt.key.clone(), Ordering::Equal, version)
    }

    /// The receipt's value where the transaction wrote something else, too, or did not.
    fn mark(&self, wrote: bool) -> Vec<u8> {
        format!("{}{}", self.run, if wrote { "" } else { "." }).into_bytes()
    }

    /// The transaction with its receipt, in `all` branches or in those that write.
    pub fn guard(&self, txn: &Txn, lease: i64, all: bool) -> Guarded {
        let mut compares = vec![self.compare()];
        compares.extend_from_slice(&txn.compares);
        let mut differs = Branch::default();
        let found = differs.get(Range::key(self.receipt.key.clone()));
        // Without compares of its own only the receipt can be what is not as expected.
        let otherwise = (!txn.compares.is_empty()).then(|| {
            let failure = self.branch(&txn.failure, lease, all);
            differs.txn(Txn::when([self.compare()]).then(failure))
        });
        let success = self.branch(&txn.success, lease, all);
        Guarded { txn: Txn::when(compares).then(success).or_else(differs), found, otherwise }
    }

    fn branch(&self, ops: &[Op], lease: i64, all: bool) -> Vec<Op> {
        let put = |wrote| Op::put(self.receipt.key.clone(), self.mark(wrote), lease);
        let nested = |op: &&Op| matches!(op, Op::Txn(_));
        if ops.iter().any(|op| matches!(op, Op::Put { .. } | Op::Delete { .. })) {
            return [ops, &[put(true)]].concat();
        }
        debug_assert!(ops.iter().filter(nested).count() <= 1, "etcd takes one put to a key");
        if !ops.iter().any(|op| nested(&op)) {
            return if all { [ops, &[put(false)]].concat() } else { ops.to_vec() };
        }
        let held = ops.iter().map(|op| match op {
            Op::Txn(inner) => Op::Txn(Txn {
                compares: inner.compares.clone(),
                success: self.branch(&inner.success, lease, all),
                failure: self.branch(&inner.failure, lease, all),
            }),
            other => other.clone(),
        });
        held.collect()
    }

    /// Whether a branch that was taken wrote the receipt.
    fn written(&self, ops: &[Op], replies: &[OpReply]) -> bool {
        ops.iter().zip(replies).any(|(op, reply)| match (op, reply) {
            (Op::Put { key, .. }, _) => *key == self.receipt.key,
            (Op::Txn(inner), OpReply::Txn { succeeded, replies }) => {
                self.written(if *succeeded { &inner.success } else { &inner.failure }, replies)
            }
            _ => false,
        })
    }

    /// What the guarded transaction was answered, or what its receipt was where that was not as expected.
    pub fn answer(&mut self, guarded: &Guarded, reply: TxnReply) -> Result<TxnReply, Found> {
        let TxnReply { revision, succeeded, mut replies } = reply;
        let ops = if succeeded { &guarded.txn.success } else { &guarded.txn.failure };
        let written = self.written(ops, &replies);
        if !succeeded {
            let found = guarded.found.take(&mut replies).kvs.into_iter().next();
            if found.as_ref().map_or(0, |kv| kv.version) != self.receipt.version {
                return Err(self.look_at(found.as_ref()));
            }
            let otherwise = guarded.otherwise.as_ref();
            replies = otherwise.map_or_else(Vec::new, |slot| slot.take(&mut replies).replies);
        }
        self.receipt.version += i64::from(written);
        Ok(TxnReply { revision, succeeded, replies })
    }

    /// Takes over what the receipt is.
    pub fn look_at(&mut self, found: Option<&KeyValue>) -> Found {
        let before = self.receipt.version;
        self.receipt.version = found.map_or(0, |kv| kv.version);
        match found {
            Some(kv) if kv.version != before + 1 => Found::Gone,
            Some(kv) if kv.value == self.mark(true) => Found::Wrote(kv.mod_revision),
            Some(_) => Found::NotApplied,
            None => Found::Gone,
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let receipt = std::mem::take(&mut self.receipt);
        self.receipts.free().push(receipt);
    }
}
