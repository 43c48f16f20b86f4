//! Watches: opened at etcd, woken by writes, delivered late and in pieces, broken and resumed.

use std::collections::VecDeque;
use std::time::Duration;

use super::model::{Touched, refused};
use super::node::{NodeIx, Watch};
use super::trap::Moment;
use super::world::{Event, World};
use crate::etcd::kv;
use crate::etcd::{EtcdError, Refusal, WatchMessage, WatchSpec};
use crate::rendezvous::{Input, WatchId};

impl World {
    pub fn watch(&mut self, node: NodeIx, id: WatchId, spec: WatchSpec) {
        self.watchers.add(&spec, node, id);
        let next = spec.start_revision;
        let watch = Watch {
            spec,
            next,
            scanned: next,
            pending: VecDeque::new(),
            past: false,
            untold: next == 0,
            open: false,
            opened: false,
            due: false,
            etcd: self.nodes[node].etcd,
        };
        self.nodes[node].watches.insert(id, watch);
        self.nodes[node].costs.watches += 1;
        self.open_later(node, id);
    }

    fn open_later(&mut self, node: NodeIx, id: WatchId) {
        let travel = self.rng.time(self.link.latency / 4, self.link.latency);
        self.after(travel, Event::OpenWatch(node, id));
    }

    pub fn unwatch(&mut self, node: NodeIx, id: WatchId) {
        if let Some(watch) = self.nodes[node].watches.remove(&id) {
            self.watchers.remove(&watch.spec, node, id);
        }
    }

    pub fn open_watch(&mut self, node: NodeIx, id: WatchId) {
        if !self.nodes[node].runs() {
            return;
        }
        let reachable = self.reachable(node);
        let forbidden = self.nodes[node].forbidden;
        let (revision, etcd) = (self.etcd.revision(), self.etcd_number);
        // The member at which it is opened may not have heard of the last ones yet.
        let lag = self.rng.between(0, self.link.lag) as i64;
        let behind = (revision - lag).max(self.etcd.compacted()).max(1);
        let Some(watch) = self.nodes[node].watches.get_mut(&id) else { return };
        if watch.open {
            return;
        }
        if !reachable {
            let pause = self.rng.time(Duration::from_millis(50), Duration::from_millis(500));
            return self.after(pause, Event::OpenWatch(node, id));
        }
        if forbidden {
            self.unwatch(node, id);
            let error = refused(Refusal::PermissionDenied, "permission denied");
            return self.feed(node, Input::Watched(id, WatchMessage::Failed(error)));
        }
        if watch.etcd != etcd {
            return self.lose_history(node);
        }
        watch.open = true;
        if watch.next == 0 {
            watch.next = behind + 1;
        }
        watch.scanned = if watch.opened { (watch.next - 1).max(1) } else { watch.next };
        watch.opened = true;
        watch.pending.clear();
        // Of what is written from now on it is told as it happens.
        watch.past = watch.scanned <= revision;
        self.deliver_later(node, id);
    }

    pub fn wake_watchers(&mut self, touched: &Touched) {
        for (node, id) in self.watchers.of(&touched.kv.key) {
            let Some(watch) = self.nodes[node].watches.get_mut(&id) else { continue };
            if watch.open && (touched.deleted || !watch.spec.deletes_only) {
                watch.pending.push_back(touched.index);
                self.deliver_later(node, id);
            }
        }
    }

    fn deliver_later(&mut self, node: NodeIx, id: WatchId) {
        let Some(watch) = self.nodes[node].watches.get_mut(&id) else { return };
        if watch.open && !watch.due {
            watch.due = true;
            let slow = self.rng.chance(self.link.slow);
            let most = if slow { self.link.slowest } else { self.link.latency };
            let travel = self.rng.time(self.link.latency / 4, most);
            self.after(travel, Event::Deliver(node, id));
        }
    }

