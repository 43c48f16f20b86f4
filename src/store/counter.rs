//! `add` without a compare-and-swap loop.
//!
//! A counter's key holds a base, and each addition of `n` is a put to the companion key of `n`: etcd
//! counts those puts itself, as the companion's `version`. The counter's value is the base and the sum of
//! every `n` times its version. So concurrent additions never conflict, and what an addition's
//! transaction reads back is the value right after it.
//!
//! A `set` makes the key a literal and leaves the companions as they are; the next `add` subtracts
//! them from the base. While the key is a literal nobody writes companions, so that is safe under a guard
//! on the key's own revision.

use tokio::time::Instant;

use super::core::Store;
use super::error::{StoreError, display};
use super::value::{COUNTERS, Cell, CellSlot, Content, encode_base, leading_integer};
use crate::etcd::kv::{Compare, Op, Ordering, Target, Txn, prefix_end};
use crate::etcd::{Branch, Nested, OnceOutcome, Slot};

/// A counter with more companions than this (so many different `n` were added) is folded into its base.
const FOLD_ABOVE: usize = 32;

/// A transaction that adds to a counter, makes one, or reads what else there is.
struct Addition {
    txn: Txn,
    /// The counter that was added to.
    counter: CellSlot,
    /// What is done where there is no counter: one is made, where the key does not exist.
    otherwise: Slot<Nested>,
    /// Within that, the key that exists.
    literal: CellSlot,
}

impl Store {
    /// Adds `n` to a counter that is 0 when it does not exist, and answers with its value then.
    pub(super) async fn add(
        &self,
        key: &[u8],
        n: i64,
        deadline: Instant,
    ) -> Result<i64, StoreError> {
        if n == 0
            && let Some(value) = self.number(key, deadline).await?
        {
            return Ok(value);
        }
        let addition = self.add_to_counter(key, n);
        loop {
            let cell = match self.write("add", key, &addition.txn, deadline).await? {
                OnceOutcome::Answered(mut reply) if reply.succeeded => {
                    addition.counter.take(key, &mut reply.replies)?
                }
                OnceOutcome::Answered(mut reply) => {
                    let Nested { succeeded, mut replies } =
                        addition.otherwise.take(&mut reply.replies);
                    if succeeded {
                        return Ok(n);
                    }
                    addition.literal.take(key, &mut replies)?
                }
                // Right after it: a counter was added to or made, a literal left as it was.
                OnceOutcome::AppliedAt(revision) => {
                    self.cell_of_write("add", key, revision, deadline).await?
                }
            };
            let cell = cell.ok_or_else(|| StoreError::Foreign { key: display(key) })?;
            let value = match cell.content {
                Content::Counter(base) => base.wrapping_add(cell.added),
                Content::Literal(_) => match self.convert(key, n, &cell, deadline).await? {
                    Some(converted) => converted,
                    None => continue,
                },
            };
            if cell.companions > FOLD_ABOVE {
                // The addition is done: housekeeping must not make it fail.
                let _ = self.fold(key, deadline).await;
            }
            return Ok(value);
        }
    }

    /// What the key holds where an addition of 0 would leave it as it is: a counter, or a text that one would
    /// print.
    async fn number(&self, key: &[u8], deadline: Instant) -> Result<Option<i64>, StoreError> {
        let Some(cell) = self.cell(key, 0, deadline).await? else { return Ok(None) };
        let value = cell.value();
        let number = leading_integer(&value);
        Ok(number.filter(|number| number.to_string().as_bytes() == &*value))
    }

    fn add_to_counter(&self, key: &[u8], n: i64) -> Addition {
        let own = self.keys.key(key);
        let count = Op::put(self.keys.companion(key, n), "", self.lease);
        let compare = |ordering, limit: &[u8]| {
            Compare::new(own.clone(), ordering, Target::Value(limit.to_vec()))
        };
        let mut exists = Branch::default();
        let literal = self.read_cell(&mut exists, key, 0);
        let create = Txn::when([Compare::absent(own.clone())])
            .then([Op::put(own.clone(), encode_base(0), self.lease), count.clone()])
            .or_else(exists);
        let mut added = Branch::default();
        added.add(count);
        let counter = self.read_cell(&mut added, key, 0);
        let mut none = Branch::default();
        let otherwise = none.txn(create);
        let is_counter =
            [compare(Ordering::Greater, COUNTERS.0), compare(Ordering::Less, COUNTERS.1)];
        let txn = Txn::when(is_counter).then(added).or_else(none);
        Addition { txn, counter, otherwise, literal }
    }

    /// Makes a literal a counter and adds `n`; `None` when the key was changed meanwhile.
    async fn convert(
        &self,
        key: &[u8],
        n: i64,
        cell: &Cell,
        deadline: Instant,
    ) -> Result<Option<i64>, StoreError> {
        let text = cell.value();
        let number = leading_integer(&text)
            .ok_or_else(|| StoreError::NotAnInteger { key: display(key), value: display(&text) })?;
        let base = number.wrapping_sub(cell.added);
        let own = self.keys.key(key);
        let txn = Txn::when([Compare::mod_revision(own.clone(), cell.mod_revision)]).then([
            Op::put(own, encode_base(base), self.lease),
            Op::put(self.keys.companion(key, n), "", self.lease),
        ]);
        let converted = match self.write("add", key, &txn, deadline).await? {
            OnceOutcome::Answered(reply) => reply.succeeded,
            OnceOutcome::AppliedAt(_) => true,
        };
        Ok(converted.then(|| number.wrapping_add(n)))
    }

    /// Guards that hold while nobody writes the key, its counter included.
    pub(super) fn unchanged(&self, key: &[u8], cell: &Cell) -> Vec<Compare> {
        let mut guards = vec![Compare::mod_revision(self.keys.key(key), cell.mod_revision)];
        if matches!(cell.content, Content::Counter(_)) {
            // Companions are only deleted together with a write of the key.
            let companions = self.keys.companions(key);
            let since = Target::ModRevision(cell.added_revision + 1);
            guards.push(Compare {
                range_end: Some(prefix_end(&companions)),
                ..Compare::new(companions, Ordering::Less, since)
            });
        }
        guards
    }

    /// Moves what the companions sum to into the base, unless somebody adds at the same time.
    async fn fold(&self, key: &[u8], deadline: Instant) -> Result<(), StoreError> {
        let Some(cell) = self.cell(key, 0, deadline).await? else { return Ok(()) };
        let Content::Counter(base) = cell.content else { return Ok(()) };
        let txn = Txn::when(self.unchanged(key, &cell)).then([
            Op::put(self.keys.key(key), encode_base(base.wrapping_add(cell.added)), self.lease),
            Op::delete_prefix(self.keys.companions(key)),
        ]);
        self.write("add", key, &txn, deadline).await.map(drop)
    }
}
