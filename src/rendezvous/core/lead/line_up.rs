//! The nodes that have joined the round, and those that are expected. Both are read once; the watch begins before.

use std::collections::BTreeMap;

use super::super::cx::Cx;
use super::super::explain;
use super::super::out::Out;
use super::super::pages::Pages;
use super::last_world::LastWorld;
use crate::etcd::kv::{Event, Op, Range, TxnReply};
use crate::rendezvous::api::{Settings, WatchId};
use crate::rendezvous::deny_list::DenyList;
use crate::rendezvous::keys::{NodeId, node_of};
use crate::rendezvous::ranks::{Candidate, Roll, assign};
use crate::rendezvous::records::{Join, LastCall, Member, Previous, RankOrder, Reader};

pub struct LineUp {
    round: u64,
    previous: Option<Previous>,
    pages: Pages,
    roll: Roll<Join>,
    /// Live members of the last world.
    survivors: BTreeMap<NodeId, Member>,
    /// Its members, dead or alive.
    last_world: LastWorld,
    watches: Option<Watches>,
    /// Events that came while what was there before was being read.
    early: Vec<(Kind, Event)>,
}

/// They begin now, and only then is read what is there.
struct Watches {
    joins: WatchId,
    survivors: Option<WatchId>,
    /// How many of them have yet to begin.
    starting: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Join,
    Survivor,
}

impl LineUp {
    pub fn new(round: u64, previous: Option<Previous>, order: RankOrder) -> Self {
        Self {
            round,
            previous,
            pages: Pages::default(),
            roll: Roll::new(order),
            survivors: BTreeMap::new(),
            last_world: LastWorld::default(),
            watches: None,
            early: Vec::new(),
        }
    }

    pub fn is_loaded(&self) -> bool {
        self.watches.as_ref().is_some_and(|watches| watches.starting == 0) && self.pages.is_done()
    }

    pub fn is_of_first_round(&self) -> bool {
        self.previous.is_none()
    }

    pub fn watches(&self, watch: WatchId) -> bool {
        self.watches.as_ref().is_some_and(|w| w.joins == watch || w.survivors == Some(watch))
    }

    /// `true` when the watches have begun.
    pub fn watch(&mut self, cx: &mut Cx) -> bool {
        if let Some(watches) = &self.watches {
            return watches.starting == 0;
        }
        let keys = &cx.settings.keys;
        let joins = cx.out.watch_prefix(keys.joins(self.round), false);
        let previous = self.previous.as_ref();
        let survivors = previous.map(|last| cx.out.watch_prefix(keys.members(&last.id), true));
        let starting = 1 + usize::from(survivors.is_some());
        self.watches = Some(Watches { joins, survivors, starting });
        false
    }

    pub fn started(&mut self) {
        if let Some(watches) = &mut self.watches {
            watches.starting = watches.starting.saturating_sub(1);
        }
    }

    pub fn unwatch(&mut self, out: &mut Out) {
        if let Some(watches) = self.watches.take() {
            out.unwatch(Some(watches.joins));
            out.unwatch(watches.survivors);
        }
    }

    pub fn forget(&mut self, out: &mut Out) {
        self.pages = Pages::default();
        self.roll.clear();
        self.survivors.clear();
        self.early.clear();
        self.unwatch(out);
    }

    /// What [`LineUp::loaded`] takes over.
    pub fn reads(&self, cx: &Cx) -> Vec<Op> {
        let keys = &cx.settings.keys;
        let mut reads = vec![self.pages.next(&cx.settings, &keys.joins(self.round))];
        if self.pages.is_first() {
            reads.push(Op::get(keys.last_call(self.round)));
            if let Some(previous) = &self.previous {
                reads.push(Op::Get(Range::prefix(keys.members(&previous.id))));
                if wants_roster(&cx.settings) {
                    reads.push(Op::Get(Range::prefix(keys.rosters(&previous.id))));
                }
            }
        }
        reads
    }

