//! What etcd refuses before it looks at the data (`etcdserver/api/v3rpc/key.go`).

use std::collections::BTreeSet;

use super::refusal::refused;
use crate::etcd::kv::{Op, Txn};
use crate::etcd::{EtcdError, Refusal};

const MAX_OPS: usize = 128;

pub fn check(txn: &Txn) -> Result<(), EtcdError> {
    check_size(txn, MAX_OPS)?;
    check_overlap(&txn.success)?;
    check_overlap(&txn.failure)?;
    Ok(())
}

pub fn check_key(key: &[u8]) -> Result<(), EtcdError> {
    if key.is_empty() {
        return Err(refused(Refusal::Other, "key is not provided"));
    }
    Ok(())
}

/// A nested transaction may have what its outer one leaves of the limit.
fn check_size(txn: &Txn, limit: usize) -> Result<(), EtcdError> {
    let size = txn.compares.len().max(txn.success.len()).max(txn.failure.len());
    if size > limit {
        return Err(refused(Refusal::Other, "too many operations in txn request"));
    }
    for compare in &txn.compares {
        check_key(&compare.key)?;
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            Op::Get(range) => check_key(&range.key)?,
            Op::Put { key, .. } | Op::Delete { key, .. } => check_key(key)?,
            Op::Txn(inner) => check_size(inner, limit - size)?,
        }
    }
    Ok(())
}

type Deleted<'a> = Vec<(&'a [u8], Option<&'a [u8]>)>;

/// No key is written twice, nor written and deleted. Branches that exclude each other may write the
/// same key.
fn check_overlap(ops: &[Op]) -> Result<(BTreeSet<&[u8]>, Deleted<'_>), EtcdError> {
    let duplicate = || refused(Refusal::Other, "duplicate key given in txn request");
    let mut deleted: Deleted = Vec::new();
    for op in ops {
        if let Op::Delete { key, range_end } = op {
            deleted.push((key, range_end.as_deref().filter(|end| !end.is_empty())));
        }
    }
    // Here an end of one NUL is just a small key: such a range counts as empty.
    let hits = |deleted: &Deleted, key: &[u8]| {
        deleted.iter().any(|(from, end)| end.map_or(key == *from, |end| key >= *from && key < end))
    };
    let mut written: BTreeSet<&[u8]> = BTreeSet::new();
    for op in ops {
        let Op::Txn(inner) = op else { continue };
        let (then, then_deleted) = check_overlap(&inner.success)?;
        let (otherwise, otherwise_deleted) = check_overlap(&inner.failure)?;
        for key in &then {
            if written.contains(key) || hits(&deleted, key) {
                return Err(duplicate());
            }
        }
        written.extend(&then);
        for key in &otherwise {
            let twice = written.contains(key) && !then.contains(key);
            if twice || hits(&deleted, key) {
                return Err(duplicate());
            }
        }
        written.extend(&otherwise);
        deleted.extend(then_deleted);
        deleted.extend(otherwise_deleted);
    }
    for op in ops {
        if let Op::Put { key, .. } = op
            && (hits(&deleted, key) || !written.insert(key))
        {
            return Err(duplicate());
        }
    }
    Ok((written, deleted))
}
