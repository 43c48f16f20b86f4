//! Transactions that take effect exactly once although answers get lost.
//!
//! Where a transaction writes it also writes a *receipt*, whose version each of its branches expects: `n`
//! before, `n + 1` after. Sent again, it either finds the receipt at `n` (it had no effect: now it has) or at
//! `n + 1` (it had, at the receipt's revision). A late copy of the first request finds `n + 1` and does
//! nothing. etcd's own history then tells what the transaction read and left at that revision.
//!
//! A branch that writes nothing leaves the receipt alone, so that it makes no revision. After a lost answer
//! that is not enough: a copy that comes late could take another branch. So what is sent then writes the
//! receipt in every branch. The receipt's value names the transaction, and says whether it did anything else.
//! So a receipt can be used again although nobody knows what became of its last transaction.

use std::sync::atomic::{AtomicU64, Ordering as Atomic};
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use super::backoff::Backoff;
use super::client::{Client, Repeat};
use super::error::{EtcdError, Refusal};
use super::kv::{Compare, KeyValue, Op, OpReply, Ordering, Range, Target, Txn, TxnReply, range_of};
use super::unique::unique;

/// What came of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnceOutcome {
    Answered(TxnReply),
    /// It wrote something at this revision, its answer was lost: read what it did from etcd's history.
    AppliedAt(i64),
}

/// The receipts of one client, one for each transaction under way at the same time.
pub struct OnceTxns {
    client: Client,
    /// Ends with this client's own random part, so that no two clients share a receipt.
    prefix: Vec<u8>,
    free: Mutex<Vec<Receipt>>,
    receipts: AtomicU64,
    runs: AtomicU64,
}

#[derive(Default)]
struct Receipt {
    key: Vec<u8>,
    version: i64,
}

/// A receipt in use. It is given back when the use ends, which may be by a cancellation.
struct Held<'a> {
    txns: &'a OnceTxns,
    receipt: Receipt,
    /// Of the transaction that uses it now.
    run: u64,
}

/// What a receipt says that is not as it was expected.
enum Found {
    /// The transaction wrote something, at this revision.
    Wrote(i64),
    /// It took effect by writing nothing else, or another one did that was given up. No copy of it that was sent
    /// so far can take effect any more.
    NotApplied,
    /// The receipt is gone with its lease, etcd was restored from a backup, or a stranger wrote it.
    Gone,
}

impl Held<'_> {
    fn compare(&self) -> Compare {
        let version = Target::Version(self.receipt.version);
        Compare::new(self.receipt.key.clone(), Ordering::Equal, version)
    }

    /// The receipt's value where the transaction wrote something else, too, or did not.
    fn mark(&self, wrote: bool) -> Vec<u8> {
        format!("{}{}", self.run, if wrote { "" } else { "." }).into_bytes()
    }

    /// The transaction with its receipt, in `all` branches or in those that write.
    fn guard(&self, txn: &Txn, lease: i64, all: bool) -> Txn {
        let mut compares = vec![self.compare()];
        compares.extend_from_slice(&txn.compares);
        let mut otherwise = vec![Op::get(self.receipt.key.clone())];
        // Without compares of its own only the receipt can be what is not as expected.
        if !txn.compares.is_empty() {
            let failure = self.branch(&txn.failure, lease, all);
            otherwise.push(Op::Txn(Txn::when([self.compare()]).then(failure)));
        }
        Txn::when(compares).then(self.branch(&txn.success, lease, all)).or_else(otherwise)
    }

    fn branch(&self, ops: &[Op], lease: i64, all: bool) -> Vec<Op> {
        let put = |wrote| Op::put(self.receipt.key.clone(), self.mark(wrote), lease);
        let nested = |op: &&Op| matches!(op, Op::Txn(_));
        if ops.iter().any(|op| matches!(op, Op::Put { .. } | Op::Delete { .. })) {
            return [ops, &[put(true)]].concat();
        }
        debug_assert!(ops.iter().filter(nested).count() <= 1, "etcd takes one put to a key");
        if !ops.iter().any(|op| nested(&op)) {
            return if all { [ops, &[put(false)]].concat() } else { ops.to_vec() };
        }
        let held = ops.iter().map(|op| match op {
            Op::Txn(inner) => Op::Txn(Txn {
                compares: inner.compares.clone(),
                success: self.branch(&inner.success, lease, all),
                failure: self.branch(&inner.failure, lease, all),
            }),
            other => other.clone(),
        });
        held.collect()
    }

    /// Whether a branch that was taken wrote the receipt.
    fn written(&self, ops: &[Op], replies: &[OpReply]) -> bool {
        ops.iter().zip(replies).any(|(op, reply)| match (op, reply) {
            (Op::Put { key, .. }, _) => *key == self.receipt.key,
            (Op::Txn(inner), OpReply::Txn { succeeded, replies }) => {
                self.written(if *succeeded { &inner.success } else { &inner.failure }, replies)
            }
            _ => false,
        })
    }

    /// What the guarded transaction was answered; `None` where the receipt was not as expected.
    fn answer(&mut self, whole: &Txn, reply: TxnReply) -> Result<OnceOutcome, Found> {
        let TxnReply { revision, succeeded, replies } = reply;
        let ops = if succeeded { &whole.success } else { &whole.failure };
        let written = self.written(ops, &replies);
        let replies = if succeeded {
            replies
        } else {
            let found = range_of(&replies, 0).kvs.into_iter().next();
            let version = found.as_ref().map_or(0, |kv| kv.version);
            if version != self.receipt.version {
                return Err(self.look_at(found.as_ref()));
            }
            match replies.into_iter().nth(1) {
                Some(OpReply::Txn { replies, .. }) => replies,
                _ => Vec::new(),
            }
        };
        self.receipt.version += i64::from(written);
        Ok(OnceOutcome::Answered(TxnReply { revision, succeeded, replies }))
    }

    /// Takes over what the receipt is.
    fn look_at(&mut self, found: Option<&KeyValue>) -> Found {
        let before = self.receipt.version;
        self.receipt.version = found.map_or(0, |kv| kv.version);
        match found {
            Some(kv) if kv.version != before + 1 => Found::Gone,
            Some(kv) if kv.value == self.mark(true) => Found::Wrote(kv.mod_revision),
            Some(_) => Found::NotApplied,
            None => Found::Gone,
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let receipt = std::mem::take(&mut self.receipt);
        self.txns.free().push(receipt);
    }
}

