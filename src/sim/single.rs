//! What seeds have found, told again with one node and etcd, step by step: a seed means something else as
//! soon as the simulator is changed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::model::{Etcd, refused};
use super::network::lease_of;
use super::node::Request;
use super::scenario::Scenario;
use crate::etcd::kv::{Event, Op, Target, Txn};
use crate::etcd::{Refusal, WatchMessage, WatchSpec};
use crate::rendezvous::Variant;
use crate::rendezvous::keys::Keys;
use crate::rendezvous::records::Labels;
use crate::rendezvous::records::RankOrder;
use crate::rendezvous::records::{
    self, Control, Coordinator, Final, Master, Member, NodeInfo, State, Story,
};
use crate::rendezvous::{
    Action, Answer, CallId, Input, Machine, RendezvousError, Settings, Time, WatchId,
};

/// The lease of another node.
const OTHER: i64 = 7;

struct Single {
    machine: Machine,
    etcd: Etcd,
    keys: Keys,
    now: Time,
    call: Option<(CallId, Request)>,
    /// How often that was sent so far.
    attempts: u32,
    watches: BTreeMap<WatchId, WatchSpec>,
    /// Watches that have yet to begin.
    starting: Vec<WatchId>,
    joined: Option<Result<u32, RendezvousError>>,
}

impl Single {
    fn new(nodes: usize, node_id: Option<&str>) -> Self {
        Self::without(None, nodes, node_id)
    }

    /// Without this guard.
    fn without(guard: Option<Variant>, nodes: usize, node_id: Option<&str>) -> Self {
        let mut common = Scenario::calm(1, nodes, nodes).settings;
        common.tuning.variant = guard;
        let labels = Labels { node_id: node_id.map(Into::into), ..Labels::default() };
        let mut etcd = Etcd::default();
        etcd.grant(Time::ZERO, OTHER, Duration::from_secs(60)).expect("a lease");
        Self {
            keys: common.keys.clone(),
            machine: Machine::new(Settings { labels, seed: 1, ..common }),
            etcd,
            now: Time::ZERO,
            call: None,
            attempts: 0,
            watches: BTreeMap::new(),
            starting: Vec::new(),
            joined: None,
        }
    }

    fn feed(&mut self, input: Input) {
        for action in self.machine.handle(self.now, input) {
            if let Action::Txn(..) | Action::Grant(..) = &action {
                self.attempts = 0;
            }
            match action {
                Action::Txn(call, txn, _) => self.call = Some((call, Request::Txn(txn))),
                Action::Grant(call, lease, ttl, _) => {
                    self.call = Some((call, Request::Grant(lease, ttl)));
                }
                Action::Watch(watch, spec) => {
                    self.watches.insert(watch, spec);
                    self.starting.push(watch);
                }
                Action::Unwatch(watch) => {
                    self.watches.remove(&watch);
                    self.starting.retain(|id| *id != watch);
                }
                Action::Cancel(_) => self.call = None,
                Action::Revoke(lease) => drop(self.etcd.revoke(lease)),
                Action::Joined(result) => self.joined = Some(result.map(|outcome| outcome.rank)),
                _ => {}
            }
        }
    }

    fn join(&mut self) {
        self.feed(Input::Join(Master { addr: "a".into(), port: 1 }));
    }

    /// The call that is under way reaches etcd, and its answer is lost: it will be sent again.
    fn lose_the_answer(&mut self) -> Option<(CallId, Answer)> {
        let (call, request) = self.call.clone()?;
        self.attempts += 1;
        let answer = match request {
            Request::Txn(txn) => Answer::Txn(self.etcd.txn(&txn).expect("an answer")),
            Request::Grant(lease, ttl) => {
                // The run's lease exists already, and etcd says so.
                let lease = lease_of(lease, self.attempts);
                let _ = self.etcd.grant(self.now, lease, ttl);
                Answer::Granted(lease, ttl)
            }
            _ => return None,
        };
        Some((call, answer))
    }

