//! Reading from an etcd that is full, and making room in it.
//!
//! Until 3.5.6 a member whose database has passed its quota refuses every transaction, those that only
//! read or delete too (etcd pull requests 13435 and 14884); a range is always answered, and a deletion that is a
//! request of its own always done.

use tokio::time::Instant;

use super::call::Repeat;
use super::cluster::Cluster;
use super::error::EtcdError;
use super::kv::{Op, OpReply, Range, Txn, TxnReply};
use super::requests;

/// Runs a transaction that was refused by parts, where that does the same; otherwise `None`.
pub async fn apart(
    cluster: &Cluster,
    txn: &Txn,
    repeat: Repeat,
    deadline: Instant,
) -> Option<Result<TxnReply, EtcdError>> {
    if let Some(ranges) = ranges(txn) {
        return Some(read_apart(cluster, &ranges, deadline).await);
    }
    let deletions = deletes(txn)?;
    Some(delete_apart(cluster, &deletions, repeat, deadline).await)
}

/// The ranges of a transaction that does nothing else, whatever it compares; otherwise `None`.
fn ranges(txn: &Txn) -> Option<Vec<&Range>> {
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
async fn read_apart(
    cluster: &Cluster,
    ranges: &[&Range],
    deadline: Instant,
) -> Result<TxnReply, EtcdError> {
    'anew: loop {
        let mut reply = TxnReply { succeeded: true, ..TxnReply::default() };
        for &range in ranges {
            let revision = if range.revision == 0 { reply.revision } else { range.revision };
            let (read_at, answer) = match requests::range(
                cluster,
                &Range { revision, ..range.clone() },
                deadline,
            )
            .await
            {
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

/// The deletions of a transaction that does nothing else, whatever there is; otherwise `None`.
fn deletes(txn: &Txn) -> Option<Vec<Deletion<'_>>> {
    if !txn.compares.is_empty() {
        return None;
    }
    txn.success
        .iter()
        .map(|op| match op {
            Op::Delete { key, range_end } => Some((key.as_slice(), range_end.as_deref())),
            _ => None,
        })
        .collect()
}

/// A key, or all from it up to an end.
type Deletion<'a> = (&'a [u8], Option<&'a [u8]>);

/// Deletes range after range. Nobody puts anything in between: etcd is full.
async fn delete_apart(
    cluster: &Cluster,
    deletions: &[Deletion<'_>],
    repeat: Repeat,
    deadline: Instant,
) -> Result<TxnReply, EtcdError> {
    let mut reply = TxnReply { succeeded: true, ..TxnReply::default() };
    for &(key, range_end) in deletions {
        match requests::delete(cluster, key, range_end, repeat, deadline).await {
            Ok((revision, deleted)) => {
                reply.revision = revision;
                reply.replies.push(OpReply::Delete(deleted));
            }
            Err(error) if reply.replies.is_empty() => return Err(error),
            Err(error) => return Err(EtcdError::Ambiguous { causes: error.to_string() }),
        }
    }
    Ok(reply)
}
