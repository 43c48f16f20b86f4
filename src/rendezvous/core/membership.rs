//! A place in a completed round and what happened to it since: what a member learns from its watch, without
//! asking etcd.

use super::cx::Cx;
use super::explain;
use super::out::Slot;
use super::txns;
use crate::etcd::kv::{Event, TxnReply};
use crate::etcd::{WatchMessage, WatchSpec};
use crate::rendezvous::api::{Outcome, WatchId};
use crate::rendezvous::keys::{NodeId, RoundId, node_of};
use crate::rendezvous::records::{Final, Loss, Member};
use crate::rendezvous::variant::Variant;

/// What the call under way is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Events are missing: is the next member there?
    Confirm,
    /// With the record of the loss.
    Announce(Loss),
}

pub struct Membership {
    pub id: RoundId,
    pub rank: u32,
    pub world: u32,
    pub lease: NodeId,
    /// How often the run had been reopened then.
    pub reopened: u32,
    /// This node's own lease was lost.
    pub expelled: bool,
    /// The member that this one watches. Each watches one other, in a ring, and tells all of a loss: etcd's
    /// work for a lost member would else be an event for each of them, and with many lost at once the square of
    /// that. As long as anybody is left somebody's next one is among the lost.
    next: NodeId,
    /// How to name the next member, which is gone.
    gone: Option<String>,
    /// The watch of the next member's key.
    watch: Option<WatchId>,
    /// Events are missing: read what is there.
    resync: bool,
    pub slot: Slot<Purpose>,
}

impl Membership {
    pub fn new(
        cx: &mut Cx,
        outcome: &Outcome,
        complete: &Final,
        lease: NodeId,
        next: NodeId,
    ) -> Self {
        let mut membership = Self {
            id: outcome.id(),
            rank: outcome.rank,
            world: outcome.world,
            lease,
            reopened: cx.view.reopened(),
            next,
            expelled: false,
            gone: None,
            watch: None,
            resync: false,
            slot: Slot::default(),
        };
        if let Some(remark) = explain::other_limits(cx, complete) {
            cx.remarks.say(remark);
        }
        let completed = cx.view.control.modified;
        // Where nothing was written between the last member key and the completion, no member was lost
        // then, and etcd need not look for it: that takes it long for thousands (`docs/protocol.md`).
        let quiet = completed == complete.since.saturating_add(1)
            || cx.settings.wrong(Variant::WatchesFromFinal);
        let since = if quiet { completed } else { complete.since.min(completed) };
        membership.watch_next(cx, since.saturating_add(1));
        membership
    }

    fn watch_next(&mut self, cx: &mut Cx, start_revision: i64) {
        self.watch = Some(cx.out.watch(WatchSpec {
            range_end: None,
            key: cx.settings.keys.member(&self.id, self.next).into(),
            start_revision,
            deletes_only: true,
            // Its value says who it was.
            with_previous: true,
        }));
    }

    pub fn stop_watching(&mut self, cx: &mut Cx) {
        cx.out.unwatch(self.watch.take());
    }

    pub fn watches(&self, watch: WatchId) -> bool {
        self.watch == Some(watch)
    }

    /// The member key of this node, and its lease.
    pub fn own_key(&self, cx: &Cx) -> (String, NodeId) {
        (cx.settings.keys.member(&self.id, self.lease), self.lease)
    }

    /// Whether this node, under the lease it has now, is in the world of this round.
    pub fn is_live(&self, cx: &Cx, id: &RoundId) -> bool {
        cx.settings.is_same(&self.id, id) && !self.expelled && cx.leases.own() == Some(self.lease)
    }

    /// The record is that of this completed round.
    pub fn is_current(&self, cx: &Cx) -> bool {
        cx.view.current().is_some_and(|current| cx.settings.is_same(&current, &self.id))
    }

    /// Whoever is alone in its world watches itself. Its lease may exist nevertheless: a late copy of the
    /// request for it grants it again when it was revoked, and brings no key back.
    fn next_is_gone(&mut self, name: String) {
        if self.next == self.lease {
            self.expelled = true;
        } else {
            self.gone = Some(name);
        }
    }

    /// `true` where there was something to do.
    pub fn step(&mut self, cx: &mut Cx) -> bool {
        let deadline = cx.now + cx.settings.close_timeout;
        if self.resync {
            let txn = txns::read_membership(&cx.settings, &self.id, self.next);
            cx.out.txn(&mut self.slot, Purpose::Confirm, txn, deadline);
            return true;
        }
        let Some(gone) = &self.gone else { return false };
        if cx.view.loss_of(&self.id).is_some() || cx.settings.wrong(Variant::UntoldLoss) {
            return false;
        }
        let loss = Loss::of(&self.id, gone.clone());
        let txn = txns::announce(cx, &loss);
        cx.out.txn(&mut self.slot, Purpose::Announce(loss), txn, deadline);
        true
    }

