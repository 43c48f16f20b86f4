//! Waiting for a place: one of those who wait, the usher, counts them for all, and tells the members by one
//! key below the head whether there are any who could have a place.
//!
//! If each member watched those who wait, W of them would be W x N events for etcd, and as many when they
//! go. If each who waits watched the members, k lost ones would be k x W. So both are the usher's, whose key
//! goes with its lease: the others see that, and one of them takes its place, as with coordinators.

use std::time::Duration;

use super::denied::Denied;
use super::keys::node_of;
use super::lead::{FIRST_REPORT, LAST_REPORT, Load};
use super::machine::{Machine, Place, Step, Time, WatchId};
use super::ranks::RankOrder;
use super::records::{Control, Final, Reader, State, Usher, Waiting};
use super::roll::Roll;
use super::steps::number;
use super::variants::Variant;
use crate::etcd::WatchMessage;
use crate::etcd::kv::{Compare, Event, Op, Ordering, Range, Target, Txn, TxnReply, prefix_end};

/// What the usher's call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UsherStep {
    Claim { count: u32 },
    Load,
    Tell { count: u32 },
}

pub(super) struct Ushering {
    load: Load,
    roll: Roll<Waiting>,
    /// Members that are left.
    members: i64,
    watches: Option<Watches>,
    /// Events that came while what was there before was being read.
    early: Vec<(WatchId, Event)>,
    tell_at: Option<Time>,
    tell_pause: Duration,
}

/// They begin now, and only then is read what is there.
struct Watches {
    waiting: WatchId,
    members: WatchId,
    /// How many of them have yet to begin.
    starting: usize,
}

impl Ushering {
    fn new(order: RankOrder) -> Self {
        Self {
            load: Load::default(),
            roll: Roll::new(order),
            members: 0,
            watches: None,
            early: Vec::new(),
            tell_at: None,
            tell_pause: FIRST_REPORT,
        }
    }

    pub fn watches(&self, watch: WatchId) -> bool {
        self.watches.as_ref().is_some_and(|w| w.waiting == watch || w.members == watch)
    }

    pub fn next_deadline(&self) -> Option<Time> {
        self.tell_at.filter(|_| self.load.done)
    }

    fn take(&mut self, watch: WatchId, event: Event, reader: Reader, denied: &Denied) {
        if !self.load.done {
            return self.early.push((watch, event));
        }
        if event.kv().mod_revision <= self.load.revision {
            // What was read is newer.
            return;
        }
        let of_members = self.watches.as_ref().is_some_and(|watches| watches.members == watch);
        match event {
            Event::Delete(_) if of_members => self.members -= 1,
            Event::Put(_) if of_members => {}
            Event::Put(kv) => {
                if let Some((node, waiting)) = reader.waiting(&kv) {
                    self.roll.insert(node, kv.create_revision, waiting, denied);
                }
            }
            Event::Delete(kv) => {
                if let Some(node) = node_of(&kv.key) {
                    self.roll.remove(node);
                }
            }
        }
    }
}

impl Machine {
    /// Until the next round opens, which the members do, or the usher where none of them is left.
    pub(super) fn wait_in_line(
        &mut self,
        now: Time,
        round: u64,
        complete: &Final,
        lease: i64,
        deadline: Time,
    ) {
        let id = complete.id(round);
        let told = self.usher.value.as_ref().filter(|(told, _)| told.id == id);
        match told.map(|(told, holder)| (*holder, told.count)) {
            Some((holder, told)) if holder == lease => {
                if self.ushering.is_none() {
                    self.ushering = Some(Ushering::new(self.order_in_force(complete)));
                }
                self.step_usher(now, round, complete, told, deadline);
            }
            Some(_) => self.stop_ushering(),
            None => {
                self.stop_ushering();
                let pause = self.pause_of_claim();
                if now >= *self.look_at.get_or_insert(now + pause) {
                    self.look_at = None;
                    self.claim_to_usher(round, complete, lease, deadline);
                }
            }
        }
    }

    fn claim_to_usher(&mut self, round: u64, complete: &Final, lease: i64, deadline: Time) {
        let keys = &self.settings.keys;
        let own = keys.waiting(round, lease);
        let still_waiting = Compare::new(own.clone(), Ordering::Equal, Target::Lease(lease));
        // The key is absent, or what is there is no usher's of this round.
        let vacant = Compare::mod_revision(keys.usher(), self.usher.modified);
        let guards = [self.control_unchanged(), vacant, still_waiting];
        let count = self.likely_count(complete);
        let mut reads = self.get_head();
        reads.push(Op::get(own));
        let txn =
            Txn::when(guards).then([self.put_usher(round, complete, count, lease)]).or_else(reads);
        self.txn(Step::Usher(UsherStep::Claim { count }), txn, deadline);
    }