    /// `false` where no call is under way.
    fn answer(&mut self) -> bool {
        let Some((call, answer)) = self.lose_the_answer() else { return false };
        self.call = None;
        self.feed(Input::Answer(call, Ok(answer)));
        true
    }

    fn start_watches(&mut self) {
        let revision = self.etcd.revision();
        for watch in std::mem::take(&mut self.starting) {
            self.feed(Input::Watched(watch, WatchMessage::Started(revision)));
        }
    }

    /// Until nothing more happens by itself.
    fn go_on(&mut self) {
        for _ in 0..30 {
            self.start_watches();
            if !self.answer() && self.starting.is_empty() {
                return;
            }
        }
        panic!("it goes on without end");
    }

    fn watch_of(&self, key: &str) -> WatchId {
        let watch = self.watches.iter().find(|(_, spec)| spec.key == key.as_bytes());
        *watch.map(|(id, _)| id).expect("a watch")
    }

    fn lose_watch(&mut self, key: &str, message: WatchMessage) {
        let watch = self.watch_of(key);
        self.watches.remove(&watch);
        self.feed(Input::Watched(watch, message));
    }

    fn put<T: serde::Serialize>(&mut self, key: String, record: &T, lease: i64) {
        let put = Op::put(key, records::encode(record, 1), lease);
        self.etcd.txn(&Txn::when([]).then([put])).expect("an answer");
    }

    /// Another node has opened the first round, and coordinates it.
    fn another_opens(&mut self) {
        let (by, why) = ("other".into(), String::new());
        let state = State::Open { previous: None, by, at: 1, why };
        self.put(self.keys.control(), &Control::first(1, 60, 1, state), 0);
        let coordinator = Coordinator {
            node: NodeInfo::default(),
            joined: 1,
            last_call: false,
            min: 2,
            max: 2,
            at: 1,
        };
        self.put(self.keys.coordinator(), &coordinator, OTHER);
    }

    /// It completes the round, with this node as rank 1.
    fn another_completes(&mut self) {
        let complete = Final {
            world: 2,
            attempt: "7.1".into(),
            since: self.etcd.revision(),
            master_addr: "b".into(),
            master_port: 1,
            order: RankOrder::Stable,
            story: Story { min: 2, max: 2, ..Story::default() },
        };
        let id = complete.id(1);
        let own = self.machine.node().expect("a lease");
        for (rank, node, next) in [(0, OTHER, own), (1, own, OTHER)] {
            let (addr, labels) = ("b".into(), Labels::default());
            let member = Member { rank, next, node: NodeInfo::default(), addr, labels };
            self.put(self.keys.member(&id, node), &member, node);
        }
        self.put(self.keys.control(), &Control::first(1, 60, 1, State::Final(complete)), 0);
    }

    /// Another agent of this node's `node_id` comes.
    fn another_takes(&mut self, node_id: &str) {
        let node = NodeInfo { host: "other".into(), pid: 1 };
        self.put(self.keys.holder(node_id), &node, OTHER);
    }

    /// Everything in etcd is gone, and its revisions restart.
    fn wipe(&mut self) {
        self.etcd = Etcd::default();
        self.etcd.grant(self.now, OTHER, Duration::from_secs(60)).expect("a lease");
    }
}

/// It waited for a place in a world that had one for it, and the others waited for it in their store.
#[test]
fn who_has_joined_without_hearing_of_it_looks_for_its_rank() {
    let mut node = Single::new(2, Some("x"));
    node.another_opens();
    node.join();
    while node.etcd.list(&node.keys.joins(1)).is_empty() {
        node.start_watches();
        // The last one is the join, and its answer is lost.
        let join = matches!(&node.call, Some((_, Request::Txn(txn))) if !txn.is_read_only());
        if join { drop(node.lose_the_answer()) } else { assert!(node.answer()) }
    }
    // The next copy is refused, as the node_id is this node's by then; and of the head is nothing known then.
    let head = node.keys.head();
    node.lose_watch(&head, WatchMessage::Compacted { oldest: 3 });
    assert!(node.answer());
    node.another_completes();
    node.go_on();
    assert_eq!(node.joined, Some(Ok(1)));
}

