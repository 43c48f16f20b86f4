//! Transactions, as etcd's `etcdserver/txn` runs them: the guards of all nested transactions are
//! evaluated before anything is written, then everything that could fail is checked, then it is done.

use super::lease::Leases;
use super::refusal::refused;
use super::store::Store;
use crate::etcd::kv::{Compare, KeyValue, Op, OpReply, Ordering, Target, Txn, TxnReply};
use crate::etcd::{EtcdError, Refusal};

/// Which branches are taken, of a transaction and of those nested in the branch taken.
struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

pub fn run(store: &mut Store, leases: &mut Leases, txn: &Txn) -> Result<TxnReply, EtcdError> {
    let path = choose(store, txn);
    check(store, leases, txn, &path)?;
    store.begin();
    let replies = execute(store, leases, txn, &path);
    let revision = store.commit();
    Ok(TxnReply { revision, succeeded: path.succeeded, replies })
}

/// Whether it would put anything.
pub fn puts(store: &Store, txn: &Txn) -> bool {
    puts_by(txn, &choose(store, txn))
}

fn puts_by(txn: &Txn, path: &Path) -> bool {
    let mut nested = path.nested.iter();
    branch(txn, path.succeeded).iter().any(|op| match op {
        Op::Put { .. } => true,
        Op::Txn(inner) => nested.next().is_some_and(|path| puts_by(inner, path)),
        Op::Get(_) | Op::Delete { .. } => false,
    })
}

fn branch(txn: &Txn, succeeded: bool) -> &[Op] {
    if succeeded { &txn.success } else { &txn.failure }
}

fn choose(store: &Store, txn: &Txn) -> Path {
    let succeeded = txn.compares.iter().all(|compare| holds(store, compare));
    let nested = branch(txn, succeeded).iter().filter_map(|op| match op {
        Op::Txn(inner) => Some(choose(store, inner)),
        _ => None,
    });
    Path { succeeded, nested: nested.collect() }
}

fn holds(store: &Store, compare: &Compare) -> bool {
    let kvs = store.within(&compare.key, compare.range_end.as_deref());
    if kvs.is_empty() {
        // An absent key has no value, not even an empty one; everything else of it is zero.
        let is_value = matches!(compare.target, Target::Value(_));
        return !is_value && holds_for(&KeyValue::default(), compare);
    }
    kvs.into_iter().all(|kv| holds_for(kv, compare))
}

fn holds_for(kv: &KeyValue, compare: &Compare) -> bool {
    let order = match &compare.target {
        Target::Value(value) => kv.value.cmp(value),
        Target::Version(version) => kv.version.cmp(version),
        Target::CreateRevision(revision) => kv.create_revision.cmp(revision),
        Target::ModRevision(revision) => kv.mod_revision.cmp(revision),
        Target::Lease(lease) => kv.lease.cmp(lease),
    };
    match compare.ordering {
        Ordering::Equal => order.is_eq(),
        Ordering::NotEqual => order.is_ne(),
        Ordering::Less => order.is_lt(),
        Ordering::Greater => order.is_gt(),
    }
}

fn check(store: &Store, leases: &Leases, txn: &Txn, path: &Path) -> Result<(), EtcdError> {
    let mut nested = path.nested.iter();
    for op in branch(txn, path.succeeded) {
        match op {
            Op::Get(range) => store.check_readable(range.revision)?,
            Op::Put { lease, .. } if *lease != 0 && !leases.exists(*lease) => {
                return Err(refused(Refusal::LeaseNotFound, "requested lease not found"));
            }
            Op::Put { .. } | Op::Delete { .. } => {}
            Op::Txn(inner) => {
                if let Some(path) = nested.next() {
                    check(store, leases, inner, path)?;
                }
            }
        }
    }
    Ok(())
}

fn execute(store: &mut Store, leases: &mut Leases, txn: &Txn, path: &Path) -> Vec<OpReply> {
    let mut nested = path.nested.iter();
    let mut run = |op: &Op| match op {
        Op::Get(range) => OpReply::Get(store.range(range)),
        Op::Put { key, value, lease } => {
            let old = store.put(key, value, *lease);
            leases.detach(old, key);
            leases.attach(*lease, key);
            OpReply::Put
        }
        Op::Delete { key, range_end } => {
            let gone = store.within(key, range_end.as_deref());
            let gone: Vec<_> = gone.into_iter().map(|kv| (kv.key.clone(), kv.lease)).collect();
            for (key, lease) in &gone {
                store.delete(key);
                leases.detach(*lease, key);
            }
            OpReply::Delete(i64::try_from(gone.len()).unwrap_or(i64::MAX))
        }
        Op::Txn(inner) => {
            let Some(path) = nested.next() else { return OpReply::Put };
            let replies = execute(store, leases, inner, path);
            OpReply::Txn { succeeded: path.succeeded, replies }
        }
    };
    branch(txn, path.succeeded).iter().map(&mut run).collect()
}