    /// Between rounds all count by what the completed record says, whatever they have themselves.
    fn order_in_force(&self, complete: &Final) -> RankOrder {
        if self.settings.wrong(Variant::CountsUnadmitted) {
            self.settings.order
        } else {
            complete.order
        }
    }

    /// How many places there are, as far as is known.
    fn room(&self, round: u64, complete: &Final) -> usize {
        let told = complete.story.max as usize;
        let own = told == 0 || self.settings.wrong(Variant::CountsUnadmitted);
        let max = if own { self.settings.max } else { told };
        let lost = usize::from(self.loss_of(&complete.id(round)).is_some());
        let live = (complete.world as usize).saturating_sub(lost);
        self.order_in_force(complete).largest(max).saturating_sub(live)
    }

    /// Before the others have been counted: this node alone.
    pub(super) fn likely_count(&self, complete: &Final) -> u32 {
        let round = self.control.value.as_ref().map_or(0, |control| control.round);
        let domain = self.settings.labels.domain.as_deref();
        let own = self.order_in_force(complete).places_of(domain, 1);
        number(own.min(self.room(round, complete)))
    }

    pub(super) fn usher_record(&self, round: u64, complete: &Final, count: u32) -> Usher {
        let (node, id) = (self.settings.node.clone(), complete.id(round));
        Usher { node, id, count, at: self.unix_now() }
    }

    pub(super) fn put_usher(&self, round: u64, complete: &Final, count: u32, lease: i64) -> Op {
        let record = self.usher_record(round, complete, count);
        Op::put(self.settings.keys.usher(), self.encode(&record), lease)
    }

    fn step_usher(&mut self, now: Time, round: u64, complete: &Final, told: u32, deadline: Time) {
        let room = self.room(round, complete);
        let Some(ushering) = &mut self.ushering else { return };
        match &ushering.watches {
            None => return self.watch_the_line(round, complete),
            Some(watches) if watches.starting > 0 => return,
            Some(_) if !ushering.load.done => return self.load_the_line(round, complete, deadline),
            Some(_) => {}
        }
        if !self.settings.wrong(Variant::CountsUnadmitted) {
            ushering.roll.look(&self.denied);
        }
        if ushering.members <= 0
            && let (Some(control), Some(lease)) = (self.control.value.clone(), self.lease)
        {
            return self.open_for_the_lost(&control, lease, deadline);
        }
        let count = number(ushering.roll.placeable().min(room));
        if count == told {
            ushering.tell_at = None;
            return;
        }
        // Whether there are any is told at once. How many may wait: everybody is told.
        let pause = ushering.tell_pause;
        let due = now >= *ushering.tell_at.get_or_insert(now + pause);
        if due || count == 0 || told == 0 {
            ushering.tell_pause = (pause * 2).min(LAST_REPORT);
            ushering.tell_at = None;
            self.tell_the_members(round, complete, count, deadline);
        }
    }

    fn watch_the_line(&mut self, round: u64, complete: &Final) {
        let keys = self.settings.keys.clone();
        let waiting = self.watch_prefix(keys.waitings(round), 0, false);
        let members = self.watch_prefix(keys.members(&complete.id(round)), 0, true);
        if let Some(ushering) = &mut self.ushering {
            ushering.watches = Some(Watches { waiting, members, starting: 2 });
        }
    }

    fn load_the_line(&mut self, round: u64, complete: &Final, deadline: Time) {
        let Some(ushering) = &self.ushering else { return };
        let keys = &self.settings.keys;
        let waitings = keys.waitings(round);
        let first = ushering.load.from.is_none();
        let from = ushering.load.from.clone().unwrap_or_else(|| waitings.clone().into());
        let mut reads = vec![Op::Get(Range {
            range_end: Some(prefix_end(waitings.as_bytes())),
            limit: self.settings.tuning.join_page,
            revision: ushering.load.revision,
            ..Range::key(from)
        })];
        if first {
            let members = Range::prefix(keys.members(&complete.id(round)));
            reads.push(Op::Get(members.count_only()));
        }
        self.txn(Step::Usher(UsherStep::Load), Txn::when([]).then(reads), deadline);
    }

