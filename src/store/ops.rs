//! Operations that do not wait.

use std::collections::HashMap;

use tokio::time::Instant;

use super::chunks::{MAX_BYTES, MAX_OPS, OP_OVERHEAD, chunks};
use super::core::Store;
use super::error::{StoreError, display};
use super::value::{Cell, encode};
use crate::etcd::kv::{Compare, Op, Ordering, Target, Txn};
use crate::etcd::{Branch, Nested, OnceOutcome, Repeat};

impl Store {
    pub(super) async fn set(
        &self,
        key: &[u8],
        value: &[u8],
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let put = self.put(key, value)?;
        self.write("set", key, &Txn::when([]).then([put]), deadline).await.map(drop)
    }

    /// Sets all keys, within etcd's limits at once, otherwise in several steps. Of a key that is named twice the
    /// last value counts.
    pub(super) async fn multi_set(
        &self,
        keys: &[Vec<u8>],
        values: &[Vec<u8>],
        deadline: Instant,
    ) -> Result<(), StoreError> {
        if keys.len() != values.len() {
            return Err(StoreError::UnevenLists { keys: keys.len(), values: values.len() });
        }
        let last: HashMap<_, _> = keys.iter().zip(values).collect();
        let puts = last.into_iter().map(|(key, value)| Ok((key, self.put(key, value)?)));
        let puts = puts.collect::<Result<Vec<_>, StoreError>>()?;
        for chunk in chunks(&puts, MAX_OPS, |(_, put)| put_size(put)) {
            let ops = chunk.iter().map(|(_, put)| put.clone()).collect::<Vec<_>>();
            let named = chunk.first().map_or(&[][..], |(key, _)| key.as_slice());
            self.write("multi_set", named, &Txn::when([]).then(ops), deadline).await?;
        }
        Ok(())
    }

    /// Whether the key was there.
    pub(super) async fn delete_key(
        &self,
        key: &[u8],
        deadline: Instant,
    ) -> Result<bool, StoreError> {
        let own = self.keys.key(key);
        // The companions first, where this is done in two steps: without its key they would be added to the next
        // counter of that name.
        let deletes = [Op::delete_prefix(self.keys.companions(key)), Op::delete(own.clone())];
        let txn = Txn::when([Compare::exists(own)]).then(deletes.clone());
        match self.write("delete_key", key, &txn, deadline).await {
            Ok(OnceOutcome::Answered(reply)) => Ok(reply.succeeded),
            Ok(OnceOutcome::AppliedAt(_)) => Ok(true),
            Err(error) if error.is_no_space() => {
                Ok(self.delete_when_full("delete_key", key, deletes, deadline).await? > 0)
            }
            Err(error) => Err(error),
        }
    }

    pub(super) async fn num_keys(&self, deadline: Instant) -> Result<i64, StoreError> {
        let mut counts = Branch::default();
        let slots = self.keys.all().map(|range| counts.get(range.count_only()));
        let txn = Txn::when([]).then(counts);
        let mut reply = self.client.txn(&txn, Repeat::Safely, deadline).await?;
        Ok(slots.iter().map(|slot| slot.take(&mut reply.replies).count).sum())
    }

    /// All keys at one revision, in no order that means anything.
    pub(super) async fn list_keys(&self, deadline: Instant) -> Result<Vec<Vec<u8>>, StoreError> {
        let (_, keys) = self.list(&self.keys.all(), deadline).await?;
        Ok(keys.iter().filter_map(|key| self.keys.decode(key)).collect())
    }

