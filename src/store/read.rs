//! Reading keys and, where they are counters, their companions.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::chunks::{MAX_OPS, chunks};
use super::core::Store;
use super::error::{StoreError, display};
use super::value::{Cell, CellSlot, Content, decode};
use crate::etcd::kv::{Range, Txn};
use crate::etcd::{Branch, EtcdError, Repeat};

/// Keys of one page of a listing.
const PAGE: i64 = if cfg!(test) { 2 } else { 5000 };

/// Values are read so many at first; then as many as their mean size lets an answer of this size hold.
const FIRST_CHUNK: usize = 16;
const ANSWER: usize = 16 << 20;

/// What keys held at one revision, by etcd key. Keys that do not exist are left out.
pub(super) struct Contents {
    pub revision: i64,
    pub found: BTreeMap<Vec<u8>, Content>,
}

impl Store {
    /// Adds "get the key, get its companions" to a branch.
    pub(super) fn read_cell(&self, branch: &mut Branch, key: &[u8], revision: i64) -> CellSlot {
        let own = Range { revision, ..Range::key(self.keys.key(key)) };
        let companions = Range { revision, ..Range::prefix(self.keys.companions(key)) };
        CellSlot::new(branch, own, companions)
    }

    /// What a key and its counter are at `revision`; 0 for now.
    pub(super) async fn cell(
        &self,
        key: &[u8],
        revision: i64,
        deadline: Instant,
    ) -> Result<Option<Cell>, StoreError> {
        let mut gets = Branch::default();
        let slot = self.read_cell(&mut gets, key, revision);
        let txn = Txn::when([]).then(gets);
        let mut reply = self.client.txn(&txn, Repeat::Safely, deadline).await?;
        slot.take(key, &mut reply.replies)
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
        let (mut rest, mut count) = (keys.as_slice(), FIRST_CHUNK);
        while let Some(chunk) = chunks(rest, count, |key| key.len()).next() {
            rest = &rest[chunk.len()..];
            let mut size = 0;
            let revision = contents.revision;
            let mut gets = Branch::default();
            let slots = chunk
                .iter()
                .map(|key| gets.get(Range { revision, ..Range::key((*key).clone()) }))
                .collect::<Vec<_>>();
            let txn = Txn::when([]).then(gets);
            let mut reply = match self.client.txn(&txn, Repeat::Safely, deadline).await {
                // Compacted since the first chunk was read: the rest is read as it is now.
                Err(EtcdError::Compacted { .. }) => {
                    return Box::pin(self.contents(wanted, deadline)).await;
                }
                other => other?,
            };
            if contents.revision == 0 {
                contents.revision = reply.revision;
            }
            for slot in slots {
                for kv in slot.take(&mut reply.replies).kvs {
                    let key = wanted.get(&kv.key).copied().unwrap_or_default();
                    size += kv.value.len();
                    let content = decode(key, &kv.value)?;
                    contents.found.insert(kv.key, content);
                }
            }
            count = (ANSWER * chunk.len() / size.max(1)).clamp(1, MAX_OPS);
        }
        Ok(contents)
    }

    /// All etcd keys of ranges at one revision, without values. Answers with the revision.
    pub(super) async fn list(
        &self,
        ranges: &[Range],
        deadline: Instant,
    ) -> Result<(i64, Vec<Vec<u8>>), StoreError> {
        loop {
            let (mut revision, mut keys) = (0, Vec::new());
            match self.list_at(ranges, &mut revision, &mut keys, deadline).await {
                // Compacted since the first page was read: all is read as it is now.
                Err(EtcdError::Compacted { .. }) => {}
                other => return Ok(other.map(|()| (revision, keys))?),
            }
        }
    }

    async fn list_at(
        &self,
        ranges: &[Range],
        revision: &mut i64,
        keys: &mut Vec<Vec<u8>>,
        deadline: Instant,
    ) -> Result<(), EtcdError> {
        for range in ranges {
            self.list_one(range, revision, keys, deadline).await?;
        }
        Ok(())
    }

    async fn list_one(
        &self,
        range: &Range,
        revision: &mut i64,
        keys: &mut Vec<Vec<u8>>,
        deadline: Instant,
    ) -> Result<(), EtcdError> {
        let mut start = range.key.clone();
        loop {
            let page = Range {
                key: std::mem::take(&mut start),
                revision: *revision,
                limit: PAGE,
                keys_only: true,
                ..range.clone()
            };
            let (read_at, reply) = self.client.range(&page, deadline).await?;
            if *revision == 0 {
                *revision = read_at;
            }
            keys.extend(reply.kvs.into_iter().map(|kv| kv.key));
            match keys.last() {
                Some(last) if reply.more => {
                    start.clone_from(last);
                    start.push(0);
                }
                _ => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::etcd::test_server::{Server, binary};

    #[test]
    fn a_listing_begins_anew_where_its_revision_is_compacted() {
        let Some(binary) = binary() else { return };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("one").block_on(async {
            let server = Server::start(&binary).await;
            let store = Store::new(server.client(), b"/p", 0, None);
            let deadline = Instant::now() + Duration::from_secs(60);
            let keys: Vec<_> = (0..100).map(|number: u8| vec![number]).collect();
            store.multi_set(&keys, &keys, deadline).await.expect("written");
            let endpoint = format!("http://{}", server.endpoint);
            let mut raw = etcd_client::Client::connect([endpoint], None).await.expect("connected");
            let compact = async {
                for _ in 0..30 {
                    let put = raw.put("another", "", None).await.expect("written");
                    let revision = put.header().map_or(0, etcd_client::ResponseHeader::revision);
                    raw.compact(revision, None).await.expect("compacted");
                }
            };
            let (listed, ()) = tokio::join!(store.list_keys(deadline), compact);
            let mut listed = listed.expect("listed");
            listed.sort_unstable();
            assert_eq!(listed, keys);
        });
    }
}