    fn tell_the_members(&mut self, round: u64, complete: &Final, count: u32, deadline: Time) {
        let Some(lease) = self.lease else { return };
        let own = Compare::mod_revision(self.settings.keys.usher(), self.usher.modified);
        let txn = Txn::when([self.control_unchanged(), own])
            .then([self.put_usher(round, complete, count, lease)])
            .or_else(self.get_head());
        self.txn(Step::Usher(UsherStep::Tell { count }), txn, deadline);
    }

    pub(super) fn usher_answered(&mut self, step: UsherStep, reply: &TxnReply) {
        let Place::Waiting(round) = self.place else { return };
        match step {
            UsherStep::Load => self.line_loaded(reply),
            UsherStep::Claim { count } | UsherStep::Tell { count } if reply.succeeded => {
                self.usher_written(round, count, reply.revision);
            }
            UsherStep::Claim { .. } => {
                self.observe_head(reply);
                let own = reply.range(self.get_head().len()).kvs;
                let is_there = own.first().is_some_and(|kv| Some(kv.lease) == self.lease);
                if self.complete_round(round).is_some() && !is_there {
                    // Our waiting key is gone or another program's (an operator removed or wrote it).
                    self.set_place(Place::Outside);
                }
            }
            UsherStep::Tell { .. } => self.observe_head(reply),
        }
    }

    /// The round of this number, if it is complete and current.
    pub(super) fn complete_round(&self, round: u64) -> Option<&Final> {
        match &self.control.value {
            Some(Control { round: current, state: State::Final(complete), .. })
                if *current == round =>
            {
                Some(complete)
            }
            _ => None,
        }
    }

    /// This node's key says so, as of this revision.
    pub(super) fn usher_written(&mut self, round: u64, count: u32, revision: i64) {
        if let (Some(complete), Some(lease)) = (self.complete_round(round), self.lease) {
            let record = self.usher_record(round, complete, count);
            self.usher.set(Some((record, lease)), revision, revision);
        }
    }

    fn line_loaded(&mut self, reply: &TxnReply) {
        let reader = self.reader();
        let nobody = Denied::default();
        let denied =
            if self.settings.wrong(Variant::CountsUnadmitted) { &nobody } else { &self.denied };
        let Some(ushering) = &mut self.ushering else { return };
        if ushering.load.from.is_none() {
            ushering.load.revision = reply.revision;
            ushering.members = reply.range(1).count;
        }
        let page = reply.range(0);
        let next = page.kvs.last().map(|kv| [&kv.key[..], &[0]].concat());
        for kv in page.kvs {
            if let Some((node, waiting)) = reader.waiting(&kv) {
                ushering.roll.insert(node, kv.create_revision, waiting, denied);
            }
        }
        if page.more {
            ushering.load.from = next;
            return;
        }
        ushering.load.done = true;
        ushering.load.from = None;
        for (watch, event) in std::mem::take(&mut ushering.early) {
            ushering.take(watch, event, reader, denied);
        }
    }

    pub(super) fn usher_watched(&mut self, now: Time, watch: WatchId, message: WatchMessage) {
        let reader = self.reader();
        let Some(ushering) = &mut self.ushering else { return };
        match message {
            WatchMessage::Started(_) => {
                if let Some(watches) = &mut ushering.watches {
                    watches.starting = watches.starting.saturating_sub(1);
                }
            }
            WatchMessage::Events(events) => {
                for event in events {
                    ushering.take(watch, event, reader, &self.denied);
                }
            }
            WatchMessage::Compacted { .. } => self.usher_anew(),
            // The machine begins anew.
            WatchMessage::HistoryLost => {}
            WatchMessage::Failed(_) => {
                self.usher_anew();
                self.pause = Some(now + Duration::from_secs(1));
            }
        }
    }

    /// Events are missing, or what was counted is wrong: read everything anew.
    pub(super) fn usher_anew(&mut self) {
        self.stop_ushering();
    }

    pub(super) fn stop_ushering(&mut self) {
        let Some(ushering) = self.ushering.take() else { return };
        if let Some((_, Step::Usher(UsherStep::Load | UsherStep::Tell { .. }))) = self.call {
            self.drop_call();
        }
        if let Some(watches) = ushering.watches {
            self.unwatch(Some(watches.waiting));
            self.unwatch(Some(watches.members));
        }
    }
}
