//! Nodes of a round as one node counts them for all: those that have joined it, or wait for the next one.
//! Each node that comes or goes changes the counts by itself: to count all again for each of thousands would
//! take quadratic time.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use crate::rendezvous::deny_list::DenyList;
use crate::rendezvous::keys::NodeId;
use crate::rendezvous::records::{Join, Labels, NodeInfo, RankOrder, Waiting};

/// What a record says of the node that wrote it.
pub trait Named {
    fn node(&self) -> &NodeInfo;
    fn labels(&self) -> &Labels;
}

impl Named for Join {
    fn node(&self) -> &NodeInfo {
        &self.node
    }

    fn labels(&self) -> &Labels {
        &self.labels
    }
}

impl Named for Waiting {
    fn node(&self) -> &NodeInfo {
        &self.node
    }

    fn labels(&self) -> &Labels {
        &self.labels
    }
}

/// Admission is decided here for coordinators, and for ushers, which tell members of waiting nodes: a node
/// that counts for one of them counts for the other.
pub struct Roll<T> {
    order: RankOrder,
    there: BTreeMap<NodeId, (i64, T)>,
    denied: BTreeSet<NodeId>,
    /// The nodes that came with this `node_id`, and are not denied. The last one has it.
    by_id: BTreeMap<String, BTreeSet<(i64, NodeId)>>,
    domains: BTreeMap<Option<String>, usize>,
    admitted: usize,
    /// For how many of them the order has places.
    placeable: usize,
    /// The changes of the deny list that are known here.
    denials: u64,
}

impl<T: Named> Roll<T> {
    pub fn new(order: RankOrder) -> Self {
        Self {
            order,
            there: BTreeMap::new(),
            denied: BTreeSet::new(),
            by_id: BTreeMap::new(),
            domains: BTreeMap::new(),
            admitted: 0,
            placeable: 0,
            denials: 0,
        }
    }

    pub fn clear(&mut self) {
        *self = Self::new(self.order);
    }

    /// A node that is known already keeps its arrival.
    pub fn insert(&mut self, node: NodeId, arrival: i64, record: T, denied: &DenyList) {
        if let Entry::Vacant(entry) = self.there.entry(node) {
            entry.insert((arrival, record));
            self.admit(node, denied);
        }
    }

    fn admit(&mut self, node: NodeId, denied: &DenyList) {
        let Some((arrival, record)) = self.there.get(&node) else { return };
        if denied.has(node, record.node(), record.labels()) {
            self.denied.insert(node);
            return;
        }
        let own = (*arrival, node);
        if let Some(node_id) = record.labels().node_id.clone() {
            let namesakes = self.by_id.entry(node_id).or_default();
            let last = namesakes.last().copied();
            namesakes.insert(own);
            match last {
                Some(last) if last > own => return,
                Some((_, former)) => self.count(former, false),
                None => {}
            }
        }
        self.count(node, true);
    }

    pub fn remove(&mut self, node: NodeId) {
        let counted = self.admits(node);
        let Some((arrival, record)) = self.there.get(&node) else { return };
        let own = (*arrival, node);
        let node_id = record.labels().node_id.clone();
        if counted {
            self.count(node, false);
        }
        self.denied.remove(&node);
        self.there.remove(&node);
        let Some(node_id) = node_id else { return };
        let Entry::Occupied(mut namesakes) = self.by_id.entry(node_id) else { return };
        namesakes.get_mut().remove(&own);
        match namesakes.get().last().copied() {
            // The one before it has the name again.
            Some((_, heir)) if counted => self.count(heir, true),
            Some(_) => {}
            None => drop(namesakes.remove()),
        }
    }

    /// Looks at the deny list, if it has changed.
    pub fn look(&mut self, denied: &DenyList) {
        if self.denials != denied.changes {
            self.denials = denied.changes;
            self.denied.clear();
            self.by_id.clear();
            self.domains.clear();
            (self.admitted, self.placeable) = (0, 0);
            let nodes: Vec<NodeId> = self.there.keys().copied().collect();
            for node in nodes {
                self.admit(node, denied);
            }
        }
    }