    /// Returns the lease of the last call, if a former coordinator has begun one.
    pub fn loaded(&mut self, cx: &Cx, reply: &TxnReply) -> Option<i64> {
        let (reader, denied) = (cx.reader(), &cx.view.denied);
        let mut last_call = None;
        if self.pages.is_first() {
            self.pages.begins_at(reply.revision);
            let kvs = reply.range(1).kvs;
            let record = kvs.first().and_then(|kv| reader.record("", &kv.value).ok());
            last_call = record.map(|LastCall { lease }| lease);
            for kv in reply.range(2).kvs {
                if let (Some(node), Ok(member)) =
                    (node_of(&kv.key), reader.record::<Member>("", &kv.value))
                {
                    self.survivors.insert(node, member);
                }
            }
            self.last_world = LastWorld::of(reader, &reply.range(3).kvs);
        }
        let page = reply.range(0);
        let last = self.pages.has_read(&page);
        for kv in page.kvs {
            if let Some((node, join)) = reader.join(&kv) {
                self.roll.insert(node, kv.create_revision, join, denied);
            }
        }
        if last {
            for (kind, event) in std::mem::take(&mut self.early) {
                self.take_one(kind, event, reader, denied);
            }
        }
        last_call
    }

    /// Returns the nodes that have gone.
    pub fn take(&mut self, cx: &Cx, watch: WatchId, events: Vec<Event>) -> Vec<NodeId> {
        let joins = self.watches.as_ref().is_some_and(|watches| watches.joins == watch);
        let kind = if joins { Kind::Join } else { Kind::Survivor };
        let (reader, denied) = (cx.reader(), &cx.view.denied);
        let take = |event| self.take_one(kind, event, reader, denied);
        events.into_iter().filter_map(take).collect()
    }

    fn take_one(
        &mut self,
        kind: Kind,
        event: Event,
        reader: Reader,
        denied: &DenyList,
    ) -> Option<NodeId> {
        if !self.pages.is_done() {
            self.early.push((kind, event));
            return None;
        }
        if self.pages.knows(&event) {
            return None;
        }
        match (kind, event) {
            (Kind::Survivor, event) => {
                self.survivors.remove(&node_of(&event.kv().key)?);
                None
            }
            (Kind::Join, Event::Put(kv)) => {
                let (node, join) = reader.join(&kv)?;
                self.roll.insert(node, kv.create_revision, join, denied);
                None
            }
            (Kind::Join, Event::Delete(kv)) => {
                let node = node_of(&kv.key)?;
                self.roll.remove(node);
                Some(node)
            }
        }
    }

    /// Looks at the deny list, if it has changed.
    pub fn look(&mut self, denied: &DenyList) {
        self.roll.look(denied);
    }

    pub fn roll(&self) -> &Roll<Join> {
        &self.roll
    }

    pub fn joined(&self) -> usize {
        self.roll.len()
    }

    pub fn placeable(&self) -> usize {
        self.roll.placeable()
    }

    /// Whether all of these may still take part.
    pub fn has_all(&self, nodes: &[NodeId]) -> bool {
        self.roll.all_are_admitted() || nodes.iter().all(|node| self.roll.admits(*node))
    }

    /// A node that was replaced or is denied is not waited for.
    pub fn is_missing_survivors(&self, denied: &DenyList) -> bool {
        let missing = |(node, member): (&NodeId, &Member)| {
            !self.roll.has(*node, member.labels.node_id.as_deref())
                && !denied.has(*node, &member.node, &member.labels)
        };
        self.survivors.iter().any(missing)
    }

    /// The members of the new world by rank, and what people should know of it.
    pub fn assign(&self, settings: &Settings) -> (Vec<NodeId>, Option<String>) {
        let candidates = self.candidates();
        let order = settings.order;
        let members = assign(&candidates, settings.max, order, &self.last_world.places);
        (members, explain::odd_ranks(order, &candidates, &self.roll))
    }

    fn candidates(&self) -> Vec<Candidate<'_>> {
        let mut candidates = Vec::with_capacity(self.roll.len());
        for (node, arrival, join) in self.roll.admitted() {
            let labels = &join.labels;
            let survivor = self.survivors.get(&node).map(|member| member.rank);
            let seat = || self.last_world.seats.get(labels.node_id.as_ref()?).copied();
            candidates.push(Candidate {
                node,
                arrival,
                previous: survivor.or_else(seat),
                infra: labels.infra_rank,
                domain: labels.domain.as_deref(),
            });
        }
        candidates
    }
}

/// The last world's roster says which `node_id`s are back, and where its domains were.
fn wants_roster(settings: &Settings) -> bool {
    settings.labels.node_id.is_some() || matches!(settings.order, RankOrder::Topology { .. })
}