    /// Sets the key to `desired` if it has the value `expected`, or if it does not exist and
    /// `expected` is empty. Answers with the value it has then; with `expected` if it does not exist.
    pub(super) async fn compare_set(
        &self,
        key: &[u8],
        expected: &[u8],
        desired: &[u8],
        deadline: Instant,
    ) -> Result<Vec<u8>, StoreError> {
        let put = self.put(key, desired)?;
        let operand = encode(expected);
        if operand.len() + put_size(&put) > MAX_BYTES {
            return self.compare_set_here(key, expected, desired, &put, deadline).await;
        }
        let own = self.keys.key(key);
        let mut differs = Branch::default();
        let slot = self.read_cell(&mut differs, key, 0);
        let created = expected.is_empty().then(|| {
            let create = Txn::when([Compare::absent(own.clone())]).then([put.clone()]);
            let read = std::mem::take(&mut differs);
            differs.txn(create.or_else(read))
        });
        let equal = Compare::new(own, Ordering::Equal, Target::Value(operand));
        let swap = Txn::when([equal]).then([put.clone()]).or_else(differs);
        loop {
            let found = match self.write("compare_set", key, &swap, deadline).await? {
                OnceOutcome::Answered(mut reply) if !reply.succeeded => match &created {
                    Some(created) => match created.take(&mut reply.replies) {
                        Nested { succeeded: true, .. } => return Ok(desired.to_vec()),
                        Nested { mut replies, .. } => slot.take(key, &mut replies)?,
                    },
                    None => slot.take(key, &mut reply.replies)?,
                },
                OnceOutcome::Answered(_) | OnceOutcome::AppliedAt(_) => {
                    return Ok(desired.to_vec());
                }
            };
            let Some(cell) = found else { return Ok(expected.to_vec()) };
            if *cell.value() != *expected {
                return Ok(cell.into_value());
            }
            // A counter of that value, which the comparison in etcd could not see.
            if self.replace_if_unchanged("compare_set", key, &cell, put.clone(), deadline).await? {
                return Ok(desired.to_vec());
            }
        }
    }

    /// [`Store::compare_set`] where both values do not fit into one request: compared here.
    async fn compare_set_here(
        &self,
        key: &[u8],
        expected: &[u8],
        desired: &[u8],
        put: &Op,
        deadline: Instant,
    ) -> Result<Vec<u8>, StoreError> {
        loop {
            // Too large to be empty, so that an absent key is left alone.
            let Some(cell) = self.cell(key, 0, deadline).await? else {
                return Ok(expected.to_vec());
            };
            if *cell.value() != *expected {
                return Ok(cell.into_value());
            }
            if self.replace_if_unchanged("compare_set", key, &cell, put.clone(), deadline).await? {
                return Ok(desired.to_vec());
            }
        }
    }

    /// Appends to the value, which is empty when the key does not exist.
    pub(super) async fn append(
        &self,
        key: &[u8],
        suffix: &[u8],
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let mut exists = Branch::default();
        let slot = self.read_cell(&mut exists, key, 0);
        let create = Txn::when([Compare::absent(self.keys.key(key))])
            .then([self.put(key, suffix)?])
            .or_else(exists);
        loop {
            let found = match self.write("append", key, &create, deadline).await? {
                OnceOutcome::Answered(mut reply) if !reply.succeeded => {
                    slot.take(key, &mut reply.replies)?
                }
                OnceOutcome::Answered(_) | OnceOutcome::AppliedAt(_) => return Ok(()),
            };
            let mut current = found;
            while let Some(cell) = current {
                let put = self.put(key, &[&*cell.value(), suffix].concat())?;
                if self.replace_if_unchanged("append", key, &cell, put, deadline).await? {
                    return Ok(());
                }
                current = self.cell(key, 0, deadline).await?;
            }
        }
    }

    /// Whether the put was made, which it is while the key and its counter are as `cell` says.
    async fn replace_if_unchanged(
        &self,
        operation: &'static str,
        key: &[u8],
        cell: &Cell,
        put: Op,
        deadline: Instant,
    ) -> Result<bool, StoreError> {
        let txn = Txn::when(self.unchanged(key, cell)).then([put]);
        match self.write(operation, key, &txn, deadline).await? {
            OnceOutcome::Answered(reply) => Ok(reply.succeeded),
            OnceOutcome::AppliedAt(_) => Ok(true),
        }
    }

    /// The put that makes a key a literal; refuses what etcd would refuse.
    pub(super) fn put(&self, key: &[u8], value: &[u8]) -> Result<Op, StoreError> {
        self.sized_put(key, self.keys.key(key), value)
    }

    /// As [`Store::put`], to an etcd key that belongs to the store's `key`.
    pub(super) fn sized_put(
        &self,
        key: &[u8],
        etcd_key: Vec<u8>,
        value: &[u8],
    ) -> Result<Op, StoreError> {
        let limit = MAX_BYTES.saturating_sub(etcd_key.len() + OP_OVERHEAD) / 4 * 3;
        if value.len() > limit {
            return Err(StoreError::TooLarge { key: display(key), size: value.len(), limit });
        }
        Ok(Op::put(etcd_key, encode(value), self.lease))
    }
}

fn put_size(put: &Op) -> usize {
    match put {
        Op::Put { key, value, .. } => key.len() + value.len(),
        _ => 0,
    }
}
