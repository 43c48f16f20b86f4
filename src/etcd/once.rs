//! Transactions that take effect exactly once although answers get lost.
//!
//! Each transaction also writes a *receipt* key whose version it expects: version `n` before, `n + 1`
//! after. Sent again, it either finds the receipt at `n` (it had no effect: now it has) or at `n + 1`
//! (it had, at the receipt's revision). A late copy of the first request finds `n + 1` and does nothing.
//! etcd's own history then tells what the transaction read and left at that revision.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use super::backoff::Backoff;
use super::client::{Client, Repeat};
use super::error::EtcdError;
use super::kv::{Compare, Op, OpReply, Ordering, Target, Txn, TxnReply, range_of};
use super::unique::unique;

/// What came of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnceOutcome {
    Answered(TxnReply),
    /// It took effect at this revision, its answer was lost: read what it did from etcd's history.
    AppliedAt(i64),
}

/// The receipts of one client, one for each transaction under way at the same time.
pub struct OnceTxns {
    client: Client,
    /// Ends with this client's own random part, so that no two clients share a receipt.
    prefix: Vec<u8>,
    free: Mutex<Vec<Receipt>>,
    made: std::sync::atomic::AtomicU64,
}

struct Receipt {
    key: Vec<u8>,
    version: i64,
}

impl Receipt {
    fn guard(&self, txn: &Txn, lease: i64) -> Txn {
        let version = Target::Version(self.version);
        Txn::when([Compare::new(self.key.clone(), Ordering::Equal, version)])
            .then([Op::Txn(txn.clone()), Op::put(self.key.clone(), "", lease)])
            .or_else([Op::get(self.key.clone())])
    }
}

impl OnceTxns {
    pub fn new(client: Client, prefix: &[u8]) -> Self {
        let unique = unique();
        let mut prefix = prefix.to_vec();
        prefix.extend_from_slice(format!("{unique:032x}.").as_bytes());
        Self { client, prefix, free: Mutex::default(), made: std::sync::atomic::AtomicU64::new(0) }
    }

    /// `lease` is what the receipt is kept under; it has to outlive the call.
    pub async fn run(
        &self,
        txn: Txn,
        lease: i64,
        deadline: Instant,
    ) -> Result<OnceOutcome, EtcdError> {
        let mut receipt = self.take();
        let mut whole = receipt.guard(&txn, lease);
        let mut lost_answer = false;
        // What answers at once that it does not serve, such as a proxy, must not be asked without a pause.
        let mut backoff = Backoff::default();
        loop {
            let reply = match self.client.txn(&whole, Repeat::Never, deadline).await {
                Ok(reply) => reply,
                Err(EtcdError::Ambiguous { causes }) => {
                    if Instant::now() >= deadline {
                        // The receipt's state is unknown: it is never used again.
                        return Err(EtcdError::Ambiguous { causes });
                    }
                    lost_answer = true;
                    let pause = Instant::now() + backoff.pause();
                    tokio::time::sleep_until(deadline.min(pause)).await;
                    continue;
                }
                Err(error) => {
                    if !lost_answer {
                        self.put_back(receipt);
                        return Err(error);
                    }
                    return Err(EtcdError::Ambiguous { causes: error.to_string() });
                }
            };
            if reply.succeeded {
                receipt.version += 1;
                self.put_back(receipt);
                let revision = reply.revision;
                return match reply.replies.into_iter().next() {
                    Some(OpReply::Txn { succeeded, replies }) => {
                        Ok(OnceOutcome::Answered(TxnReply { revision, succeeded, replies }))
                    }
                    _ => Err(EtcdError::Configuration(
                        "etcd answered a nested transaction with something else".into(),
                    )),
                };
            }
            let found = range_of(&reply.replies, 0).kvs.into_iter().next();
            return match found {
                Some(kv) if lost_answer && kv.version == receipt.version + 1 => {
                    receipt.version += 1;
                    self.put_back(receipt);
                    Ok(OnceOutcome::AppliedAt(kv.mod_revision))
                }
                // Nothing was lost, so nothing took effect: the receipt's lease ran out meanwhile, or etcd was
                // restored from a backup.
                _ if !lost_answer => {
                    receipt = self.make();
                    whole = receipt.guard(&txn, lease);
                    continue;
                }
                _ => Err(EtcdError::Ambiguous {
                    causes: "the record of this client's writes is gone from etcd".into(),
                }),
            };
        }
    }

    fn take(&self) -> Receipt {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| self.make())
    }

    fn make(&self) -> Receipt {
        let number = self.made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut key = self.prefix.clone();
        key.extend_from_slice(number.to_string().as_bytes());
        Receipt { key, version: 0 }
    }

    fn put_back(&self, receipt: Receipt) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(receipt);
    }
}
