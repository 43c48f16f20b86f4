//! Each step is taken by both, and their answers are compared.

use std::time::Duration;

use etcd_client as wire;
use tokio::time::Instant;

use super::super::model::Etcd;
use super::script::Step;
use crate::etcd::kv::{Event, Op, OpReply, Range, RangeReply, Txn, TxnReply};
use crate::etcd::test_server::Server;
use crate::etcd::{Client, EtcdError, Refusal, Repeat, WatchMessage, WatchReceiver, WatchSpec};

/// More watches than this are not kept.
const WATCHES: usize = 12;

pub struct Watch {
    spec: WatchSpec,
    /// The next revision that the model has not told yet.
    pub next: i64,
    pub real: WatchReceiver,
}

impl Watch {
    fn expected(&self, model: &Etcd) -> Vec<Event> {
        plain(model.events(&self.spec, self.next).unwrap_or_default())
    }

    async fn receive(&mut self, count: usize, context: &str) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < count {
            match tokio::time::timeout(Duration::from_secs(30), self.real.next()).await {
                Ok(WatchMessage::Events(more)) => events.extend(more),
                other => panic!("{context}: {:?} brought {events:?}, then {other:?}", self.spec),
            }
        }
        events
    }
}

pub struct Both {
    pub model: Etcd,
    pub client: Client,
    pub watches: Vec<Watch>,
    /// For compactions, which our client has no use for.
    wire: wire::Client,
}

/// What an error says, without its words.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    Refused(Refusal),
    Compacted,
    Other(String),
}

fn failure(error: EtcdError) -> Failure {
    match error {
        EtcdError::Refused { kind, .. } => Failure::Refused(kind),
        EtcdError::Compacted { .. } => Failure::Compacted,
        other => Failure::Other(other.to_string()),
    }
}

/// Takes away what is not promised, or differs between versions.
fn forget(range: &Range, reply: &mut RangeReply) {
    if range.keys_only {
        // Versions before 3.7 tell the lease when only the keys were asked for.
        reply.kvs.iter_mut().for_each(|kv| kv.lease = 0);
    }
}

fn forget_in(txn: &Txn, succeeded: bool, replies: &mut [OpReply]) {
    let ops = if succeeded { &txn.success } else { &txn.failure };
    for (op, reply) in ops.iter().zip(replies) {
        match (op, reply) {
            (Op::Get(range), OpReply::Get(reply)) => forget(range, reply),
            (Op::Txn(inner), OpReply::Txn { succeeded, replies }) => {
                forget_in(inner, *succeeded, replies);
            }
            _ => {}
        }
    }
}

fn reads_the_past(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        Op::Get(range) => range.revision > 0,
        Op::Txn(inner) => reads_the_past(inner),
        Op::Put { .. } | Op::Delete { .. } => false,
    })
}

impl Both {
    pub async fn connect(server: &Server) -> Self {
        let wire = wire::Client::connect([&server.endpoint], None).await.expect("a connection");
        Self { model: Etcd::default(), client: server.client(), watches: Vec::new(), wire }
    }