/// It asked for what it knew of the old etcd, without end and without a pause.
#[test]
fn another_history_is_seen_without_a_watch() {
    let mut node = Single::new(1, None);
    node.join();
    node.go_on();
    assert_eq!(node.joined.take(), Some(Ok(0)));
    let head = node.keys.head();
    let denied = refused(Refusal::PermissionDenied, "permission denied");
    node.lose_watch(&head, WatchMessage::Failed(denied));
    node.wipe();
    node.another_opens();
    node.now += Duration::from_secs(2);
    node.feed(Input::Tick);
    node.go_on();
    assert_eq!(node.machine.status().waiting, 1);
    node.join();
    node.go_on();
    assert_eq!(node.etcd.list(&node.keys.joins(1)).len(), 1);
}

/// A late copy of the request for its lease had granted it again, without its keys: nobody told it that it
/// was in no world.
#[test]
fn who_is_alone_sees_its_own_key_go() {
    let mut node = Single::new(1, None);
    node.join();
    node.go_on();
    assert_eq!(node.joined.take(), Some(Ok(0)));
    let lease = node.machine.node().expect("a lease");
    let watch = *node.watches.keys().last().expect("a watch");
    let spec = node.watches[&watch].clone();
    let before = node.etcd.revision();
    node.etcd.revoke(lease);
    node.etcd.grant(node.now, lease, Duration::from_secs(10)).expect("a lease");
    let events = node.etcd.events(&spec, before + 1).expect("events");
    let events: Vec<Event> = events.into_iter().map(|(_, event)| event).collect();
    assert_eq!(events.len(), 1);
    node.feed(Input::Watched(watch, WatchMessage::Events(events)));
    assert_eq!(node.machine.status().waiting, 1);
    // It comes back with that lease, and its next world has its key.
    node.join();
    node.go_on();
    assert_eq!(node.joined, Some(Ok(0)));
    assert_eq!(node.machine.status().waiting, 0);
}

/// Seeds 386831 and 388954: it was evicted, and believed for as long as a lease lives that it had joined. The answer
/// to the first request for its lease had been lost, and a late copy of that brought the lease back.
#[test]
fn no_late_copy_of_a_grant_brings_a_lease_back_that_was_revoked() {
    let mut node = Single::new(2, None);
    node.another_opens();
    node.join();
    let Some((_, Request::Grant(wanted, ttl))) = node.call.clone() else { panic!("no grant") };
    let first = lease_of(wanted, 1);
    // The first copy is on its way still.
    node.attempts = 1;
    node.go_on();
    let lease = node.machine.node().expect("a lease");
    assert_eq!(node.etcd.list(&node.keys.joins(1)).len(), 1);
    assert!(node.etcd.revoke(lease));
    let _ = node.etcd.grant(node.now, first, ttl);
    assert!(!node.etcd.has_lease(lease), "the lease is there again, and its keys are not");
}

/// It came back when it had stopped its workers, and replaced the agent that had replaced it.
#[test]
fn who_has_held_a_node_id_takes_it_from_nobody_when_etcd_was_wiped() {
    let mut node = Single::new(1, Some("x"));
    node.join();
    node.go_on();
    assert_eq!(node.joined.take(), Some(Ok(0)));
    node.wipe();
    let head = node.keys.head();
    node.lose_watch(&head, WatchMessage::HistoryLost);
    node.another_takes("x");
    node.join();
    node.go_on();
    assert!(
        matches!(node.joined, Some(Err(RendezvousError::Replaced { .. }))),
        "{:?}",
        node.joined
    );
}

/// The agent that it has replaced is long gone, and a backup has brought its key back.
#[test]
fn who_has_replaced_another_does_so_again_in_a_history_that_was_restored() {
    let mut node = Single::new(1, Some("x"));
    node.another_takes("x");
    node.join();
    node.go_on();
    assert_eq!(node.joined.take(), Some(Ok(0)));
    node.wipe();
    node.another_takes("x");
    let head = node.keys.head();
    node.lose_watch(&head, WatchMessage::HistoryLost);
    node.join();
    node.go_on();
    assert_eq!(node.joined, Some(Ok(0)));
}