    /// What the reply says of the head is known already. `joining`: the node is to be a member of another
    /// round, and watches nobody of this one any more.
    pub fn answered(&mut self, cx: &mut Cx, purpose: Purpose, reply: &TxnReply, joining: bool) {
        match purpose {
            Purpose::Announce(loss) if reply.succeeded => {
                cx.view.loss.set(Some(loss), reply.revision, reply.revision);
            }
            Purpose::Announce(_) => {}
            Purpose::Confirm if joining => {}
            Purpose::Confirm => {
                self.resync = false;
                if reply.range(1).kvs.is_empty() && self.gone.is_none() {
                    self.next_is_gone(format!("node {:016x}", self.next));
                }
                self.stop_watching(cx);
                self.watch_next(cx, reply.revision.saturating_add(1));
            }
        }
    }

    pub fn watched(&mut self, cx: &Cx, message: WatchMessage) {
        let events = match message {
            WatchMessage::Events(events) => events,
            // If rights were revoked, the watch may be accepted again later. The head's watch is refused
            // as well, and until that is back nothing is asked here.
            WatchMessage::Compacted { .. } | WatchMessage::Failed(_) => {
                self.resync = true;
                return;
            }
            WatchMessage::Started(_) | WatchMessage::HistoryLost => return,
        };
        for event in events {
            let (Event::Delete(kv), Some(node)) = (&event, node_of(&event.kv().key)) else {
                continue;
            };
            let record: Option<Member> = cx.reader().record("", &kv.value).ok();
            let name = record.map_or_else(
                || format!("node {node:016x}"),
                |record| format!("rank {} on {}", record.rank, record.node),
            );
            self.next_is_gone(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{OTHER, OWN, complete, cx, puts, sees, sent};
    use super::*;
    use crate::etcd::kv::KeyValue;
    use crate::rendezvous::api::Action;
    use crate::rendezvous::records::{Master, State};

    fn member(cx: &mut Cx, next: NodeId) -> Membership {
        sees(cx, 1, State::Final(complete(2)), 5);
        let master = Master { addr: "b".into(), port: 1 };
        let outcome = Outcome { round: 1, attempt: "8.1".into(), rank: 0, world: 2, master };
        Membership::new(cx, &outcome, &complete(2), OWN, next)
    }

    fn gone(cx: &Cx, own: &Membership, node: NodeId) -> WatchMessage {
        let key = cx.settings.keys.member(&own.id, node).into();
        WatchMessage::Events(vec![Event::Delete(KeyValue { key, ..KeyValue::default() })])
    }

    #[test]
    fn a_member_watches_the_next_one_and_tells_all_of_its_loss_once() {
        let mut cx = cx();
        let mut own = member(&mut cx, OTHER);
        let [Action::Watch(watch, spec)] = &cx.out.take()[..] else { panic!("no watch") };
        assert!(own.watches(*watch) && spec.start_revision == 6 && spec.deletes_only);
        assert!(!own.step(&mut cx), "there is nothing to do");
        own.watched(&cx, gone(&cx, &own, OTHER));
        assert!(own.step(&mut cx));
        let Some(Purpose::Announce(loss)) = own.slot.purpose().cloned() else { panic!("untold") };
        assert_eq!(puts(&sent(&mut cx)), ["head/loss"]);
        let reply = TxnReply { revision: 8, succeeded: true, replies: Vec::new() };
        own.answered(&mut cx, Purpose::Announce(loss), &reply, false);
        assert!(!own.step(&mut cx), "it is told");
    }

    #[test]
    fn what_was_missed_is_read_and_watched_from_there_on() {
        let mut cx = cx();
        let mut own = member(&mut cx, OTHER);
        own.watched(&cx, WatchMessage::Compacted { oldest: 9 });
        cx.out.take();
        assert!(own.step(&mut cx));
        cx.out.take();
        let reply = TxnReply { revision: 9, succeeded: true, replies: Vec::new() };
        own.answered(&mut cx, Purpose::Confirm, &reply, false);
        let actions = cx.out.take();
        assert!(
            matches!(&actions[..], [Action::Unwatch(_), Action::Watch(_, spec)] if spec.start_revision == 10)
        );
        assert!(own.gone.is_some(), "its key was not there");
    }

    #[test]
    fn a_member_that_is_alone_sees_its_own_key_go() {
        let mut cx = cx();
        let mut own = member(&mut cx, OWN);
        own.watched(&cx, gone(&cx, &own, OWN));
        assert!(own.expelled && own.gone.is_none());
    }
}
