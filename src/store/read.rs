//! Reading keys and, where they are counters, their companions.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::chunks::{MAX_OPS, chunks};
use super::error::{StoreError, display};
use super::handle::Store;
use super::value::{Cell, Content, decode};
use crate::etcd::kv::{Op, Range, Txn, range_of};
use crate::etcd::{EtcdError, Repeat};

/// Keys of one page of a listing.
const PAGE: i64 = 5000;

/// What keys held at one revision, by etcd key. Keys that do not exist are left out.
pub(super) struct Contents {
    pub revision: i64,
    pub found: BTreeMap<Vec<u8>, Content>,
}

impl Store {
    /// "Get the key, get its companions": [`Cell::from_replies`] reads the answer.
    pub(super) fn cell_ops(&self, key: &[u8], revision: i64) -> [Op; 2] {
        let companions = Range { revision, ..Range::prefix(self.keys.companions(key)) };
        let own = Range { revision, ..Range::key(self.keys.key(key)) };
        [Op::Get(own), Op::Get(companions)]
    }

    /// What a key and its counter are at `revision`; 0 for now.
    pub(super) async fn cell(
        &self,
        key: &[u8],
        revision: i64,
        deadline: Instant,
    ) -> Result<Option<Cell>, StoreError> {
        let txn = Txn::when([]).then(self.cell_ops(key, revision));
        let reply = self.client.txn(&txn, Repeat::Safely, deadline).await?;
        Cell::from_replies(key, &reply.replies, 0)
    }

    /// As [`Store::cell`], at a revision where a write whose answer was lost took effect.
    pub(super) async fn cell_of_write(
        &self,
        operation: &'static str,
        key: &[u8],
        revision: i64,
        deadline: Instant,
    ) -> Result<Option<Cell>, StoreError> {
        match self.cell(key, revision, deadline).await {
            // It took effect, but what it saw and so what it answered is gone.
            Err(StoreError::Etcd(cause @ EtcdError::Compacted { .. })) => {
                Err(StoreError::OutcomeUnknown { operation, key: display(key), cause })
            }
            other => other,
        }
    }

    /// The contents of etcd keys (each with the store's key) at one revision.
    pub(super) async fn contents(
        &self,
        wanted: &BTreeMap<Vec<u8>, &[u8]>,
        deadline: Instant,
    ) -> Result<Contents, StoreError> {
        let keys: Vec<&Vec<u8>> = wanted.keys().collect();
        let mut contents = Contents { revision: 0, found: BTreeMap::new() };
        for chunk in chunks(&keys, MAX_OPS, |key| key.len()) {
            let revision = contents.revision;
            let gets =
                chunk.iter().map(|key| Op::Get(Range { revision, ..Range::key((*key).clone()) }));
            let txn = Txn::when([]).then(gets.collect::<Vec<_>>());
            let reply = match self.client.txn(&txn, Repeat::Safely, deadline).await {
                // Compacted since the first chunk was read: the rest is read as it is now.
                Err(EtcdError::Compacted { .. }) => {
                    return Box::pin(self.contents(wanted, deadline)).await;
                }
                other => other?,
            };
            if contents.revision == 0 {
                contents.revision = reply.revision;
            }
            for index in 0..chunk.len() {
                for kv in range_of(&reply.replies, index).kvs {
                    let key = wanted.get(&kv.key).copied().unwrap_or_default();
                    let content = decode(key, &kv.value)?;
                    contents.found.insert(kv.key, content);
                }
            }
        }
        Ok(contents)
    }

    /// All etcd keys of a range at one revision, without values; 0 for now. Answers with the revision.
    pub(super) async fn list(
        &self,
        range: &Range,
        mut revision: i64,
        deadline: Instant,
    ) -> Result<(i64, Vec<Vec<u8>>), StoreError> {
        let mut keys = Vec::new();
        let mut start = range.key.clone();
        loop {
            let page = Range {
                key: std::mem::take(&mut start),
                revision,
                limit: PAGE,
                keys_only: true,
                ..range.clone()
            };
            let (read_at, reply) = self.client.range(&page, deadline).await?;
            if revision == 0 {
                revision = read_at;
            }
            keys.extend(reply.kvs.into_iter().map(|kv| kv.key));
            match keys.last() {
                Some(last) if reply.more => {
                    start.clone_from(last);
                    start.push(0);
                }
                _ => return Ok((revision, keys)),
            }
        }
    }
}
