//! What the answers to the barrier's calls change.

use super::{Barrier, Purpose};
use crate::etcd::kv::{OpReply, TxnReply, range_of};
use crate::rendezvous::api::Outcome;
use crate::rendezvous::core::cx::Cx;
use crate::rendezvous::core::effect::Effect;
use crate::rendezvous::core::head;
use crate::rendezvous::core::txns;
use crate::rendezvous::core::view::Phase;
use crate::rendezvous::core::wish::Seat;
use crate::rendezvous::keys::RoundId;
use crate::rendezvous::records::{Control, Master};

impl Barrier {
    /// What the reply says of the head is known already.
    pub fn answered(&mut self, cx: &mut Cx, purpose: Purpose, reply: &TxnReply) -> Vec<Effect> {
        match purpose {
            Purpose::Join(round) => joined(cx, round, reply),
            Purpose::Open(control) => self.opened(cx, *control, reply),
            Purpose::ReadMembership(id) => self.membership_read(cx, &id, reply),
            Purpose::Wait(round, count) => waits(cx, round, count, reply),
            Purpose::Claim => self.claimed(cx, reply),
            Purpose::ClaimUsher(count) => self.claimed_to_usher(cx, count, reply),
            Purpose::GiveUp => vec![Effect::End(Err(self.timeout(cx, reply)))],
        }
    }

    fn opened(&mut self, cx: &mut Cx, control: Control, reply: &TxnReply) -> Vec<Effect> {
        if !reply.succeeded {
            // A member may still be left: they are counted again.
            let waits = matches!(self.seat, Seat::Waiting(_));
            return waits.then_some(Effect::CountAnew).into_iter().collect();
        }
        txns::name_written(cx, reply.revision);
        let round = control.round;
        cx.view.control_written(control, reply.revision);
        if !cx.view.is_of_this_run(reply.revision) {
            return Vec::new();
        }
        coordinates(cx, round, reply.revision, false)
    }

    fn claimed(&mut self, cx: &mut Cx, reply: &TxnReply) -> Vec<Effect> {
        let Seat::Joined(round) = self.seat else { return Vec::new() };
        if reply.succeeded {
            return coordinates(cx, round, reply.revision, true);
        }
        // A round that is complete by now is another matter: this node may be a member of it.
        if cx.view.complete(round).is_none() && !own_key_is_there(cx, reply) {
            return vec![Effect::Seat(Seat::Outside)];
        }
        Vec::new()
    }

    fn claimed_to_usher(&mut self, cx: &mut Cx, count: u32, reply: &TxnReply) -> Vec<Effect> {
        let Seat::Waiting(round) = self.seat else { return Vec::new() };
        if reply.succeeded {
            txns::usher_written(cx, round, count, reply.revision);
        } else if cx.view.complete(round).is_some() && !own_key_is_there(cx, reply) {
            return vec![Effect::Seat(Seat::Outside)];
        }
        Vec::new()
    }

    fn membership_read(&mut self, cx: &mut Cx, id: &RoundId, reply: &TxnReply) -> Vec<Effect> {
        let Phase::Complete(round, complete) = cx.view.phase() else { return Vec::new() };
        if !cx.settings.is_same(&complete.id(round), id) {
            // Another round is current by now, or one of this number in another run of this name.
            return Vec::new();
        }
        let member = reply.range(1).kvs.into_iter().next().map(|kv| {
            let key = String::from_utf8_lossy(&kv.key);
            cx.reader().member(&key, &kv.value, complete.world)
        });
        let member = match member.transpose() {
            Ok(member) => member,
            Err(error) => return vec![Effect::End(Err(error.into()))],
        };
        let Some(member) = member.filter(|_| cx.leases.own().is_some()) else {
            // Not admitted: more nodes than places.
            self.asked_for = None;
            return vec![Effect::Seat(Seat::Outside)];
        };
        let outcome = Outcome {
            round,
            attempt: complete.attempt.clone(),
            rank: member.rank,
            world: complete.world,
            master: Master { addr: complete.master_addr.clone(), port: complete.master_port },
        };
        let complete = Box::new(complete.clone());
        let result = Ok(outcome.clone());
        vec![Effect::Member { outcome, complete, next: member.next }, Effect::End(result)]
    }
}

/// What is read last when a claim is refused. The key may be gone, or another program's (an operator removed
/// or wrote it).
fn own_key_is_there(cx: &Cx, reply: &TxnReply) -> bool {
    let own = reply.range(head::reads(&cx.settings).len()).kvs;
    own.first().is_some_and(|kv| Some(kv.lease) == cx.leases.own())
}

/// This node has joined the round, and wrote the coordinator's key at `revision`.
fn coordinates(cx: &mut Cx, round: u64, revision: i64, took_over: bool) -> Vec<Effect> {
    let mut effects = vec![Effect::Seat(Seat::Joined(round))];
    if let Some(lease) = cx.leases.own() {
        txns::coordinator_written(cx, 1, false, lease, revision);
        if cx.view.coordinator_node() == Some(lease) {
            effects.push(Effect::Lead { took_over });
        }
    }
    effects
}

fn joined(cx: &mut Cx, round: u64, reply: &TxnReply) -> Vec<Effect> {
    if !reply.succeeded {
        return Vec::new();
    }
    txns::name_written(cx, reply.revision);
    if !cx.view.is_of_this_run(reply.revision) {
        // The answer took long: an operator has deleted the run meanwhile, and it restarted.
        return Vec::new();
    }
    match reply.replies.get(1) {
        Some(OpReply::Txn { succeeded: false, replies }) => {
            let range = range_of(replies, 0);
            let coordinator = range.kvs.first();
            cx.view.observe_coordinator(&cx.settings, coordinator, reply.revision);
            vec![Effect::Seat(Seat::Joined(round))]
        }
        _ => coordinates(cx, round, reply.revision, true),
    }
}

fn waits(cx: &mut Cx, round: u64, count: u32, reply: &TxnReply) -> Vec<Effect> {
    if !reply.succeeded {
        return Vec::new();
    }
    txns::name_written(cx, reply.revision);
    if !cx.view.is_of_this_run(reply.revision) {
        return Vec::new();
    }
    match reply.replies.first() {
        Some(OpReply::Txn { succeeded: false, replies }) => {
            let range = range_of(replies, 0);
            cx.view.observe_usher(&cx.settings, range.kvs.first(), reply.revision);
        }
        _ => txns::usher_written(cx, round, count, reply.revision),
    }
    vec![Effect::Seat(Seat::Waiting(round))]
}
