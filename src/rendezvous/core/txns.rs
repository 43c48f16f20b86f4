//! What a node writes: the guards, records and transactions of the rules in `docs/protocol.md`.

use super::cx::{Cx, number};
use super::head;
use super::timers::Timer;
use super::wish::{Seat, Wish};
use crate::etcd::kv::{Compare, Op, Ordering, Range, Target, Txn};
use crate::rendezvous::api::Settings;
use crate::rendezvous::keys::{NodeId, RoundId};
use crate::rendezvous::records::{
    self, Control, Coordinator, Final, Join, Loss, State, Stay, Usher, Waiting,
};

/// The guard of every write: the control record is the one this node acts upon.
pub fn control_unchanged(cx: &Cx) -> Compare {
    Compare::mod_revision(cx.settings.keys.control(), cx.view.control.modified)
}

/// The guards of what this node puts for itself.
pub fn unchanged(cx: &Cx) -> Vec<Compare> {
    let control = [control_unchanged(cx)];
    control.into_iter().chain(cx.name.guard(&cx.settings)).collect()
}

/// The guards of everything a coordinator writes: nothing has changed that it would have to know. Revisions
/// alone may be the same in an etcd that was wiped, which a late request can reach; leases are not.
pub fn still_coordinator(cx: &Cx) -> Vec<Compare> {
    let coordinator = cx.settings.keys.coordinator();
    let unchanged = Compare::mod_revision(coordinator.clone(), cx.view.coordinator.modified);
    let own = |lease| Compare::new(coordinator, Ordering::Equal, Target::Lease(lease));
    [control_unchanged(cx), unchanged].into_iter().chain(cx.leases.own().map(own)).collect()
}

pub fn put_control(settings: &Settings, control: &Control) -> Op {
    let record = records::encode(control, control.version);
    Op::put(settings.keys.control(), record, settings.keys.run_lease())
}

/// What this node, which holds that lease, says as the coordinator.
pub fn coordinator_record(cx: &Cx, joined: usize, last_call: bool, lease: i64) -> Coordinator {
    let known = cx.view.coordinator.value.as_ref().filter(|(_, holder)| *holder == lease);
    Coordinator {
        node: cx.settings.node.clone(),
        joined: number(joined),
        last_call,
        min: number(cx.settings.min),
        max: number(cx.settings.max),
        at: known.map_or_else(|| cx.unix_now(), |(told, _)| told.at),
    }
}

pub fn put_coordinator(cx: &Cx, joined: usize, last_call: bool, lease: i64) -> Op {
    let record = coordinator_record(cx, joined, last_call, lease);
    Op::put(cx.settings.keys.coordinator(), cx.encode(&record), lease)
}

pub fn usher_record(cx: &Cx, round: u64, complete: &Final, count: u32) -> Usher {
    let (node, id) = (cx.settings.node.clone(), complete.id(round));
    Usher { node, id, count, at: cx.unix_now() }
}

pub fn put_usher(cx: &Cx, round: u64, complete: &Final, count: u32, lease: i64) -> Op {
    let record = usher_record(cx, round, complete, count);
    Op::put(cx.settings.keys.usher(), cx.encode(&record), lease)
}

/// From now until its time is up.
fn stay(cx: &Cx) -> Stay {
    let until = cx.timers.get(Timer::Join).map_or(0, |deadline| cx.unix(deadline));
    Stay { at: cx.unix_now(), until }
}

fn put_join(cx: &Cx, wish: &Wish, round: u64, lease: i64) -> Op {
    let Settings { node, labels, order, keys, .. } = &cx.settings;
    let record = Join::new(node.clone(), wish.master.clone(), stay(cx), labels.clone());
    Op::put(keys.join(round, lease), cx.encode(&record.with_order(*order)), lease)
}

fn claim_name(cx: &mut Cx, lease: i64) -> Option<Op> {
    let Cx { settings, leases, view, name, .. } = cx;
    name.claim(settings, leases, view, lease)
}

