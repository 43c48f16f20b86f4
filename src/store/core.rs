//! The store itself: a client, a prefix, and the exactly-once writer.

use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::error::{StoreError, display};
use super::keys::Keys;
use crate::etcd::kv::{Op, Txn};
use crate::etcd::{
    Client, EtcdError, KeepAlive, LeaseState, OnceOutcome, OnceTxns, Refusal, Repeat,
    unique_lease_id,
};

/// How long receipts outlive a process that died.
const RECEIPT_TTL: Duration = Duration::from_secs(3600);

/// A c10d store. It belongs to one process: a forked child makes its own.
pub struct Store {
    pub(super) client: Client,
    pub(super) keys: Keys,
    /// What the store's data lives under; 0 for no lease.
    pub(super) lease: i64,
    txns: OnceTxns,
    receipts: ReceiptLease,
    pub(super) abort: Option<watch::Receiver<Option<String>>>,
}

impl Store {
    /// Does no I/O. All stores of one prefix must have the same lease, which somebody else keeps alive; with 0 the
    /// data stays for ever. Once `abort` holds a reason, each wait that can no longer succeed fails with
    /// [`StoreError::MemberLost`].
    pub fn new(
        client: Client,
        prefix: &[u8],
        lease: i64,
        abort: Option<watch::Receiver<Option<String>>>,
    ) -> Self {
        let keys = Keys::new(prefix);
        let txns = OnceTxns::new(client.clone(), &keys.receipts());
        Self { client, keys, lease, txns, receipts: ReceiptLease::default(), abort }
    }

    /// Runs a transaction that takes effect exactly once. `operation` and `key` are for the error.
    pub(super) async fn write(
        &self,
        operation: &'static str,
        key: &[u8],
        txn: &Txn,
        deadline: Instant,
    ) -> Result<OnceOutcome, StoreError> {
        let mut granted_anew = false;
        loop {
            let lease = match self.lease {
                0 => self.receipts.id(&self.client, deadline).await?,
                lease => lease,
            };
            match self.txns.run(txn, lease, deadline).await {
                Err(EtcdError::Refused { kind: Refusal::LeaseNotFound, .. }) => {
                    if self.lease != 0 || granted_anew {
                        return Err(StoreError::LeaseLost);
                    }
                    granted_anew = true;
                    self.receipts.forget(lease).await;
                }
                Err(cause @ EtcdError::Ambiguous { .. }) => {
                    return Err(StoreError::OutcomeUnknown { operation, key: display(key), cause });
                }
                other => return Ok(other?),
            }
        }
    }

    /// Deletes at an etcd that is full, which takes no receipts. Answers with how many keys there were, and where
    /// the answer is lost with that.
    pub(super) async fn delete_when_full(
        &self,
        operation: &'static str,
        key: &[u8],
        deletes: impl Into<Vec<Op>>,
        deadline: Instant,
    ) -> Result<i64, StoreError> {
        let txn = Txn::when([]).then(deletes);
        match self.client.txn(&txn, Repeat::Never, deadline).await {
            Ok(reply) => Ok(reply.deleted()),
            Err(cause @ EtcdError::Ambiguous { .. }) => {
                Err(StoreError::OutcomeUnknown { operation, key: display(key), cause })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The lease of the receipts where the data has none.
#[derive(Default)]
struct ReceiptLease {
    held: Mutex<Option<HeldLease>>,
}

struct HeldLease {
    id: i64,
    client: Client,
    runtime: tokio::runtime::Handle,
    keep_alive: KeepAlive,
}

impl ReceiptLease {
    async fn id(&self, client: &Client, deadline: Instant) -> Result<i64, EtcdError> {
        let asked = Instant::now();
        let Ok(mut held) = tokio::time::timeout_at(deadline, self.held.lock()).await else {
            // Another call is being granted one: it says what is wrong.
            return Err(EtcdError::Unreachable {
                waited: asked.elapsed(),
                causes: "another call still waits for a lease of the receipts".into(),
            });
        };
        if let Some(lease) = &*held
            && lease.keep_alive.state() == LeaseState::Alive
        {
            return Ok(lease.id);
        }
        let id = unique_lease_id();
        client.grant(id, RECEIPT_TTL, deadline).await?;
        *held = Some(HeldLease {
            id,
            client: client.clone(),
            runtime: tokio::runtime::Handle::current(),
            keep_alive: KeepAlive::start(client.clone(), id, RECEIPT_TTL, RECEIPT_TTL / 3),
        });
        Ok(id)
    }

    async fn forget(&self, id: i64) {
        let mut held = self.held.lock().await;
        if held.as_ref().is_some_and(|lease| lease.id == id) {
            *held = None;
        }
    }
}

impl Drop for HeldLease {
    /// Takes the receipts away at once where that is possible, else they go when the lease runs out.
    fn drop(&mut self) {
        let (client, id) = (self.client.clone(), self.id);
        self.runtime.spawn(async move {
            let _ = client.revoke(id, Instant::now() + Duration::from_secs(10)).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::{Config, TlsFiles, parse_endpoints};

    #[test]
    fn no_write_waits_for_the_first_one_beyond_its_own_deadline() {
        // Connections are made, and nobody answers.
        let deaf = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = deaf.local_addr().expect("an address").to_string();
        let client = Client::new(Config {
            endpoints: parse_endpoints(&endpoint, false).expect("an endpoint"),
            tls: TlsFiles::default(),
            credentials: None,
            connect_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(60),
            as_it_is: false,
            cluster: None,
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("one").block_on(async {
            let store = Store::new(client, b"/p", 0, None);
            let write = |after_s| {
                let deadline = Instant::now() + Duration::from_secs(after_s);
                store.set(b"k", b"v", deadline)
            };
            let second = async {
                tokio::task::yield_now().await;
                write(1).await
            };
            tokio::select! {
                _ = write(100) => panic!("the first one is answered"),
                ended = second => assert!(matches!(
                    ended, Err(StoreError::Etcd(EtcdError::Unreachable { .. }))
                ), "{ended:?}"),
                () = tokio::time::sleep(Duration::from_secs(50)) => panic!("it waits"),
            }
        });
    }
}