/// Seed 330223: etcd was wiped, and the late completion of a round of the last history took effect in the new one, in
/// which the record and the coordinator's key had the same revisions.
#[test]
fn what_a_coordinator_writes_does_nothing_in_another_history() {
    let mut node = Single::new(1, None);
    node.join();
    let mut refused = 0;
    for _ in 0..30 {
        node.start_watches();
        if let Some((_, Request::Txn(txn))) = &node.call {
            let coordinator = node.keys.coordinator();
            let known = txn.compares.iter().find_map(|compare| match compare.target {
                Target::ModRevision(at) if compare.key == coordinator.as_bytes() => Some(at),
                _ => None,
            });
            if let Some(revision) = known {
                let mut other = another_history(&node.keys, revision);
                assert!(!other.txn(txn).expect("an answer").succeeded, "{txn:?}");
                refused += 1;
            }
        }
        if !node.answer() && node.starting.is_empty() {
            break;
        }
    }
    assert!(refused > 0);
    assert_eq!(node.joined, Some(Ok(0)));
}

/// Its barrier ended while the answer to its join was on its way, and that came when it had joined again.
fn hears_late_of_its_join(guard: Option<Variant>) -> Single {
    let mut node = Single::without(guard, 2, None);
    node.another_opens();
    node.join();
    while !matches!(&node.call, Some((_, Request::Txn(txn))) if !txn.is_read_only()) {
        node.start_watches();
        assert!(node.answer());
    }
    let (call, answer) = node.lose_the_answer().expect("the join");
    node.call = None;
    let head = node.keys.head();
    let denied = refused(Refusal::PermissionDenied, "permission denied");
    node.lose_watch(&head, WatchMessage::Failed(denied));
    assert!(matches!(node.joined.take(), Some(Err(_))));
    node.now += Duration::from_secs(2);
    node.join();
    node.feed(Input::Answer(call, Ok(answer)));
    node.go_on();
    node
}

#[test]
fn the_answer_of_a_barrier_that_failed_is_none_of_the_next_one() {
    let joins = |node: &Single| node.etcd.list(&node.keys.joins(1)).len();
    assert_eq!(joins(&hears_late_of_its_join(None)), 1);
    let guard = Some(Variant::KeepsCallOfFinished);
    assert_eq!(joins(&hears_late_of_its_join(guard)), 0, "it is to be caught");
}

/// The coordinator speaks version 2.
fn meets_a_newer_coordinator(guard: Option<Variant>) -> Option<Result<u32, RendezvousError>> {
    let mut node = Single::without(guard, 2, None);
    node.another_opens();
    let value = r#"{"v":2,"host":"other","pid":1,"joined":1,"last_call":false}"#;
    let put = Op::put(node.keys.coordinator(), value, OTHER);
    node.etcd.txn(&Txn::when([]).then([put])).expect("an answer");
    node.join();
    node.go_on();
    node.joined
}

#[test]
fn a_record_of_a_newer_version_is_no_garbage() {
    let told = meets_a_newer_coordinator(None);
    assert!(matches!(told, Some(Err(RendezvousError::Unreadable(_)))), "{told:?}");
    let told = meets_a_newer_coordinator(Some(Variant::TakesNewerRecords));
    assert_eq!(told, None, "it is to be caught");
}

/// Somebody else's record and coordinator, written at this revision.
fn another_history(keys: &Keys, revision: i64) -> Etcd {
    let mut etcd = Etcd::default();
    etcd.grant(Time::ZERO, OTHER, Duration::from_secs(60)).expect("a lease");
    while etcd.revision() < revision - 1 {
        etcd.txn(&Txn::when([]).then([Op::put("x", "", OTHER)])).expect("an answer");
    }
    let writes = [Op::put(keys.control(), "", OTHER), Op::put(keys.coordinator(), "", OTHER)];
    etcd.txn(&Txn::when([]).then(writes)).expect("an answer");
    etcd
}
