//! Reading from an etcd that is full.
//!
//! Until 3.5.6 a member whose database has passed its quota refuses every transaction, those that only
//! read too (etcd pull requests 13435 and 14884); a range is always answered.

use tokio::time::Instant;

use super::client::Client;
use super::error::EtcdError;
use super::kv::{Op, OpReply, Range, Txn, TxnReply};

/// The ranges of a transaction that does nothing else, whatever it compares; otherwise `None`.
pub(super) fn ranges(txn: &Txn) -> Option<Vec<&Range>> {
    if !txn.compares.is_empty() {
        return None;
    }
    txn.success
        .iter()
        .map(|op| match op {
            Op::Get(range) => Some(range),
            _ => None,
        })
        .collect()
}

/// Reads range after range, all at the revision of the first.
pub(super) async fn read_apart(
    client: &Client,
    ranges: &[&Range],
    deadline: Instant,
) -> Result<TxnReply, EtcdError> {
    'anew: loop {
        let mut reply = TxnReply { succeeded: true, ..TxnReply::default() };
        for &range in ranges {
            let revision = if range.revision == 0 { reply.revision } else { range.revision };
            let (read_at, answer) =
                match client.range(&Range { revision, ..range.clone() }, deadline).await {
                    // Since the first was read, which asked for what there is now.
                    Err(EtcdError::Compacted { .. }) if range.revision == 0 => continue 'anew,
                    other => other?,
                };
            if reply.revision == 0 {
                reply.revision = read_at;
            }
            reply.replies.push(OpReply::Get(answer));
        }
        return Ok(reply);
    }
}
