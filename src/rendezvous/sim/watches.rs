//! Watches: opened at etcd, woken by writes, delivered late and in pieces, broken and resumed.

use std::time::Duration;

use super::model::Touched;
use super::node::{NodeIx, Watch};
use super::traps::Moment;
use super::world::{Event, World};
use crate::etcd::{EtcdError, WatchMessage, WatchSpec};
use crate::rendezvous::machine::{Input, WatchId};

impl World {
    pub fn watch(&mut self, node: NodeIx, id: WatchId, spec: WatchSpec) {
        let range = (spec.key.clone(), spec.range_end.clone());
        self.watchers.entry(range).or_default().push((node, id));
        let next = spec.start_revision;
        let untold = next == 0;
        let watch = Watch {
            spec,
            next,
            scanned: next,
            past: false,
            untold,
            open: false,
            opened: false,
            due: false,
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
            let range = (watch.spec.key, watch.spec.range_end);
            if let Some(watchers) = self.watchers.get_mut(&range) {
                watchers.retain(|watcher| *watcher != (node, id));
            }
        }
    }

    pub fn open_watch(&mut self, node: NodeIx, id: WatchId) {
        if !self.nodes[node].is_live() {
            return;
        }
        let reachable = self.reachable(node);
        let revision = self.etcd.revision();
        let Some(watch) = self.nodes[node].watches.get_mut(&id) else { return };
        if watch.open {
            return;
        }
        if !reachable {
            let pause = self.rng.time(Duration::from_millis(50), Duration::from_millis(500));
            return self.after(pause, Event::OpenWatch(node, id));
        }
        watch.open = true;
        if watch.next == 0 {
            watch.next = revision + 1;
        }
        watch.scanned = if watch.opened { (watch.next - 1).max(1) } else { watch.next };
        watch.opened = true;
        // Of what is written from now on it is told as it happens.
        watch.past = watch.scanned <= revision;
        self.deliver_later(node, id);
    }

    pub fn wake_watchers(&mut self, touched: &Touched) {
        let mut woken = Vec::new();
        for ((from, end), watchers) in &self.watchers {
            if super::model::in_range(&touched.kv.key, from, end.as_deref()) {
                woken.extend(watchers.iter().copied());
            }
        }
        for (node, id) in woken {
            self.deliver_later(node, id);
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
        // It was open before a compaction: its events are on their way already.
        let sent = !std::mem::take(&mut watch.past);
        // The bug of old versions (`Etcd::events`) is for those that resume: a deletion milliseconds ago is
        // the one that is compacted only in theory.
        let new = watch.next == watch.spec.start_revision && watch.scanned == watch.next;
        let looked = if sent || (new && watch.scanned >= self.etcd.compacted()) {
            Ok(self.etcd.events_sent_before(&watch.spec, watch.scanned))
        } else {
            self.etcd.events(&watch.spec, watch.scanned)
        };
        let mut events = match looked {
            Ok(events) => events,
            Err(EtcdError::Compacted { oldest, .. }) => {
                self.unwatch(node, id);
                let message = WatchMessage::Compacted { oldest };
                self.feed(node, Input::Watched(id, message));
                return self.spring_trap_at(Moment::Compacted, Some(node), Some(node));
            }
            Err(error) => panic!("etcd refuses a watch: {error}"),
        };
        events.retain(|event| event.kv().mod_revision >= watch.next);
        watch.scanned = self.etcd.revision() + 1;
        // A network may deliver a part of it now and the rest later; never a part of a revision.
        if !events.is_empty() && self.rng.chance(self.link.split) {
            let kept = 1 + self.rng.below(events.len());
            let last = events[kept - 1].kv().mod_revision;
            events.retain(|event| event.kv().mod_revision <= last);
            if let Some(watch) = self.nodes[node].watches.get_mut(&id) {
                watch.scanned = last + 1;
            }
            self.deliver_later(node, id);
        }
        let Some(last) = events.last().map(|event| event.kv().mod_revision) else { return };
        let size: usize = events.iter().map(|e| e.kv().key.len() + e.kv().value.len() + 40).sum();
        self.nodes[node].costs.received += size as u64;
        if let Some(watch) = self.nodes[node].watches.get_mut(&id) {
            watch.next = last + 1;
        }
        self.feed(node, Input::Watched(id, WatchMessage::Events(events)));
    }

    /// The stream that carries a node's watches breaks: each resumes where its last event left off.
    pub fn break_watches(&mut self, node: NodeIx) {
        let ids: Vec<WatchId> = self.nodes[node].watches.keys().copied().collect();
        let pause = self.rng.time(Duration::from_millis(10), self.link.patience);
        for id in ids {
            if let Some(watch) = self.nodes[node].watches.get_mut(&id) {
                watch.open = false;
                if watch.untold {
                    // It begins anew, and later.
                    (watch.next, watch.opened) = (0, false);
                }
                self.after(pause, Event::OpenWatch(node, id));
            }
        }
    }
}
