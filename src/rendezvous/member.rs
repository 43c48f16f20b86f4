//! Between rounds: what a member of a world learns from its watches, without asking etcd.

use std::collections::BTreeMap;

use super::keys::{NodeId, node_of};
use super::machine::{Machine, OnMemberLoss, Outcome, Step, Time, WatchId};
use super::records::{self, Control, Final, Loss, State};
use super::variants::{Variant, wrong};
use crate::etcd::kv::{Compare, Event, KeyValue, Op, Range, Txn, TxnReply};
use crate::etcd::{WatchMessage, WatchSpec};

/// A place in a completed round and what happened to it since.
pub(super) struct Membership {
    pub round: u64,
    pub rank: u32,
    pub world: u32,
    lease: i64,
    /// The member that this one watches.
    next: NodeId,
    attempt: String,
    /// This node's own lease was lost.
    pub expelled: bool,
    /// How to name the next member, which is gone.
    gone: Option<String>,
    /// Those who wait, with their domains.
    waiting: BTreeMap<NodeId, Option<String>>,
    watches: Option<Watches>,
    /// Events are missing: read what is there.
    resync: bool,
}

struct Watches {
    member: WatchId,
    waiting: WatchId,
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
            round: outcome.round,
            rank: outcome.rank,
            world: outcome.world,
            lease,
            next,
            attempt: complete.attempt.clone(),
            expelled: false,
            gone: None,
            waiting: BTreeMap::new(),
            watches: None,
            resync: false,
        });
        // Waiting keys of a round are written after its completion.
        let completed = self.control.modified;
        // Where nothing was written between the last member key and the completion, no member was lost
        // then, and etcd need not look for it: that takes it long for thousands (`docs/protocol.md`).
        let quiet =
            completed == complete.since.saturating_add(1) || wrong(Variant::WatchesFromFinal);
        let since = if quiet { completed } else { complete.since.min(completed) };
        self.watch_members(since.saturating_add(1), completed.saturating_add(1));
    }

    /// Each member watches one other, in a ring, and tells all of a loss: etcd's work for a lost member
    /// would else be an event for each of them, and with many lost at once the square of that. As long
    /// as anybody is left somebody's next one is among the lost.
    fn watch_members(&mut self, members_from: i64, waiting_from: i64) {
        let Some(Membership { round, attempt, next, .. }) = &self.membership else { return };
        let keys = &self.settings.keys;
        let (next, waiting) = (keys.member(*round, attempt, *next), keys.waitings(*round));
        let member = self.watch(WatchSpec {
            range_end: None,
            key: next.into(),
            start_revision: members_from,
            deletes_only: true,
        });
        let waiting = self.watch_prefix(waiting, waiting_from, false);
        if let Some(membership) = &mut self.membership {
            membership.watches = Some(Watches { member, waiting });
        }
    }

    pub(super) fn stop_watching_members(&mut self) {
        let watches = self.membership.as_mut().and_then(|membership| membership.watches.take());
        if let Some(watches) = watches {
            self.unwatch(Some(watches.member));
            self.unwatch(Some(watches.waiting));
        }
    }

    pub(super) fn watches_as_member(&self, watch: WatchId) -> bool {
        let watches = self.membership.as_ref().and_then(|membership| membership.watches.as_ref());
        watches.is_some_and(|watches| watches.member == watch || watches.waiting == watch)
    }

    /// Whether this node, under the lease it has now, is in the world of this round.
    pub(super) fn was_member(&self, round: u64) -> bool {
        self.membership
            .as_ref()
            .is_some_and(|m| m.round == round && !m.expelled && self.lease == Some(m.lease))
    }

    pub(super) fn nodes_waiting(&self) -> usize {
        let Some(membership) = &self.membership else { return 0 };
        if self.joining.is_some() {
            return 0;
        }
        match &self.control.value {
            _ if membership.expelled => 1,
            Some(Control { state: State::Closed(_), .. }) => 0,
            // Its agent is to come back and be told.
            _ if self.exclusion().is_some() => 1,
            Some(Control { round, state: State::Final(_), .. }) if *round == membership.round => {
                let lost = usize::from(self.loss_of(*round).is_some());
                let live = (membership.world as usize).saturating_sub(lost);
                let order = self.settings.order;
                let room = order.largest(self.settings.max).saturating_sub(live);
                let waiting = membership.waiting.values().map(Option::as_deref);
                let lost = match self.settings.on_member_loss {
                    OnMemberLoss::Restart => lost,
                    OnMemberLoss::Ignore => 0,
                };
                lost + order.placeable(waiting).min(room)
            }
            // Somebody has opened a later round, or the run's state is gone: this world is over (I2).
            _ => 1,
        }
    }

    /// Why a wait for another member of the round would be in vain.
    pub(super) fn broken_round(&self) -> Option<(u64, String)> {
        let membership = self.membership.as_ref()?;
        let round = membership.round;
        if membership.expelled {
            return Some((round, format!("this node lost its lease in round {round}")));
        }
        if !self.is_closed()
            && let Some(error) = self.exclusion()
        {
            return Some((round, error.to_string()));
        }
        match &self.control.value {
            Some(Control { state: State::Closed(_), .. }) => None,
            Some(Control { round: current, state: State::Final(_), .. }) if *current == round => {
                let restarts = self.settings.on_member_loss == OnMemberLoss::Restart;
                let loss = self.loss_of(round).filter(|_| restarts)?;
                Some((round, format!("{} of round {round} was lost", loss.member)))
            }
            Some(Control { round: current, state: State::Open { by, .. }, .. }) => {
                Some((round, format!("round {round} is over: {by} opened round {current}")))
            }
            _ => Some((round, format!("round {round} is over"))),
        }
    }

    /// Who is gone, where that makes a member ask for a new round.
    pub(super) fn why_lost(&self, round: u64) -> Option<String> {
        let restarts = self.settings.on_member_loss == OnMemberLoss::Restart;
        let loss = self.loss_of(round).filter(|_| restarts)?;
        Some(format!("{} is gone", loss.member))
    }

    /// What makes this member join again, as far as it knows.
    pub(super) fn why_again(&self) -> Option<String> {
        let round = self.membership.as_ref()?.round;
        let waiting = self.nodes_waiting();
        self.why_lost(round).or_else(|| match waiting {
            0 => None,
            1 => Some("1 node was waiting".into()),
            waiting => Some(format!("{waiting} nodes were waiting")),
        })
    }

    fn loss_of(&self, round: u64) -> Option<&Loss> {
        self.loss.value.as_ref().filter(|loss| loss.round == round)
    }

    pub(super) fn step_member(&mut self, now: Time) {
        let Some(membership) = &self.membership else { return };
        let goes_on = matches!(
            &self.control.value,
            Some(Control { round, state: State::Final(_), .. }) if *round == membership.round
        );
        if !goes_on {
            // Members of a closed run may go as they like, and they will, all of them; and those of an earlier
            // round go with its keys, all at once.
            return self.stop_watching_members();
        }
        let deadline = now + self.settings.close_timeout;
        let round = membership.round;
        let keys = &self.settings.keys;
        if membership.resync {
            let reads = [
                Op::get(keys.control()),
                Op::get(keys.member(round, &membership.attempt, membership.next)),
                Op::Get(Range::prefix(keys.waitings(round))),
            ];
            self.txn(Step::Confirm(round), Txn::when([]).then(reads), deadline);
        } else if let Some(gone) = &membership.gone
            && self.loss_of(round).is_none()
            && !wrong(Variant::UntoldLoss)
        {
            // Members may leave a run that is closed, and two watches are not ordered between each
            // other: hence the guard. Of those who saw it too the first one writes.
            let loss = Loss { round, member: gone.clone() };
            let untold = Compare::mod_revision(keys.loss(), self.loss.modified);
            let txn = Txn::when([self.control_unchanged(), untold])
                .then([Op::put(keys.loss(), records::encode(&loss), keys.run_lease())])
                .or_else(self.get_head());
            self.txn(Step::Announce(loss), txn, deadline);
        }
    }

    pub(super) fn announced(&mut self, loss: Loss, reply: &TxnReply) {
        if reply.succeeded {
            self.loss.set(Some(loss), reply.revision, reply.revision);
        } else {
            self.observe_head(reply);
        }
    }

    pub(super) fn confirmed(&mut self, round: u64, reply: &TxnReply) {
        self.observe_control(reply.range(0).kvs.first(), reply.revision);
        let Some(membership) = self.membership.as_mut().filter(|m| m.round == round) else {
            return;
        };
        membership.resync = false;
        if reply.range(1).kvs.is_empty() {
            membership.gone.get_or_insert_with(|| format!("node {:016x}", membership.next));
        }
        membership.waiting = reply.range(2).kvs.iter().filter_map(waiting_node).collect();
        self.stop_watching_members();
        let next = reply.revision.saturating_add(1);
        self.watch_members(next, next);
    }

    pub(super) fn member_watched(&mut self, watch: WatchId, message: WatchMessage) {
        let Some(membership) = &mut self.membership else { return };
        let Some(watches) = &membership.watches else { return };
        let of_member = watches.member == watch;
        if !of_member && watches.waiting != watch {
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
            let Some(node) = node_of(&event.kv().key) else { continue };
            match (of_member, &event) {
                (true, Event::Delete(kv)) => {
                    let record: Option<records::Member> = records::decode("", &kv.value).ok();
                    if node != membership.lease {
                        let name = record.map_or_else(
                            || format!("node {node:016x}"),
                            |r| format!("rank {} on {}", r.rank, r.node),
                        );
                        membership.gone = Some(name);
                    }
                }
                (true, Event::Put(_)) => {}
                (false, Event::Put(kv)) => membership.waiting.extend(waiting_node(kv)),
                (false, Event::Delete(_)) => drop(membership.waiting.remove(&node)),
            }
        }
    }
}

/// The node that waits by this key, and its domain. What another program writes there waits for nothing,
/// and would stay.
fn waiting_node(kv: &KeyValue) -> Option<(NodeId, Option<String>)> {
    let node = node_of(&kv.key).filter(|node| kv.lease == *node)?;
    let record: Option<records::Waiting> = records::decode("", &kv.value).ok();
    Some((node, record.and_then(|record| record.labels.domain)))
}
