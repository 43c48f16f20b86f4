//! The loop that sends a guarded transaction until it is known what came of it.

use std::fmt::Display;

use tokio::time::Instant;

use super::receipt::{Found, Held, Receipts};
use crate::etcd::call::Repeat;
use crate::etcd::client::Client;
use crate::etcd::cluster::Backoff;
use crate::etcd::error::{EtcdError, Refusal};
use crate::etcd::kv::{Range, Txn, TxnReply};

/// What came of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnceOutcome {
    Answered(TxnReply),
    /// It wrote something at this revision, its answer was lost: read what it did from etcd's history.
    AppliedAt(i64),
}

/// Transactions of one client, each with a receipt.
pub struct OnceTxns {
    client: Client,
    receipts: Receipts,
}

impl OnceTxns {
    pub fn new(client: Client, prefix: &[u8]) -> Self {
        Self { client, receipts: Receipts::new(prefix) }
    }

    /// `lease` is what the receipt is kept under; it has to outlive the call. No branch may have two
    /// transactions in it.
    pub async fn run(
        &self,
        txn: &Txn,
        lease: i64,
        deadline: Instant,
    ) -> Result<OnceOutcome, EtcdError> {
        let mut held = self.receipts.hold();
        // What became of an answer that was lost.
        let mut lost: Option<String> = None;
        // What answers at once that it does not serve, such as a proxy, must not be asked without a pause.
        let mut backoff = Backoff::default();
        loop {
            let guarded = held.guard(txn, lease, lost.is_some());
            let found = match self.client.txn(&guarded.txn, Repeat::Never, deadline).await {
                Ok(reply) => match held.answer(&guarded, reply) {
                    Ok(reply) => return Ok(OnceOutcome::Answered(reply)),
                    Err(found) => found,
                },
                Err(EtcdError::Ambiguous { causes }) => {
                    if Instant::now() >= deadline {
                        return Err(EtcdError::Ambiguous { causes });
                    }
                    lost = Some(causes);
                    let pause = Instant::now() + backoff.pause();
                    tokio::time::sleep_until(deadline.min(pause)).await;
                    continue;
                }
                // What is on its way when etcd becomes full is applied and refused.
                Err(error @ EtcdError::Refused { kind: Refusal::NoSpace, .. }) => {
                    return match (self.after_refusal(&mut held, deadline).await, lost) {
                        (Ok(Some(Found::Wrote(revision))), _) => {
                            Ok(OnceOutcome::AppliedAt(revision))
                        }
                        (Ok(None | Some(Found::Gone)), Some(lost)) => Err(not_known(&lost, error)),
                        (Ok(_), _) => Err(error),
                        (Err(cause), _) => Err(EtcdError::Ambiguous { causes: cause.to_string() }),
                    };
                }
                Err(error) => {
                    return Err(match lost {
                        Some(lost) => not_known(&lost, error),
                        None => error,
                    });
                }
            };
            match found {
                Found::Wrote(revision) => return Ok(OnceOutcome::AppliedAt(revision)),
                Found::NotApplied => lost = None,
                Found::Gone => {
                    if let Some(lost) = lost {
                        let gone = "the record of this client's writes is gone from etcd";
                        return Err(not_known(&lost, gone));
                    }
                }
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
}

/// Nothing tells whether the write whose answer was lost took effect. Where that was comes first: what ended the
/// search for it may be the deadline alone, which names no endpoint.
fn not_known(lost: &str, then: impl Display) -> EtcdError {
    EtcdError::Ambiguous { causes: format!("{lost}; then {then}") }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering as Atomic;
    use std::time::Duration;

    use super::*;
    use crate::etcd::kv::{Compare, Op};
    use crate::etcd::test_server::{Server, binary};

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
                let mut held = txns.receipts.hold();
                let (late, again) = (held.guard(txn, 0, false), held.guard(txn, 0, true));
                let reply = send(&client, &again.txn).await;
                let answered = held.answer(&again, reply);
                assert!(answered.is_ok(), "{number}");
                assert_eq!(held.receipt.version, 1, "{number}");
                send(&client, &put("door")).await;
                send(&client, &late.txn).await;
                assert_eq!(version(&client, "in").await, 0, "{number}");
                send(&client, &Txn::when([]).then([Op::delete("door")])).await;
                drop(held);
                txns.receipts.free().clear();
            }
        });
    }

    #[test]
    fn a_receipt_of_what_was_given_up_is_used_again() {
        with_server(|client| async move {
            let txns = OnceTxns::new(client.clone(), b"/.op/");
            for number in 0..3 {
                let late = {
                    let held = txns.receipts.hold();
                    held.guard(&put("given up"), 0, false)
                };
                if number > 0 {
                    send(&client, &late.txn).await;
                }
                let sent = put("sent");
                let given_up = txns.run(&sent, 0, in_30_s());
                // It may have been sent or not.
                let _ = tokio::time::timeout(Duration::ZERO, given_up).await;
                let done = txns.run(&put("done"), 0, in_30_s()).await.expect("answered");
                assert!(matches!(done, OnceOutcome::Answered(_)), "{done:?}");
                assert_eq!(version(&client, "done").await, number + 1);
                send(&client, &late.txn).await;
                assert_eq!(version(&client, "given up").await, number, "each copy once");
            }
            assert_eq!(txns.receipts.made.load(Atomic::Relaxed), 1);
        });
    }

    /// It found a receipt that says "nothing was written", which is not an effect.
    #[test]
    fn what_had_no_effect_is_run_again() {
        with_server(|client| async move {
            let txns = OnceTxns::new(client.clone(), b"/.op/");
            let txn = Txn::when([Compare::exists("door")]).then([Op::put("in", "", 0)]);
            let mut held = txns.receipts.hold();
            send(&client, &held.guard(&txn, 0, true).txn).await;
            send(&client, &put("door")).await;
            let again = held.guard(&txn, 0, true);
            let reply = send(&client, &again.txn).await;
            assert!(matches!(held.answer(&again, reply), Err(Found::NotApplied)));
            let anew = held.guard(&txn, 0, false);
            let reply = send(&client, &anew.txn).await;
            assert!(held.answer(&anew, reply).is_ok());
            let reply = send(&client, &anew.txn).await;
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
