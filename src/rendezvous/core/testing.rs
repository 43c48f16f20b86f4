//! What the tests of roles have in common.

use std::time::Duration;

use super::cx::Cx;
use crate::etcd::kv::{KeyValue, Op, Txn};
use crate::rendezvous::api::{Action, OnMemberLoss, Settings, Tuning};
use crate::rendezvous::keys::Keys;
use crate::rendezvous::records::{
    Control, Coordinator, Final, Labels, NodeInfo, Previous, RankOrder, State, Story, Usher, encode,
};

/// The lease of this node, and that of another one.
pub const OWN: i64 = 7;
pub const OTHER: i64 = 8;

pub fn settings() -> Settings {
    let second = Duration::from_secs(1);
    Settings {
        keys: Keys::new("/p/run_a"),
        min: 2,
        max: 2,
        join_timeout: second * 60,
        last_call: second,
        close_timeout: second * 10,
        ttl: second * 10,
        run_ttl: second * 100,
        on_member_loss: OnMemberLoss::Restart,
        survivor_grace: second,
        reopen_if_closed: false,
        version: 1,
        node: NodeInfo { host: "own".into(), pid: 1 },
        labels: Labels::default(),
        order: RankOrder::Stable,
        epoch: Duration::ZERO,
        seed: 1,
        tuning: Tuning::default(),
    }
}

/// A node with its lease and the run's, which knows all that is below the head: nothing.
pub fn cx() -> Cx {
    let mut cx = Cx::new(settings());
    cx.watch_head();
    let [Action::Watch(head, _)] = cx.out.take()[..] else { panic!("no watch") };
    cx.head.started(head, 1);
    cx.head.was_read(1);
    let Cx { settings, out, leases, .. } = &mut cx;
    leases.granted(
        settings,
        out,
        Duration::ZERO,
        super::leases::Purpose::Own(Duration::ZERO),
        (OWN, settings.ttl),
    );
    leases.hold_run(settings, out, settings.run_ttl);
    cx.out.take();
    cx
}

/// The record has this revision.
pub fn sees(cx: &mut Cx, round: u64, state: State, revision: i64) {
    let control = Control::first(1, 100, round, state);
    let kv = KeyValue {
        key: cx.settings.keys.control().into(),
        value: encode(&control, 1),
        create_revision: 2,
        mod_revision: revision,
        version: 1,
        lease: 1,
    };
    cx.view.observe_control(&cx.settings, Some(&kv), revision);
    cx.view.take_news();
}

pub fn open(previous: Option<Previous>) -> State {
    State::Open { previous, by: "other".into(), at: 1, why: "the first round".into() }
}

/// A world of so many, of the attempt `8.1`.
pub fn complete(world: u32) -> Final {
    Final {
        world,
        attempt: "8.1".into(),
        since: 4,
        master_addr: "b".into(),
        master_port: 1,
        order: RankOrder::Stable,
        story: Story { min: 2, max: 2, ..Story::default() },
    }
}

/// This node coordinates.
pub fn coordinator(cx: &mut Cx, node: i64, revision: i64) {
    let record = Coordinator {
        node: NodeInfo::default(),
        joined: 1,
        last_call: false,
        min: 2,
        max: 2,
        at: 1,
    };
    cx.view.coordinator.set(Some((record, node)), revision, revision);
}

/// This node tells so many of round 1.
pub fn usher(cx: &mut Cx, node: i64, count: u32, revision: i64) {
    let record = Usher { node: NodeInfo::default(), id: complete(2).id(1), count, at: 1 };
    cx.view.usher.set(Some((record, node)), revision, revision);
}

/// The one transaction that was sent.
pub fn sent(cx: &mut Cx) -> Txn {
    let actions = cx.out.take();
    let mut txns = actions.into_iter().filter_map(|action| match action {
        Action::Txn(_, txn, _) => Some(txn),
        _ => None,
    });
    let txn = txns.next().expect("a transaction");
    assert_eq!(txns.next(), None);
    txn
}

/// The keys that it puts.
pub fn puts(txn: &Txn) -> Vec<String> {
    let key = |op: &Op| match op {
        Op::Put { key, .. } => Some(String::from_utf8_lossy(key).replace("/p/run_a/rdzv/", "")),
        _ => None,
    };
    txn.success.iter().filter_map(key).collect()
}