/// The first record of a run.
pub fn first_round(cx: &Cx) -> Control {
    let (by, at) = (cx.settings.node.to_string(), cx.unix_now());
    let state = State::Open { previous: None, by, at, why: "the first round".into() };
    Control::first(cx.settings.version, cx.run_ttl_of_new(), 1, state)
}

/// What a record that an operator removed leaves behind, which would be taken for that of the new round of
/// this number.
pub fn leftovers(settings: &Settings) -> Vec<Op> {
    let keys = &settings.keys;
    vec![
        Op::delete_prefix(keys.round_data(1)),
        Op::delete_prefix(keys.waitings(1)),
        Op::delete(keys.last_call(1)),
        Op::delete_prefix(keys.histories()),
    ]
}

pub fn next_round(cx: &Cx, complete: &Control, why: String) -> Control {
    let (by, at) = (cx.settings.node.to_string(), cx.unix_now());
    let previous = complete.last();
    complete.then(complete.round + 1, State::Open { previous, by, at, why })
}

/// This node is the first participant of the round it opens, and its coordinator.
pub fn open(
    cx: &mut Cx,
    (wish, seat): (&Wish, Seat),
    control: &Control,
    guards: Vec<Compare>,
    leftovers: Vec<Op>,
    lease: NodeId,
) -> Txn {
    let keys = &cx.settings.keys;
    let mut writes =
        vec![put_control(&cx.settings, control), Op::delete(keys.loss()), Op::delete(keys.usher())];
    writes.extend(leftovers);
    writes.extend(own_part(cx, (wish, seat), control.round, lease));
    let guards: Vec<Compare> = unchanged(cx).into_iter().chain(guards).collect();
    Txn::when(guards).then(writes).or_else(head::reads(&cx.settings))
}

/// What the node that opens a round puts of its own.
pub fn own_part(cx: &mut Cx, (wish, seat): (&Wish, Seat), round: u64, lease: NodeId) -> Vec<Op> {
    let mut writes = vec![put_coordinator(cx, 1, false, lease), put_join(cx, wish, round, lease)];
    if let Seat::Waiting(waited) = seat {
        writes.push(Op::delete(cx.settings.keys.waiting(waited, lease)));
    }
    writes.extend(claim_name(cx, lease));
    writes
}

/// Where nobody coordinates the round, this node does.
pub fn join(cx: &mut Cx, wish: &Wish, round: u64, lease: NodeId) -> Txn {
    let coordinator = cx.settings.keys.coordinator();
    let claim = Txn::when([Compare::absent(coordinator.clone())])
        .then([put_coordinator(cx, 1, false, lease)])
        .or_else([Op::get(coordinator)]);
    let mut writes = vec![put_join(cx, wish, round, lease), Op::Txn(claim)];
    writes.extend(claim_name(cx, lease));
    Txn::when(unchanged(cx)).then(writes).or_else(head::reads(&cx.settings))
}

/// The round is complete without this node. Where nobody ushers those who wait, it does.
pub fn wait(cx: &mut Cx, round: u64, complete: &Final, count: u32, lease: NodeId) -> Txn {
    let keys = cx.settings.keys.clone();
    let (node, labels) = (cx.settings.node.clone(), cx.settings.labels.clone());
    let record = cx.encode(&Waiting { node, stay: stay(cx), labels });
    let usher = keys.usher();
    let claim = Txn::when([Compare::absent(usher.clone())])
        .then([put_usher(cx, round, complete, count, lease)])
        .or_else([Op::get(usher)]);
    let mut writes = vec![
        Op::Txn(claim),
        Op::put(keys.waiting(round, lease), record, lease),
        Op::delete(keys.join(round, lease)),
    ];
    writes.extend(claim_name(cx, lease));
    Txn::when(unchanged(cx)).then(writes).or_else(head::reads(&cx.settings))
}

