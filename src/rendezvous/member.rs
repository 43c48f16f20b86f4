//! Between rounds: what a member of a world learns from its watches, without asking etcd.

use super::keys::{NodeId, node_of};
use super::machine::{
    Broken, Cause, Machine, OnMemberLoss, Outcome, Settings, Step, Time, WatchId,
};
use super::records::{Control, Final, Loss, Member, RoundId, State};
use super::variants::Variant;
use crate::etcd::kv::{Compare, Event, Op, Txn, TxnReply};
use crate::etcd::{WatchMessage, WatchSpec};

/// A place in a completed round and what happened to it since.
pub(super) struct Membership {
    pub id: RoundId,
    pub rank: u32,
    pub world: u32,
    lease: i64,
    /// How often the run had been reopened then.
    reopened: u32,
    /// The member that this one watches.
    next: NodeId,
    /// This node's own lease was lost.
    pub expelled: bool,
    /// How to name the next member, which is gone.
    gone: Option<String>,
    /// The watch of the next member's key.
    watch: Option<WatchId>,
    /// Events are missing: read what is there.
    resync: bool,
}

impl Membership {
    /// Who is alone in its world watches itself. Its lease may be there all the same: a late copy of the
    /// request for it grants it anew when it was revoked, and brings no key back.
    fn next_is_gone(&mut self, name: String) {
        if self.next == self.lease {
            self.expelled = true;
        } else {
            self.gone = Some(name);
        }
    }
}

impl Machine {
    pub(super) fn become_member(
        &mut self,
        outcome: &Outcome,
        complete: &Final,
        lease: i64,
        next: NodeId,
    ) {
        self.membership = Some(Membership {
            id: outcome.id(),
            rank: outcome.rank,
            world: outcome.world,
            lease,
            reopened: self.control.value.as_ref().map_or(0, |control| control.reopened),
            next,
            expelled: false,
            gone: None,
            watch: None,
            resync: false,
        });
        self.remark_limits(complete);
        // By the record, and not by the answer to its completion: that may have been lost.
        if self.leaves.as_ref() == Some(&complete.attempt) {
            self.begin_to_sweep(outcome.id());
        }
        let completed = self.control.modified;
        // Where nothing was written between the last member key and the completion, no member was lost
        // then, and etcd need not look for it: that takes it long for thousands (`docs/protocol.md`).
        let quiet = completed == complete.since.saturating_add(1)
            || self.settings.wrong(Variant::WatchesFromFinal);
        let since = if quiet { completed } else { complete.since.min(completed) };
        self.watch_next(since.saturating_add(1));
    }

    /// Each member watches one other, in a ring, and tells all of a loss: etcd's work for a lost member
    /// would else be an event for each of them, and with many lost at once the square of that. As long
    /// as anybody is left somebody's next one is among the lost.
    fn watch_next(&mut self, start_revision: i64) {
        let Some(Membership { id, next, .. }) = &self.membership else { return };
        let watch = self.watch(WatchSpec {
            range_end: None,
            key: self.settings.keys.member(id, *next).into(),
            start_revision,
            deletes_only: true,
            // Its value says who it was.
            with_previous: true,
        });
        if let Some(membership) = &mut self.membership {
            membership.watch = Some(watch);
        }
    }

    pub(super) fn stop_watching_members(&mut self) {
        let watch = self.membership.as_mut().and_then(|membership| membership.watch.take());
        self.unwatch(watch);
    }

    pub(super) fn watches_as_member(&self, watch: WatchId) -> bool {
        self.membership.as_ref().is_some_and(|membership| membership.watch == Some(watch))
    }

    /// People should know where this node's own limits are not those of the round that it is in.
    fn remark_limits(&mut self, complete: &Final) {
        let (min, max) = (complete.story.min as usize, complete.story.max as usize);
        let own = &self.settings;
        let mut differ = Vec::new();
        if (max, min) != (0, 0) && (min, max) != (own.min, own.max) {
            differ.push(format!(
                "{min} to {max} nodes, where this node has {} to {}",
                own.min, own.max
            ));
        }
        if complete.order != own.order {
            differ.push(format!("ranks by {}, here by {}", complete.order, own.order));
        }
        if self.run_ttl().as_secs() != own.run_ttl.as_secs() {
            differ.push(format!(
                "a run_ttl of {} s, here of {} s",
                self.run_ttl().as_secs(),
                own.run_ttl.as_secs()
            ));
        }
        if !differ.is_empty() {
            let differ = differ.join("; ");
            self.say(format!(
                "what the run has is in force, not what this node was given: {differ}"
            ));
        }
    }

