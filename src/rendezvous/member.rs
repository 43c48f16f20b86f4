//! Between rounds: what a member of a world learns from its watches, without asking etcd.

use std::collections::{BTreeMap, BTreeSet};

use super::keys::{NodeId, node_of};
use super::machine::{Machine, OnMemberLoss, Outcome, Step, Time, WatchId};
use super::records::{self, Control, Final, State};
use super::variants::{Variant, wrong};
use crate::etcd::kv::{Event, Op, Range, Txn, TxnReply, prefix_end};
use crate::etcd::{WatchMessage, WatchSpec};

/// A place in a completed round and what happened to it since.
pub(super) struct Membership {
    pub round: u64,
    pub rank: u32,
    pub world: u32,
    lease: i64,
    attempt: String,
    /// This node's own lease was lost.
    pub expelled: bool,
    /// Members whose keys are gone: when, and what their record said of them.
    lost: BTreeMap<NodeId, (i64, String)>,
    /// Members that are gone without having been seen to go: their number is all that is known.
    unseen: usize,
    /// How many of the lost are known to be no departure from a closed run.
    confirmed: usize,
    /// How many of them the question under way is about.
    asked: usize,
    waiting: BTreeSet<NodeId>,
    watches: Option<Watches>,
    /// Events are missing: count what is there.
    resync: bool,
}

impl Membership {
    fn lost(&self) -> usize {
        self.lost.len() + self.unseen
    }
}

struct Watches {
    members: WatchId,
    waiting: WatchId,
}

impl Machine {
    pub(super) fn become_member(&mut self, outcome: &Outcome, complete: &Final, lease: i64) {
        self.membership = Some(Membership {
            round: outcome.round,
            rank: outcome.rank,
            world: outcome.world,
            lease,
            attempt: complete.attempt.clone(),
            expelled: false,
            lost: BTreeMap::new(),
            unseen: 0,
            confirmed: 0,
            asked: 0,
            waiting: BTreeSet::new(),
            watches: None,
            resync: false,
        });
        // Waiting keys of a round are written after its completion, member keys not before `since`.
        let completed = self.control.modified;
        let since = if wrong(Variant::WatchesFromFinal) { completed } else { complete.since };
        self.watch_members(since + 1, completed + 1);
    }

    fn watch_members(&mut self, members_from: i64, waiting_from: i64) {
        let Some(Membership { round, attempt, .. }) = &self.membership else { return };
        let keys = &self.settings.keys;
        let (members, waiting) = (keys.members(*round, attempt), keys.waitings(*round));
        let members = self.watch(WatchSpec {
            range_end: Some(prefix_end(members.as_bytes())),
            key: members.into(),
            start_revision: members_from,
            deletes_only: true,
        });
        let waiting = self.watch(WatchSpec {
            range_end: Some(prefix_end(waiting.as_bytes())),
            key: waiting.into(),
            start_revision: waiting_from,
            deletes_only: false,
        });
        if let Some(membership) = &mut self.membership {
            membership.watches = Some(Watches { members, waiting });
        }
    }

    pub(super) fn stop_watching_members(&mut self) {
        let watches = self.membership.as_mut().and_then(|membership| membership.watches.take());
        if let Some(watches) = watches {
            self.unwatch(Some(watches.members));
            self.unwatch(Some(watches.waiting));
        }
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
            Some(Control { round, state: State::Final(_), .. }) if *round == membership.round => {
                let live = (membership.world as usize).saturating_sub(membership.confirmed);
                let room = self.settings.max.saturating_sub(live);
                let lost = match self.settings.on_member_loss {
                    OnMemberLoss::Restart => membership.confirmed,
                    OnMemberLoss::Ignore => 0,
                };
                lost + membership.waiting.len().min(room)
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
        match &self.control.value {
            Some(Control { state: State::Closed(_), .. }) => None,
            Some(Control { round: current, state: State::Final(_), .. }) if *current == round => {
                let restarts = self.settings.on_member_loss == OnMemberLoss::Restart;
                if membership.confirmed == 0 || !restarts {
                    return None;
                }
                let names = membership.lost.values().map(|(_, name)| name.as_str());
                let names: Vec<&str> = names.collect();
                let names = if names.is_empty() { "a member".into() } else { names.join(", ") };
                Some((round, format!("{names} of round {round} was lost")))
            }
            Some(Control { round: current, state: State::Open { by, .. }, .. }) => {
                Some((round, format!("round {round} is over: {by} opened round {current}")))
            }
            _ => Some((round, format!("round {round} is over"))),
        }
    }

    pub(super) fn step_member(&mut self, now: Time) {
        let Some(membership) = &mut self.membership else { return };
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
        let control = Op::get(keys.control());
        if membership.resync {
            let reads = [
                control,
                Op::Get(Range::prefix(keys.members(round, &membership.attempt)).count_only()),
                Op::Get(Range::prefix(keys.waitings(round)).keys_only()),
            ];
            self.txn(Step::Confirm(round), Txn::when([]).then(reads), deadline);
        } else if membership.lost() > membership.confirmed {
            membership.asked = membership.lost();
            // The deletion may be a departure from a run that was closed just before, and the two watches
            // are not ordered: ask what the control record says now.
            self.txn(Step::Confirm(round), Txn::when([]).then([control]), deadline);
        }
    }

    pub(super) fn confirmed(&mut self, round: u64, reply: &TxnReply) {
        self.observe_control(reply.range(0).kvs.first(), reply.revision);
        let Some(membership) = self.membership.as_mut().filter(|m| m.round == round) else {
            return;
        };
        if reply.replies.len() == 1 {
            // Losses that were seen after the question was sent are asked about again.
            membership.confirmed = membership.asked;
            return;
        }
        membership.resync = false;
        let present = usize::try_from(reply.range(1).count).unwrap_or(0);
        let lost = (membership.world as usize).saturating_sub(present);
        let seen = membership.lost.values().filter(|(at, _)| *at <= reply.revision).count();
        membership.unseen = lost.saturating_sub(seen);
        membership.confirmed = lost;
        membership.waiting = reply.range(2).kvs.iter().filter_map(|kv| node_of(&kv.key)).collect();
        self.stop_watching_members();
        self.watch_members(reply.revision + 1, reply.revision + 1);
    }

    pub(super) fn member_watched(&mut self, watch: WatchId, message: WatchMessage) {
        let Some(membership) = &mut self.membership else { return };
        let Some(watches) = &membership.watches else { return };
        let of_members = watches.members == watch;
        if !of_members && watches.waiting != watch {
            return;
        }
        let events = match message {
            WatchMessage::Events(events) => events,
            WatchMessage::Compacted { .. } => {
                membership.resync = true;
                return;
            }
            // Refused for good (rights were taken away): nothing more can be learnt here, and the head's
            // watch, which is refused as well, reports it.
            WatchMessage::Failed(_) | WatchMessage::Started(_) => return,
        };
        for event in events {
            let Some(node) = node_of(&event.kv().key) else { continue };
            match (of_members, &event) {
                (true, Event::Delete(kv)) => {
                    let record: Option<records::Member> = records::decode("", &kv.value).ok();
                    if node != membership.lease {
                        let name = record.map_or_else(
                            || format!("node {node:016x}"),
                            |r| format!("rank {} on {}", r.rank, r.node),
                        );
                        membership.lost.insert(node, (kv.mod_revision, name));
                    }
                }
                (true, Event::Put(_)) => {}
                (false, Event::Put(_)) => drop(membership.waiting.insert(node)),
                (false, Event::Delete(_)) => drop(membership.waiting.remove(&node)),
            }
        }
    }
}
