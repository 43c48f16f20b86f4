//! What is asked of a cluster: one function for each request, with what an answer to it says of etcd's history.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use etcd_client::{LeaseGrantOptions, ResponseHeader};
use tokio::time::Instant;

use super::call::{Repeat, call};
use super::cluster::Cluster;
use super::convert;
use super::error::{EtcdError, Refusal};
use super::kv::{Range, RangeReply, Txn, TxnReply};
use super::metrics::Rpc;
use super::transport::Connection;
use super::unique::nth_lease_id;

/// How long after its deadline an answer that nobody waits for may still come.
const GRACE: Duration = Duration::from_secs(30);

pub async fn txn(
    cluster: &Cluster,
    txn: &Txn,
    repeat: Repeat,
    deadline: Instant,
) -> Result<TxnReply, EtcdError> {
    let reads = txn.is_read_only();
    let repeat = if reads { Repeat::Read } else { repeat };
    call(cluster, Rpc::Txn, repeat, deadline, |connection| async move {
        // One without operations is answered by the member alone, which may be behind the others.
        let empty = txn.success.is_empty() && txn.failure.is_empty();
        let known = cluster.history().known();
        let known = if empty { known.at_any_revision() } else { known };
        let (mut kv, request) = (connection.kv(), convert::txn(txn));
        let response = if reads {
            to_its_end(deadline + GRACE, async move { kv.txn(request).await }).await?
        } else {
            kv.txn(request).await?
        };
        cluster.history().answered(response.header(), known);
        Ok(convert::txn_reply(response))
    })
    .await
}

/// Runs a request that goes on until it is answered, or until then, also when its caller stops waiting. An etcd without
/// pull request 14178, such as 3.5.1, panics when a transaction that only reads is cancelled ("unexpected error during
/// txn"): by a signal handler, by asyncio, by a deadline or by `close`.
async fn to_its_end<T: Send + 'static>(
    until: Instant,
    request: impl Future<Output = T> + Send + 'static,
) -> T {
    match tokio::spawn(tokio::time::timeout_at(until, request)).await {
        Ok(Ok(answer)) => answer,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The deadline of the call, or the end of the runtime, ends the caller.
        Ok(Err(_)) | Err(_) => std::future::pending().await,
    }
}

/// Deletes a key, or all up to an end. Answers with the revision and with how many there were.
pub async fn delete(
    cluster: &Cluster,
    key: &[u8],
    range_end: Option<&[u8]>,
    repeat: Repeat,
    deadline: Instant,
) -> Result<(i64, i64), EtcdError> {
    call(cluster, Rpc::DeleteRange, repeat, deadline, |connection| async move {
        let known = cluster.history().known();
        let options = convert::delete_options(range_end);
        let response = connection.kv().delete(key, Some(options)).await?;
        cluster.history().answered(response.header(), known);
        Ok((response.header().map_or(0, ResponseHeader::revision), response.deleted()))
    })
    .await
}

/// Answers with the revision the range was read at.
pub async fn range(
    cluster: &Cluster,
    range: &Range,
    deadline: Instant,
) -> Result<(i64, RangeReply), EtcdError> {
    call(cluster, Rpc::Range, Repeat::Read, deadline, |connection| async move {
        let options = convert::range_options(range);
        let known = cluster.history().known();
        let response = connection.kv().get(range.key.clone(), Some(options)).await?;
        cluster.history().answered(response.header(), known);
        let revision = response.header().map_or(0, ResponseHeader::revision);
        Ok((revision, convert::range_reply(response)))
    })
    .await
}

/// Grants a lease of the caller's own. Each attempt has an id of its own, see [`nth_lease_id`]. Answers with
/// the id and the TTL. What an attempt whose answer was lost has granted holds no key, and runs out.
pub async fn grant_new(
    cluster: &Cluster,
    first: i64,
    ttl: Duration,
    deadline: Instant,
) -> Result<(i64, Duration), EtcdError> {
    let attempts = AtomicU32::new(0);
    let granted = call(cluster, Rpc::LeaseGrant, Repeat::Safely, deadline, |connection| {
        let attempt = attempts.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let id = nth_lease_id(first, attempt);
        async move {
            let granted = ask_for_lease(&connection, id, ttl).await?;
            Ok((id, granted))
        }
    });
    granted.await
}

/// Grants a lease that others may have been granted as well, under an id that all know.
/// A lease that exists already under this id counts as granted. Answers with the TTL that it has.
pub async fn grant(
    cluster: &Cluster,
    id: i64,
    ttl: Duration,
    deadline: Instant,
) -> Result<Duration, EtcdError> {
    let granted =
        call(cluster, Rpc::LeaseGrant, Repeat::Safely, deadline, |connection| async move {
            ask_for_lease(&connection, id, ttl).await
        });
    match granted.await {
        Err(EtcdError::Refused { kind: Refusal::LeaseExists, .. }) => {
            let known = time_to_live(cluster, id, deadline).await?;
            // It may have run out between the two: then the first use of it says so.
            Ok(known.map_or(ttl, |(_, granted)| granted))
        }
        other => other,
    }
}

/// Asks for a lease once, for whole seconds and at least one. Answers with the TTL that etcd grants.
async fn ask_for_lease(
    connection: &Connection,
    id: i64,
    ttl: Duration,
) -> Result<Duration, etcd_client::Error> {
    let ttl_s = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX).max(1);
    let options = LeaseGrantOptions::new().with_id(id);
    let granted = connection.lease().grant(ttl_s, Some(options)).await?.ttl();
    Ok(Duration::from_secs(u64::try_from(granted).unwrap_or(0)))
}

/// A missing lease counts as revoked.
pub async fn revoke(cluster: &Cluster, id: i64, deadline: Instant) -> Result<(), EtcdError> {
    let revoked =
        call(cluster, Rpc::LeaseRevoke, Repeat::Safely, deadline, |connection| async move {
            connection.lease().revoke(id).await.map(drop)
        });
    match revoked.await {
        Err(EtcdError::Refused { kind: Refusal::LeaseNotFound, .. }) => Ok(()),
        other => other,
    }
}

/// The remaining and the granted time of a lease; `None` when etcd does not have it.
pub async fn time_to_live(
    cluster: &Cluster,
    id: i64,
    deadline: Instant,
) -> Result<Option<(Duration, Duration)>, EtcdError> {
    let told =
        call(cluster, Rpc::LeaseTimeToLive, Repeat::Read, deadline, |connection| async move {
            let response = connection.lease().time_to_live(id, None).await?;
            Ok((response.ttl(), response.granted_ttl()))
        });
    let (ttl, granted) = told.await?;
    let Ok(ttl_s) = u64::try_from(ttl) else { return Ok(None) };
    let granted = Duration::from_secs(u64::try_from(granted).unwrap_or(0));
    Ok(Some((Duration::from_secs(ttl_s), granted)))
}

/// Renews a lease once; `false` when it is gone.
pub async fn renew_once(cluster: &Cluster, id: i64, deadline: Instant) -> Result<bool, EtcdError> {
    call(cluster, Rpc::LeaseKeepAlive, Repeat::Safely, deadline, |connection| async move {
        match connection.lease().keep_alive(id).await {
            Err(error) if convert::is_lease_gone(&error) => Ok(false),
            Err(error) => Err(error),
            Ok(_) => Ok(true),
        }
    })
    .await
}
