//! Waiting for a place: one of those who wait, the usher, counts them for all, and tells the members by one
//! key below the head whether there are any who could have a place.
//!
//! If each member watched those who wait, W of them would be W x N events for etcd, and as many when they
//! go. If each who waits watched the members, k lost ones would be k x W. So both are the usher's, whose key
//! goes with its lease: the others see that, and one of them takes its place, as with coordinators.

use std::time::Duration;

use super::cx::{Cx, number};
use super::effect::Effect;
use super::out::{AnyCall as _, Slot};
use super::pages::Pages;
use super::places::{order_in_force, room};
use super::timers::Timer;
use super::{head, txns};
use crate::etcd::WatchMessage;
use crate::etcd::kv::{Compare, Event, Op, Range, Txn, TxnReply};
use crate::rendezvous::api::{Time, WatchId};
use crate::rendezvous::deny_list::DenyList;
use crate::rendezvous::keys::{RoundId, node_of};
use crate::rendezvous::ranks::Roll;
use crate::rendezvous::records::{Final, Reader, Waiting};
use crate::rendezvous::variant::Variant;

/// How often the number is told: growing pauses, since everybody is told.
const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(60);

/// What the call under way is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Load,
    Tell { count: u32 },
}

pub struct Ushering {
    /// The completed round after which there may be places.
    id: RoundId,
    pages: Pages,
    roll: Roll<Waiting>,
    /// Members that are left.
    members: i64,
    watches: Option<Watches>,
    /// Events that came while what was there before was being read.
    early: Vec<(WatchId, Event)>,
    pause: Duration,
    pub slot: Slot<Purpose>,
}

/// They begin now, and only then is read what is there.
struct Watches {
    waiting: WatchId,
    members: WatchId,
    /// How many of them have yet to begin.
    starting: usize,
}

impl Ushering {
    pub fn new(cx: &Cx, round: u64, complete: &Final) -> Self {
        Self {
            id: complete.id(round),
            pages: Pages::default(),
            roll: Roll::new(order_in_force(cx, complete)),
            members: 0,
            watches: None,
            early: Vec::new(),
            pause: FIRST,
            slot: Slot::default(),
        }
    }

    pub fn end(mut self, cx: &mut Cx) {
        cx.timers.clear(Timer::Tell);
        self.slot.give_up(&mut cx.out);
        if let Some(watches) = self.watches {
            cx.out.unwatch(Some(watches.waiting));
            cx.out.unwatch(Some(watches.members));
        }
    }

    pub fn watches(&self, watch: WatchId) -> bool {
        self.watches.as_ref().is_some_and(|w| w.waiting == watch || w.members == watch)
    }

    pub fn has_counted(&self) -> bool {
        self.pages.is_done()
    }

    /// `told`: what its key says.
    pub fn step(
        &mut self,
        cx: &mut Cx,
        complete: &Final,
        told: u32,
        deadline: Time,
    ) -> Vec<Effect> {
        let round = self.id.round;
        match &self.watches {
            None => {
                let keys = cx.settings.keys.clone();
                let waiting = cx.out.watch_prefix(keys.waitings(round), false);
                let members = cx.out.watch_prefix(keys.members(&self.id), true);
                self.watches = Some(Watches { waiting, members, starting: 2 });
                return Vec::new();
            }
            Some(watches) if watches.starting > 0 => return Vec::new(),
            Some(_) if !self.pages.is_done() => {
                self.load(cx, deadline);
                return Vec::new();
            }
            Some(_) => {}
        }
        if !cx.settings.wrong(Variant::CountsUnadmitted) {
            self.roll.look(&cx.view.denied);
        }
        if self.members <= 0 {
            return vec![Effect::OpenForTheLost { deadline }];
        }
        let count = number(self.roll.placeable().min(room(cx, round, complete)));
        if count == told {
            cx.timers.clear(Timer::Tell);
            return Vec::new();
        }
        // Whether there are any is told at once. How many may wait: everybody is told.
        let due = cx.now >= cx.timers.start(Timer::Tell, cx.now + self.pause);
        if due || count == 0 || told == 0 {
            self.pause = (self.pause * 2).min(LAST);
            cx.timers.clear(Timer::Tell);
            self.tell(cx, complete, count, deadline);
        }
        Vec::new()
    }

    fn load(&mut self, cx: &mut Cx, deadline: Time) {
        let keys = &cx.settings.keys;
        let mut reads = vec![self.pages.next(&cx.settings, &keys.waitings(self.id.round))];
        if self.pages.is_first() {
            reads.push(Op::Get(Range::prefix(keys.members(&self.id)).count_only()));
        }
        cx.out.txn(&mut self.slot, Purpose::Load, Txn::when([]).then(reads), deadline);
    }

    fn tell(&mut self, cx: &mut Cx, complete: &Final, count: u32, deadline: Time) {
        let Some(lease) = cx.leases.own() else { return };
        let own = Compare::mod_revision(cx.settings.keys.usher(), cx.view.usher.modified);
        let txn = Txn::when([txns::control_unchanged(cx), own])
            .then([txns::put_usher(cx, self.id.round, complete, count, lease)])
            .or_else(head::reads(&cx.settings));
        cx.out.txn(&mut self.slot, Purpose::Tell { count }, txn, deadline);
    }

