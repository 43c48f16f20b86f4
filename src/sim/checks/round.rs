//! One round, as its keys showed it.

use std::collections::{BTreeMap, BTreeSet};

use crate::rendezvous::keys::NodeId;
use crate::rendezvous::records::Labels;
use crate::rendezvous::records::RankOrder;
use crate::rendezvous::records::{Final, Member};
use crate::rendezvous::{Settings, Time};
use crate::sim::reader::READER;

/// When something was first true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    pub revision: i64,
    pub at: Time,
}

/// Which round: its number comes back when the keys of the run have been deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nth {
    pub epoch: u64,
    pub round: u64,
}

/// What the coordinator of a round goes by. Nodes may differ in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub min: usize,
    pub max: usize,
    pub order: RankOrder,
}

impl Limits {
    pub fn of(settings: &Settings) -> Self {
        Self { min: settings.min, max: settings.max, order: settings.order }
    }

    pub fn largest(&self) -> usize {
        self.order.largest(self.max)
    }

    pub fn has_segments(&self) -> bool {
        matches!(self.order, RankOrder::Topology { segment: 2.. })
    }
}

#[derive(Clone, Debug)]
pub struct MemberKey {
    pub rank: u32,
    pub attempt: String,
    pub revision: i64,
    pub labels: Labels,
}

#[derive(Default)]
pub struct Round {
    pub opened: Option<Since>,
    pub completed: Option<(Since, Final, Limits)>,
    /// Every member key that was written, in the order of the writes.
    pub written: BTreeMap<NodeId, Vec<MemberKey>>,
    /// The present member keys, by attempt.
    present: BTreeSet<(String, NodeId)>,
    /// The members as of the completion, by rank.
    pub members: BTreeMap<u32, NodeId>,
    /// What each of them says of itself.
    pub labels: BTreeMap<NodeId, Labels>,
    /// When nodes joined.
    pub joined: BTreeMap<NodeId, i64>,
    /// Whose join keys are there.
    pub joining: BTreeSet<NodeId>,
    /// The completed round that it follows.
    pub previous: Option<u64>,
    /// A member of the completed round was lost.
    pub lost: Option<Since>,
    /// The last one of them was.
    pub last_lost: Option<Since>,
    /// A node waited for a place.
    pub waited: Option<Since>,
    /// The nodes that wait.
    pub waiting: BTreeMap<NodeId, Since>,
    pub domains: BTreeMap<NodeId, Option<String>>,
}

impl Round {
    pub fn member_written(&mut self, node: NodeId, attempt: &str, since: Since, value: &[u8]) {
        if let Ok(Member { rank, labels, .. }) = READER.record("member", value) {
            let (attempt_, revision) = (attempt.into(), since.revision);
            let key = MemberKey { rank, attempt: attempt_, revision, labels };
            self.written.entry(node).or_default().push(key);
            self.present.insert((attempt.into(), node));
        }
    }

    /// `false` where there was no such key.
    pub fn member_gone(&mut self, node: NodeId, attempt: &str, since: Since) -> bool {
        let was_there = self.present.remove(&(attempt.to_string(), node));
        if was_there && self.final_().is_some_and(|(_, complete)| complete.attempt == attempt) {
            self.lost.get_or_insert(since);
            self.last_lost = Some(since);
        }
        was_there
    }

    /// The members of the completed round that etcd still has.
    pub fn live(&self) -> impl Iterator<Item = NodeId> {
        let attempt = self.final_().map(|(_, complete)| complete.attempt.clone());
        let of_attempt = self.present.iter().filter(move |(a, _)| Some(a) == attempt.as_ref());
        of_attempt.map(|(_, node)| *node)
    }

    pub fn final_(&self) -> Option<(Since, &Final)> {
        self.completed.as_ref().map(|(since, complete, _)| (*since, complete))
    }

    pub fn limits(&self) -> Option<Limits> {
        self.completed.as_ref().map(|(_, _, limits)| *limits)
    }

    pub fn complete(&mut self, since: Since, complete: &Final, limits: Limits) {
        let listed = self.written.iter().filter_map(|(node, keys)| {
            let key = keys.iter().rfind(|key| key.attempt == complete.attempt)?;
            Some((key.rank, *node))
        });
        self.members = listed.collect();
        for node in self.members.values() {
            let key = self.written.get(node).and_then(|keys| keys.last());
            self.labels.insert(*node, key.map(|key| key.labels.clone()).unwrap_or_default());
        }
        self.completed = Some((since, complete.clone(), limits));
        if self.live().count() < self.members.len() {
            (self.lost, self.last_lost) = (Some(since), Some(since));
        }
    }
}