    /// Whether this node, under the lease it has now, is in the world of this round.
    pub(super) fn was_member(&self, id: &RoundId) -> bool {
        self.membership.as_ref().is_some_and(|membership| {
            self.settings.is_same(&membership.id, id)
                && !membership.expelled
                && self.lease == Some(membership.lease)
        })
    }

    /// The member key of this node, and its lease.
    pub(super) fn own_member_key(&self) -> Option<(String, i64)> {
        let membership = self.membership.as_ref()?;
        Some((self.settings.keys.member(&membership.id, membership.lease), membership.lease))
    }

    /// This node is no member any more: its key is gone.
    pub(super) fn expel(&mut self) {
        if let Some(membership) = &mut self.membership {
            membership.expelled = true;
        }
    }

    /// Why the run is none of this node's to close when it ends; `None` where it is a live member of the
    /// last completed world, whose next round may be open.
    pub(super) fn why_not_close(&self) -> Option<String> {
        if self.settings.wrong(Variant::ClosesFromOutside) {
            return self.excluded();
        }
        if let Some(reason) = self.excluded() {
            return Some(reason);
        }
        let Some(control) = &self.control.value else {
            return Some("there is no run".into());
        };
        // A run that was closed and opened again is another one's, also where its last world was this node's.
        let since = self.membership.as_ref().map_or(0, |membership| membership.reopened);
        if control.reopened != since && !self.settings.wrong(Variant::MissesReopening) {
            return Some("the run was closed and opened again since".into());
        }
        match control.last() {
            Some(last) if self.was_member(&last.id) => None,
            Some(last) => Some(format!(
                "this node is no member of round {}, the last one that was completed",
                last.id.round
            )),
            None => Some("no round was completed, so others may still come".into()),
        }
    }

    pub(super) fn nodes_waiting(&self) -> usize {
        let Some(membership) = &self.membership else { return 0 };
        if self.joining.is_some() {
            return 0;
        }
        match &self.control.value {
            // Its agent is to come back and be told.
            _ if membership.expelled || self.another_version().is_some() => 1,
            Some(Control { state: State::Closed(_), .. }) => 0,
            _ if self.exclusion().is_some() => 1,
            Some(control) if is_current(&self.settings, control, &membership.id) => {
                let lost = match self.settings.on_member_loss {
                    OnMemberLoss::Restart => usize::from(self.loss_of(&membership.id).is_some()),
                    OnMemberLoss::Ignore => 0,
                };
                let told = self.usher.value.as_ref().map(|(told, _)| told);
                let told = told.filter(|told| told.id == membership.id);
                lost + told.map_or(0, |told| told.count as usize)
            }
            // Somebody has opened a later round, or the run's state is gone: this world is over (I2).
            _ => 1,
        }
    }

    /// Why a wait for another member of the round would be in vain.
    pub(super) fn broken_round(&self) -> Option<Broken> {
        let membership = self.membership.as_ref()?;
        let id = &membership.id;
        let RoundId { round, .. } = id;
        let broken = |cause, reason| Some(Broken { id: id.clone(), cause, reason });
        if membership.expelled {
            return broken(Cause::LeaseLost, format!("this node lost its lease in round {round}"));
        }
        if let Some(error) = self.another_version() {
            return broken(Cause::Excluded, error.to_string());
        }
        if !self.is_closed()
            && let Some(error) = self.exclusion()
        {
            return broken(Cause::Excluded, error.to_string());
        }
        match &self.control.value {
            Some(Control { state: State::Closed(_), .. }) => None,
            Some(control) if is_current(&self.settings, control, id) => {
                let restarts = self.settings.on_member_loss == OnMemberLoss::Restart;
                let loss = self.loss_of(id).filter(|_| restarts)?;
                broken(Cause::MemberLost, format!("{} of round {round} was lost", loss.member))
            }
            Some(Control { round: current, state: State::Open { by, .. }, .. }) => {
                let reason = format!("round {round} is over: {by} opened round {current}");
                broken(Cause::NextRound, reason)
            }
            _ => broken(Cause::NextRound, format!("round {round} is over")),
        }
    }