impl OnceTxns {
    pub fn new(client: Client, prefix: &[u8]) -> Self {
        let unique = unique();
        let mut prefix = prefix.to_vec();
        prefix.extend_from_slice(format!("{unique:032x}.").as_bytes());
        let (receipts, runs) = Default::default();
        Self { client, prefix, free: Mutex::default(), receipts, runs }
    }

    /// `lease` is what the receipt is kept under; it has to outlive the call. No branch may have two
    /// transactions in it.
    pub async fn run(
        &self,
        txn: &Txn,
        lease: i64,
        deadline: Instant,
    ) -> Result<OnceOutcome, EtcdError> {
        let mut held = self.hold();
        let mut lost_answer = false;
        // What answers at once that it does not serve, such as a proxy, must not be asked without a pause.
        let mut backoff = Backoff::default();
        loop {
            let whole = held.guard(txn, lease, lost_answer);
            let found = match self.client.txn(&whole, Repeat::Never, deadline).await {
                Ok(reply) => match held.answer(&whole, reply) {
                    Ok(outcome) => return Ok(outcome),
                    Err(found) => found,
                },
                Err(EtcdError::Ambiguous { causes }) => {
                    if Instant::now() >= deadline {
                        return Err(EtcdError::Ambiguous { causes });
                    }
                    lost_answer = true;
                    let pause = Instant::now() + backoff.pause();
                    tokio::time::sleep_until(deadline.min(pause)).await;
                    continue;
                }
                // What is on its way when etcd becomes full is applied and refused.
                Err(error @ EtcdError::Refused { kind: Refusal::NoSpace, .. }) => {
                    return match self.after_refusal(&mut held, deadline).await {
                        Ok(Some(Found::Wrote(revision))) => Ok(OnceOutcome::AppliedAt(revision)),
                        Ok(None | Some(Found::Gone)) if lost_answer => {
                            Err(EtcdError::Ambiguous { causes: error.to_string() })
                        }
                        Ok(_) => Err(error),
                        Err(cause) => Err(EtcdError::Ambiguous { causes: cause.to_string() }),
                    };
                }
                Err(error) if lost_answer => {
                    return Err(EtcdError::Ambiguous { causes: error.to_string() });
                }
                Err(error) => return Err(error),
            };
            match found {
                Found::Wrote(revision) => return Ok(OnceOutcome::AppliedAt(revision)),
                Found::NotApplied => lost_answer = false,
                Found::Gone if lost_answer => {
                    return Err(EtcdError::Ambiguous {
                        causes: "the record of this client's writes is gone from etcd".into(),
                    });
                }
                Found::Gone => {}
            }
        }
    }

    /// What the receipt says after a refusal; `None` where it is as it was.
    async fn after_refusal(
        &self,
        held: &mut Held<'_>,
        deadline: Instant,
    ) -> Result<Option<Found>, EtcdError> {
        let range = Range::key(held.receipt.key.clone());
        let found = self.client.range(&range, deadline).await?.1.kvs.into_iter().next();
        let same = found.as_ref().map_or(0, |kv| kv.version) == held.receipt.version;
        Ok((!same).then(|| held.look_at(found.as_ref())))
    }