    fn deadline() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    pub async fn take(&mut self, number: u64, step: &Step) {
        let (at, now) = (Self::deadline(), Duration::ZERO);
        let context = format!("step {number}: {step:?}");
        match step {
            Step::Txn(txn) => {
                let real = self.client.txn(txn, Repeat::Safely, at).await.map_err(failure);
                let promised = |mut reply: TxnReply| {
                    forget_in(txn, reply.succeeded, &mut reply.replies);
                    reply
                };
                let real = real.map(promised);
                let expected = self.model.txn(txn).map_err(failure).map(promised);
                // Where two operations are refused, 3.4 names the one and later versions the other.
                if expected.is_ok() || real.is_ok() || !reads_the_past(txn) {
                    assert_eq!(real, expected, "{context}");
                }
            }
            Step::Range(range) => {
                let real = self.client.range(range, at).await.map_err(failure);
                let promised = |(revision, mut reply)| {
                    forget(range, &mut reply);
                    (revision, reply)
                };
                let expected = self.model.range(range).map_err(failure).map(promised);
                assert_eq!(real.map(promised), expected, "{context}");
            }
            Step::Grant(id, ttl) => {
                // The client takes a lease that exists for granted, so etcd itself is asked as well.
                let options = wire::LeaseGrantOptions::new().with_id(*id);
                let asked = self.wire.lease_grant(ttl.as_secs().cast_signed(), Some(options)).await;
                let exists = asked.is_err_and(|e| e.to_string().contains("lease already exists"));
                let expected = self.model.grant(now, *id, *ttl).map_err(failure);
                assert_eq!(
                    exists,
                    expected == Err(Failure::Refused(Refusal::LeaseExists)),
                    "{context}"
                );
                assert!(self.client.grant(*id, *ttl, at).await.is_ok(), "{context}");
            }
            Step::Revoke(id) => {
                self.client.revoke(*id, at).await.unwrap_or_else(|e| panic!("{context}: {e}"));
                self.model.revoke(*id);
            }
            Step::Renew(id) => {
                let real = self.client.renew_once(*id, at).await.map_err(failure);
                assert_eq!(real, Ok(self.model.renew(now, *id)), "{context}");
            }
            Step::TimeToLive(id) => {
                let real = self.client.time_to_live(*id, at).await.map_err(failure);
                let granted = real.map(|lease| lease.map(|(_, granted)| granted));
                let expected = self.model.time_to_live(now, *id).map(|(_, granted)| granted);
                assert_eq!(granted, Ok(expected), "{context}");
            }
            Step::Compact(revision) => {
                let expected: Vec<_> =
                    self.watches.iter().map(|w| w.expected(&self.model)).collect();
                let real = self.wire.compact(*revision, None).await.is_ok();
                assert_eq!(real, self.model.compact(*revision).is_ok(), "{context}");
                // What was sent to open watches before is not taken back, except for the value that was
                // deleted, which etcd reads when it sends the event.
                for (watch, mut expected) in self.watches.iter_mut().zip(expected) {
                    let mut real = watch.receive(expected.len(), &context).await;
                    for event in real.iter_mut().chain(&mut expected) {
                        if let Event::Delete(kv) = event {
                            kv.value.clear();
                        }
                    }
                    assert_eq!(real, expected, "{context}: {:?}", watch.spec);
                    watch.next = watch.next.max(self.model.revision() + 1);
                }
            }
            Step::Watch(spec) => self.open(spec, &context).await,
            Step::Drain => self.drain(&context).await,
        }
        let revision = self.client.range(&Range::key("a"), at).await;
        let revision = revision.map(|(revision, _)| revision).map_err(failure);
        assert_eq!(revision, Ok(self.model.revision()), "after {context}");
    }

    async fn open(&mut self, spec: &WatchSpec, context: &str) {
        self.drain(context).await;
        if self.watches.len() == WATCHES {
            self.watches.remove(0);
        }
        let next = match spec.start_revision {
            0 => self.model.revision() + 1,
            revision => revision,
        };
        let mut real = self.client.watch(spec.clone());
        if let Err(EtcdError::Compacted { oldest, .. }) = self.model.events(spec, next) {
            let answer = tokio::time::timeout(Duration::from_secs(10), real.next()).await;
            assert_eq!(answer, Ok(WatchMessage::Compacted { oldest }), "{context}");
            return;
        }
        if spec.start_revision == 0 {
            let answer = tokio::time::timeout(Duration::from_secs(10), real.next()).await;
            assert_eq!(answer, Ok(WatchMessage::Started(next - 1)), "{context}");
        }
        self.watches.push(Watch { spec: spec.clone(), next, real });
        // Something that it sees, so that it is open before anything else happens.
        for op in [Op::put(&spec.key[..], "marker", 0), Op::delete(&spec.key[..])] {
            let txn = Txn::when([]).then([op]);
            let real = self.client.txn(&txn, Repeat::Safely, Self::deadline()).await;
            assert_eq!(real.map_err(failure), self.model.txn(&txn).map_err(failure), "{context}");
        }
        self.drain(context).await;
    }

    async fn drain(&mut self, context: &str) {
        for watch in &mut self.watches {
            let expected = watch.expected(&self.model);
            let real = watch.receive(expected.len(), context).await;
            assert_eq!(real, expected, "{context}: {:?}", watch.spec);
            watch.next = watch.next.max(self.model.revision() + 1);
        }
    }
}

/// Without their places in the history.
pub fn plain(events: Vec<(usize, Event)>) -> Vec<Event> {
    events.into_iter().map(|(_, event)| event).collect()
}