/// The place of a coordinator that is gone. What is refused reads the node's own key as well.
pub fn claim(cx: &Cx, round: u64, lease: NodeId) -> Txn {
    let keys = &cx.settings.keys;
    let own = keys.join(round, lease);
    // The key is absent, or what is there is no coordinator's: that would stay for ever.
    let vacant = Compare::mod_revision(keys.coordinator(), cx.view.coordinator.modified);
    claim_by(cx, own, vacant, put_coordinator(cx, 1, false, lease), lease)
}

/// The same of an usher.
pub fn claim_usher(cx: &Cx, round: u64, complete: &Final, count: u32, lease: NodeId) -> Txn {
    let keys = &cx.settings.keys;
    let own = keys.waiting(round, lease);
    // The key is absent, or what is there is no usher's of this round.
    let vacant = Compare::mod_revision(keys.usher(), cx.view.usher.modified);
    claim_by(cx, own, vacant, put_usher(cx, round, complete, count, lease), lease)
}

fn claim_by(cx: &Cx, own: String, vacant: Compare, put: Op, lease: NodeId) -> Txn {
    let still_there = Compare::new(own.clone(), Ordering::Equal, Target::Lease(lease));
    let mut reads = head::reads(&cx.settings);
    reads.push(Op::get(own));
    Txn::when([control_unchanged(cx), vacant, still_there]).then([put]).or_else(reads)
}

/// A node's rank in a completed round, and whether that is current.
pub fn read_membership(settings: &Settings, id: &RoundId, node: NodeId) -> Txn {
    let keys = &settings.keys;
    Txn::when([]).then([Op::get(keys.control()), Op::get(keys.member(id, node))])
}

/// Some of those who have joined a round.
pub fn read_names(settings: &Settings, round: u64, most: i64) -> Txn {
    let mut joins = Range::prefix(settings.keys.joins(round));
    joins.limit = most;
    Txn::when([]).then([Op::Get(joins)])
}

/// Members may leave a run that is closed, and two watches are not ordered between each other: hence the
/// guard. Of those who saw the loss the first one writes.
pub fn announce(cx: &Cx, loss: &Loss) -> Txn {
    let keys = &cx.settings.keys;
    let untold = Compare::mod_revision(keys.loss(), cx.view.loss.modified);
    Txn::when([control_unchanged(cx), untold])
        .then([Op::put(keys.loss(), cx.encode(loss), keys.run_lease())])
        .or_else(head::reads(&cx.settings))
}

/// `own`: the member key of this node, and its lease. Where only a member may close the run, the lease may
/// have run out, and this node not have been told yet.
pub fn close(cx: &Cx, control: &Control, own: Option<(String, NodeId)>) -> Txn {
    let mut guards = vec![control_unchanged(cx)];
    if cx.name.was_held() {
        guards.extend(cx.name.guard(&cx.settings));
    }
    let mut reads = head::reads(&cx.settings);
    if let Some((key, lease)) = own {
        guards.push(Compare::new(key.clone(), Ordering::Equal, Target::Lease(lease)));
        reads.push(Op::get(key));
    }
    Txn::when(guards).then([put_control(&cx.settings, control)]).or_else(reads)
}

/// The coordinator's key says so, as of this revision.
pub fn coordinator_written(cx: &mut Cx, joined: usize, last_call: bool, lease: i64, revision: i64) {
    let record = coordinator_record(cx, joined, last_call, lease);
    cx.view.coordinator.set(Some((record, lease)), revision, revision);
}

/// The usher's key says so, as of this revision.
pub fn usher_written(cx: &mut Cx, round: u64, count: u32, revision: i64) {
    if let (Some(complete), Some(lease)) = (cx.view.complete(round), cx.leases.own()) {
        let record = usher_record(cx, round, complete, count);
        cx.view.usher.set(Some((record, lease)), revision, revision);
    }
}

/// The node's name was claimed in a transaction that took effect at this revision.
pub fn name_written(cx: &mut Cx, revision: i64) {
    let Cx { settings, leases, out, name, .. } = cx;
    name.written(settings, leases, out, revision);
}