    fn hold(&self) -> Held<'_> {
        let free = self.free().pop();
        let receipt = free.unwrap_or_else(|| {
            let number = self.receipts.fetch_add(1, Atomic::Relaxed);
            let key = [&self.prefix, number.to_string().as_bytes()].concat();
            Receipt { key, version: 0 }
        });
        Held { txns: self, receipt, run: self.runs.fetch_add(1, Atomic::Relaxed) }
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<Receipt>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::test_server::{Server, binary};
    use super::*;

    fn with_server<F: Future<Output = ()>>(test: impl FnOnce(Client) -> F) {
        let Some(binary) = binary() else { return };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("one").block_on(async {
            let server = Server::start(&binary).await;
            test(server.client()).await;
        });
    }

    fn in_30_s() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    fn put(key: &str) -> Txn {
        Txn::when([]).then([Op::put(key, "mine", 0)])
    }

    async fn send(client: &Client, txn: &Txn) -> TxnReply {
        client.txn(txn, Repeat::Never, in_30_s()).await.expect("answered")
    }

    async fn version(client: &Client, key: &str) -> i64 {
        let (_, found) = client.range(&Range::key(key), in_30_s()).await.expect("answered");
        found.kvs.first().map_or(0, |kv| kv.version)
    }

    /// Not even where it would take another branch by then.
    #[test]
    fn a_copy_of_what_was_answered_writes_nothing() {
        with_server(|client| async move {
            let txns = OnceTxns::new(client.clone(), b"/.op/");
            let open = || Txn::when([Compare::exists("door")]).then([Op::put("in", "", 0)]);
            let nested = || Txn::when([]).then([Op::Txn(open())]);
            let otherwise = || Txn::when([Compare::exists("x")]).or_else([Op::Txn(open())]);
            for (number, txn) in [open(), nested(), otherwise()].iter().enumerate() {
                let mut held = txns.hold();
                let (late, again) = (held.guard(txn, 0, false), held.guard(txn, 0, true));
                let reply = send(&client, &again).await;
                let answered = held.answer(&again, reply);
                assert!(matches!(answered, Ok(OnceOutcome::Answered(_))), "{number}");
                assert_eq!(held.receipt.version, 1, "{number}");
                send(&client, &put("door")).await;
                send(&client, &late).await;
                assert_eq!(version(&client, "in").await, 0, "{number}");
                send(&client, &Txn::when([]).then([Op::delete("door")])).await;
                drop(held);
                txns.free().clear();
            }
        });
    }

    #[test]
    fn a_receipt_of_what_was_given_up_is_used_again() {
        with_server(|client| async move {
            let txns = OnceTxns::new(client.clone(), b"/.op/");
            for number in 0..3 {
                let late = {
                    let held = txns.hold();
                    held.guard(&put("given up"), 0, false)
                };
                if number > 0 {
                    send(&client, &late).await;
                }
                let sent = put("sent");
                let given_up = txns.run(&sent, 0, in_30_s());
                // It may have been sent or not.
                let _ = tokio::time::timeout(Duration::ZERO, given_up).await;
                let done = txns.run(&put("done"), 0, in_30_s()).await.expect("answered");
                assert!(matches!(done, OnceOutcome::Answered(_)), "{done:?}");
                assert_eq!(version(&client, "done").await, number + 1);
                send(&client, &late).await;
                assert_eq!(version(&client, "given up").await, number, "each copy once");
            }
            assert_eq!(txns.receipts.load(Atomic::Relaxed), 1);
        });
    }

    /// It found a receipt that says "nothing was written", which is not an effect.
    #[test]
    fn what_had_no_effect_is_run_again() {
        with_server(|client| async move {
            let txns = OnceTxns::new(client.clone(), b"/.op/");
            let txn = Txn::when([Compare::exists("door")]).then([Op::put("in", "", 0)]);
            let mut held = txns.hold();
            send(&client, &held.guard(&txn, 0, true)).await;
            send(&client, &put("door")).await;
            let again = held.guard(&txn, 0, true);
            let reply = send(&client, &again).await;
            assert!(matches!(held.answer(&again, reply), Err(Found::NotApplied)));
            let anew = held.guard(&txn, 0, false);
            let reply = send(&client, &anew).await;
            assert!(matches!(held.answer(&anew, reply), Ok(OnceOutcome::Answered(_))));
            let reply = send(&client, &anew).await;
            held.receipt.version = 1;
            assert!(matches!(held.answer(&anew, reply), Err(Found::Wrote(_))));
        });
    }

    #[test]
    fn a_transaction_that_writes_nothing_makes_no_revision() {
        with_server(|client| async move {
            let txns = OnceTxns::new(client.clone(), b"/.op/");
            let txn = Txn::when([Compare::exists("door")]).then([Op::put("in", "", 0)]);
            let before = send(&client, &put("x")).await.revision;
            for _ in 0..3 {
                let done = txns.run(&txn, 0, in_30_s()).await.expect("answered");
                let OnceOutcome::Answered(reply) = done else { panic!("{done:?}") };
                assert_eq!((reply.succeeded, reply.revision), (false, before));
            }
        });
    }
}