    /// Who is gone, where that makes a member ask for a new round.
    pub(super) fn why_lost(&self, id: &RoundId) -> Option<String> {
        let restarts = self.settings.on_member_loss == OnMemberLoss::Restart;
        let loss = self.loss_of(id).filter(|_| restarts)?;
        Some(format!("{} is gone", loss.member))
    }

    /// What makes this member join again, as far as it knows.
    pub(super) fn why_again(&self) -> Option<String> {
        let id = &self.membership.as_ref()?.id;
        let waiting = self.nodes_waiting();
        self.why_lost(id).or_else(|| match waiting {
            0 => None,
            1 => Some("1 node was waiting".into()),
            waiting => Some(format!("{waiting} nodes were waiting")),
        })
    }

    pub(super) fn loss_of(&self, id: &RoundId) -> Option<&Loss> {
        self.loss.value.as_ref().filter(|loss| loss.is_of(id))
    }

    pub(super) fn step_member(&mut self, now: Time) {
        let Some(membership) = &self.membership else { return };
        let goes_on = self
            .control
            .value
            .as_ref()
            .is_some_and(|c| is_current(&self.settings, c, &membership.id));
        if !goes_on {
            // Members of a closed run may go as they like, and they will, all of them; and those of an earlier
            // round go with its keys, all at once.
            return self.stop_watching_members();
        }
        let deadline = now + self.settings.close_timeout;
        let id = membership.id.clone();
        let keys = &self.settings.keys;
        if membership.resync {
            let reads = [Op::get(keys.control()), Op::get(keys.member(&id, membership.next))];
            self.txn(Step::Confirm(id), Txn::when([]).then(reads), deadline);
        } else if let Some(gone) = &membership.gone
            && self.loss_of(&id).is_none()
            && !self.settings.wrong(Variant::UntoldLoss)
        {
            // Members may leave a run that is closed, and two watches are not ordered between each
            // other: hence the guard. Of those who saw it too the first one writes.
            let loss = Loss::of(&id, gone.clone());
            let untold = Compare::mod_revision(keys.loss(), self.loss.modified);
            let txn = Txn::when([self.control_unchanged(), untold])
                .then([Op::put(keys.loss(), self.encode(&loss), keys.run_lease())])
                .or_else(self.get_head());
            self.txn(Step::Announce(loss), txn, deadline);
        } else {
            self.step_sweep(now);
        }
    }

    pub(super) fn announced(&mut self, loss: Loss, reply: &TxnReply) {
        if reply.succeeded {
            self.loss.set(Some(loss), reply.revision, reply.revision);
        } else {
            self.observe_head(reply);
        }
    }

    pub(super) fn confirmed(&mut self, id: &RoundId, reply: &TxnReply) {
        self.observe_control(reply.range(0).kvs.first(), reply.revision);
        if self.joining.is_some() {
            // It is to be a member of another round, and watches nobody of this one any more.
            return;
        }
        let Some(membership) = self.membership.as_mut().filter(|m| m.id == *id) else { return };
        membership.resync = false;
        if reply.range(1).kvs.is_empty() && membership.gone.is_none() {
            membership.next_is_gone(format!("node {:016x}", membership.next));
        }
        self.stop_watching_members();
        self.watch_next(reply.revision.saturating_add(1));
    }

    pub(super) fn member_watched(&mut self, watch: WatchId, message: WatchMessage) {
        let reader = self.reader();
        let Some(membership) = &mut self.membership else { return };
        if membership.watch != Some(watch) {
            return;
        }
        let events = match message {
            WatchMessage::Events(events) => events,
            // Refused (rights were taken away) it may be let in again later. The head's watch is refused
            // as well, and until that is back nothing is asked here.
            WatchMessage::Compacted { .. } | WatchMessage::Failed(_) => {
                membership.resync = true;
                return;
            }
            WatchMessage::Started(_) | WatchMessage::HistoryLost => return,
        };
        for event in events {
            let (Event::Delete(kv), Some(node)) = (&event, node_of(&event.kv().key)) else {
                continue;
            };
            let record: Option<Member> = reader.record("", &kv.value).ok();
            let name = record.map_or_else(
                || format!("node {node:016x}"),
                |record| format!("rank {} on {}", record.rank, record.node),
            );
            membership.next_is_gone(name);
        }
    }
}

/// The record is that of this completed round.
fn is_current(settings: &Settings, control: &Control, id: &RoundId) -> bool {
    control.current().is_some_and(|current| settings.is_same(&current, id))
}