    /// What the reply says of the head is known already.
    pub fn answered(&mut self, cx: &mut Cx, purpose: Purpose, reply: &TxnReply) {
        match purpose {
            Purpose::Load => self.loaded(cx, reply),
            Purpose::Tell { count } if reply.succeeded => {
                txns::usher_written(cx, self.id.round, count, reply.revision);
            }
            Purpose::Tell { .. } => {}
        }
    }

    fn loaded(&mut self, cx: &Cx, reply: &TxnReply) {
        let (reader, nobody) = (cx.reader(), DenyList::default());
        let counts_all = cx.settings.wrong(Variant::CountsUnadmitted);
        let denied = if counts_all { &nobody } else { &cx.view.denied };
        if self.pages.is_first() {
            self.pages.begins_at(reply.revision);
            self.members = reply.range(1).count;
        }
        let page = reply.range(0);
        let last = self.pages.has_read(&page);
        for kv in page.kvs {
            if let Some((node, waiting)) = reader.waiting(&kv) {
                self.roll.insert(node, kv.create_revision, waiting, denied);
            }
        }
        if last {
            for (watch, event) in std::mem::take(&mut self.early) {
                self.take(watch, event, reader, denied);
            }
        }
    }

    fn take(&mut self, watch: WatchId, event: Event, reader: Reader, denied: &DenyList) {
        if !self.pages.is_done() {
            return self.early.push((watch, event));
        }
        if self.pages.knows(&event) {
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

    pub fn watched(&mut self, cx: &mut Cx, watch: WatchId, message: WatchMessage) -> Vec<Effect> {
        match message {
            WatchMessage::Started(_) => {
                if let Some(watches) = &mut self.watches {
                    watches.starting = watches.starting.saturating_sub(1);
                }
            }
            WatchMessage::Events(events) => {
                let reader = cx.reader();
                for event in events {
                    self.take(watch, event, reader, &cx.view.denied);
                }
            }
            WatchMessage::Compacted { .. } => return vec![Effect::CountAnew],
            // The machine restarts.
            WatchMessage::HistoryLost => {}
            WatchMessage::Failed(_) => {
                cx.timers.set(Timer::Pause, cx.now + Duration::from_secs(1));
                return vec![Effect::CountAnew];
            }
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{OWN, complete, cx, puts, sees, sent, usher};
    use super::*;
    use crate::etcd::kv::{KeyValue, OpReply, RangeReply};
    use crate::rendezvous::records::{Labels, NodeInfo, State, Stay, encode};

    /// The usher of a world of two of at most four, in which so many members are left.
    fn ushering(cx: &mut Cx, members: i64) -> (Ushering, Final) {
        let mut world = complete(2);
        world.story.max = 4;
        sees(cx, 1, State::Final(world.clone()), 5);
        usher(cx, OWN, 0, 6);
        let mut ushering = Ushering::new(cx, 1, &world);
        assert!(ushering.step(cx, &world, 0, Duration::from_secs(9)).is_empty());
        let watches = ushering.watches.as_ref().map(|w| (w.waiting, w.members));
        let (waiting, left) = watches.expect("watches");
        for watch in [waiting, left] {
            ushering.watched(cx, watch, WatchMessage::Started(6));
        }
        cx.out.take();
        ushering.step(cx, &world, 0, Duration::from_secs(9));
        assert!(sent(cx).is_read_only());
        let (node, labels) = (NodeInfo::default(), Labels::default());
        let record = Waiting { node, stay: Stay::default(), labels };
        let key = cx.settings.keys.waiting(1, OWN).into();
        let kv = KeyValue { key, value: encode(&record, 1), lease: OWN, ..KeyValue::default() };
        let line = RangeReply { kvs: vec![kv], count: 1, more: false };
        let count = RangeReply { kvs: Vec::new(), count: members, more: false };
        let replies = vec![OpReply::Get(line), OpReply::Get(count)];
        ushering.answered(cx, Purpose::Load, &TxnReply { revision: 7, succeeded: true, replies });
        (ushering, world)
    }

    #[test]
    fn the_first_that_could_have_a_place_is_told_at_once() {
        let mut cx = cx();
        let (mut ushering, world) = ushering(&mut cx, 2);
        assert!(ushering.step(&mut cx, &world, 0, Duration::from_secs(9)).is_empty());
        assert_eq!(puts(&sent(&mut cx)), ["head/waiting"]);
        assert!(ushering.step(&mut cx, &world, 1, Duration::from_secs(9)).is_empty());
        assert!(cx.out.take().is_empty(), "it is told");
    }

    #[test]
    fn where_no_member_is_left_the_next_round_is_opened() {
        let mut cx = cx();
        let deadline = Duration::from_secs(9);
        let (mut ushering, world) = ushering(&mut cx, 0);
        let effects = ushering.step(&mut cx, &world, 0, deadline);
        assert_eq!(effects, [Effect::OpenForTheLost { deadline }]);
    }
}