    pub fn deliver(&mut self, node: NodeIx, id: WatchId) {
        let Some(watch) = self.nodes[node].watches.get_mut(&id) else { return };
        watch.due = false;
        if !watch.open {
            return;
        }
        if std::mem::take(&mut watch.untold) {
            let started = WatchMessage::Started(watch.next - 1);
            self.deliver_later(node, id);
            return self.feed(node, Input::Watched(id, started));
        }
        let mut events = match self.take_events(node, id) {
            Ok(events) => events,
            Err(EtcdError::Compacted { oldest, .. }) => {
                self.unwatch(node, id);
                let message = WatchMessage::Compacted { oldest };
                self.feed(node, Input::Watched(id, message));
                return self.spring_trap_at(Moment::Compacted, Some(node), Some(node));
            }
            Err(error) => panic!("etcd refuses a watch: {error}"),
        };
        // A network may deliver a part of it now and the rest later; never a part of a revision.
        if !events.is_empty() && self.rng.chance(self.link.split) {
            let kept = 1 + self.rng.below(events.len());
            let last = events[kept - 1].1.kv().mod_revision;
            let kept = events.partition_point(|(_, event)| event.kv().mod_revision <= last);
            let rest = events.split_off(kept);
            if let Some(watch) = self.nodes[node].watches.get_mut(&id) {
                watch.scanned = last + 1;
                rest.iter().rev().for_each(|(index, _)| watch.pending.push_front(*index));
            }
            self.deliver_later(node, id);
        }
        let events: Vec<kv::Event> = events.into_iter().map(|(_, event)| event).collect();
        let Some(last) = events.last().map(|event| event.kv().mod_revision) else { return };
        let size: usize = events.iter().map(|e| e.kv().key.len() + e.kv().value.len() + 40).sum();
        let state = &mut self.nodes[node];
        state.costs.received += size as u64;
        state.costs.events += events.len() as u64;
        if let Some(watch) = state.watches.get_mut(&id) {
            watch.next = last + 1;
        }
        self.feed(node, Input::Watched(id, WatchMessage::Events(events)));
    }

    /// What there is for the watch, each with its place in etcd's history.
    fn take_events(
        &mut self,
        node: NodeIx,
        id: WatchId,
    ) -> Result<Vec<(usize, kv::Event)>, EtcdError> {
        let etcd = &self.etcd;
        let Some(watch) = self.nodes[node].watches.get_mut(&id) else { return Ok(Vec::new()) };
        let mut events = if std::mem::take(&mut watch.past) {
            // The bug of old versions (`Etcd::events`) is for those that resume: a deletion milliseconds ago
            // is the one that is compacted only in theory.
            let new = watch.next == watch.spec.start_revision && watch.scanned == watch.next;
            watch.pending.clear();
            if new && watch.scanned >= etcd.compacted() {
                etcd.events_sent_before(&watch.spec, watch.scanned)
            } else {
                etcd.events(&watch.spec, watch.scanned)?
            }
        } else {
            // It was open before a compaction: its events are on their way already.
            let pending = std::mem::take(&mut watch.pending).into_iter();
            let told = |index| Some((index, etcd.change(index, &watch.spec)?));
            pending.filter_map(told).collect()
        };
        events.retain(|(_, event)| event.kv().mod_revision >= watch.next);
        watch.scanned = etcd.revision() + 1;
        Ok(events)
    }

    /// The stream that carries a node's watches breaks: each resumes where its last event left off.
    pub fn break_watches(&mut self, node: NodeIx) {
        let ids: Vec<WatchId> = self.nodes[node].watches.keys().copied().collect();
        let pause = self.rng.time(Duration::from_millis(10), self.link.patience);
        for id in ids {
            if let Some(watch) = self.nodes[node].watches.get_mut(&id) {
                watch.open = false;
                if watch.untold {
                    // It restarts, and later.
                    (watch.next, watch.opened) = (0, false);
                }
                self.after(pause, Event::OpenWatch(node, id));
            }
        }
    }

    /// etcd is another one than before: the client hears it from one answer or watch, and tells all watches.
    pub fn lose_history(&mut self, node: NodeIx) {
        if self.nodes[node].etcd == self.etcd_number {
            return;
        }
        self.nodes[node].etcd = self.etcd_number;
        let of_before = |watch: &Watch| watch.etcd != self.etcd_number;
        let watches = self.nodes[node].watches.iter();
        let ids: Vec<WatchId> = watches.filter(|(_, w)| of_before(w)).map(|(id, _)| *id).collect();
        for id in ids {
            self.unwatch(node, id);
            let pause = self.rng.time(Duration::ZERO, self.link.latency);
            self.after(pause, Event::HistoryLost(node, id));
        }
    }
}