    fn count(&mut self, node: NodeId, comes: bool) {
        let Some((_, record)) = self.there.get(&node) else { return };
        let domain = record.labels().domain.clone();
        let order = self.order;
        let places = |domain: &Option<String>, nodes| order.places_of(domain.as_deref(), nodes);
        let nodes = self.domains.get(&domain).copied().unwrap_or(0);
        let now = if comes { nodes + 1 } else { nodes.saturating_sub(1) };
        self.placeable = self.placeable + places(&domain, now) - places(&domain, nodes);
        self.admitted = if comes { self.admitted + 1 } else { self.admitted.saturating_sub(1) };
        if now == 0 {
            self.domains.remove(&domain);
        } else {
            self.domains.insert(domain, now);
        }
    }

    /// How many nodes there are that may take part.
    pub fn len(&self) -> usize {
        self.admitted
    }

    pub fn placeable(&self) -> usize {
        self.placeable
    }

    /// Whether this node, or another one of the same `node_id`, is there.
    pub fn has(&self, node: NodeId, node_id: Option<&str>) -> bool {
        self.there.contains_key(&node) || node_id.is_some_and(|id| self.by_id.contains_key(id))
    }

    /// Whether this node is there and may take part: it is not denied, and no later one has its `node_id`.
    pub fn admits(&self, node: NodeId) -> bool {
        let Some((arrival, record)) = self.there.get(&node) else { return false };
        if self.denied.contains(&node) {
            return false;
        }
        let Some(node_id) = &record.labels().node_id else { return true };
        let namesakes = self.by_id.get(node_id);
        namesakes.and_then(BTreeSet::last).is_some_and(|last| *last == (*arrival, node))
    }

    pub fn all_are_admitted(&self) -> bool {
        self.admitted == self.there.len()
    }

    pub fn get(&self, node: NodeId) -> Option<&T> {
        self.there.get(&node).map(|(_, record)| record)
    }

    /// Those who may take part, with the revision at which they came.
    pub fn admitted(&self) -> impl Iterator<Item = (NodeId, i64, &T)> {
        let admitted = self.there.iter().filter(|(node, _)| self.admits(**node));
        admitted.map(|(node, (arrival, record))| (*node, *arrival, record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rendezvous::records::{Master, Stay};

    fn join(node_id: Option<&str>, domain: Option<&str>) -> Join {
        let labels = Labels {
            node_id: node_id.map(String::from),
            domain: domain.map(String::from),
            ..Labels::default()
        };
        let master = Master { addr: "a".into(), port: 1 };
        Join::new(NodeInfo::default(), master, Stay::default(), labels)
    }

    fn nodes(roll: &Roll<Join>) -> Vec<NodeId> {
        roll.admitted().map(|(node, ..)| node).collect()
    }

    #[test]
    fn of_two_with_one_node_id_the_later_one_counts() {
        let (mut roll, denied) = (Roll::<Join>::new(RankOrder::Stable), DenyList::default());
        roll.insert(1, 10, join(Some("x"), None), &denied);
        roll.insert(2, 20, join(Some("x"), None), &denied);
        roll.insert(3, 5, join(Some("x"), None), &denied);
        assert_eq!((nodes(&roll), roll.len(), roll.placeable()), (vec![2], 1, 1));
        roll.remove(2);
        assert_eq!((nodes(&roll), roll.len(), roll.placeable()), (vec![1], 1, 1));
        roll.remove(3);
        roll.remove(1);
        assert_eq!((roll.len(), roll.placeable()), (0, 0));
    }

    #[test]
    fn places_are_counted_in_whole_segments() {
        let order = RankOrder::Topology { segment: 2 };
        let (mut roll, denied) = (Roll::<Join>::new(order), DenyList::default());
        for (node, domain) in [(1, Some("a")), (2, Some("b")), (3, Some("a")), (4, None), (5, None)]
        {
            roll.insert(node, node, join(None, domain), &denied);
        }
        assert_eq!((roll.len(), roll.placeable()), (5, 2));
        roll.remove(1);
        assert_eq!((roll.len(), roll.placeable()), (4, 0));
    }
}
