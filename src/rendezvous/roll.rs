//! The nodes that have joined the round, as its coordinator counts them. Each join changes the counts by
//! itself: to count all anew for each of thousands would take the square of them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::denied::Denied;
use super::keys::NodeId;
use super::ranks::RankOrder;
use super::records::Join;

pub(super) struct Roll {
    order: RankOrder,
    joined: BTreeMap<NodeId, (i64, Join)>,
    /// Of those who joined: who may not take part, or was replaced by another of its `node_id`.
    barred: BTreeSet<NodeId>,
    /// Who has joined with this `node_id` last.
    by_id: BTreeMap<String, NodeId>,
    domains: BTreeMap<Option<String>, usize>,
    /// For how many of them the order has places.
    placeable: usize,
    /// The changes of the deny list that are known here.
    denials: u64,
}

impl Roll {
    pub fn new(order: RankOrder) -> Self {
        Self {
            order,
            joined: BTreeMap::new(),
            barred: BTreeSet::new(),
            by_id: BTreeMap::new(),
            domains: BTreeMap::new(),
            placeable: 0,
            denials: 0,
        }
    }

    pub fn clear(&mut self) {
        *self = Self::new(self.order);
    }

    /// Who joined first keeps its arrival.
    pub fn insert(&mut self, node: NodeId, arrival: i64, join: Join, denied: &Denied) {
        if let Entry::Vacant(entry) = self.joined.entry(node) {
            entry.insert((arrival, join));
            self.admit(node, denied);
        }
    }

    fn admit(&mut self, node: NodeId, denied: &Denied) {
        let Some((arrival, join)) = self.joined.get(&node) else { return };
        if denied.has(node, &join.node, &join.labels) {
            self.barred.insert(node);
            return;
        }
        let domain = join.labels.domain.clone();
        if let Some(node_id) = join.labels.node_id.clone() {
            let (arrival, other) = (*arrival, self.by_id.get(&node_id).copied());
            match other.and_then(|other| Some((other, self.joined.get(&other)?.0))) {
                Some((_, later)) if later > arrival => {
                    self.barred.insert(node);
                    return;
                }
                Some((other, _)) => {
                    self.discount(other);
                    self.barred.insert(other);
                }
                None => {}
            }
            self.by_id.insert(node_id, node);
        }
        self.count(domain, true);
    }

    pub fn remove(&mut self, node: NodeId, denied: &Denied) {
        if !self.joined.contains_key(&node) {
            return;
        }
        let node_id = self.joined.get(&node).and_then(|(_, join)| join.labels.node_id.clone());
        if !self.barred.remove(&node) {
            self.discount(node);
        }
        self.joined.remove(&node);
        if let Some(node_id) = node_id
            && self.by_id.get(&node_id) == Some(&node)
        {
            self.by_id.remove(&node_id);
            if !self.barred.is_empty() {
                // Another one may be it now.
                self.recount(denied);
            }
        }
    }

    /// Looks at the deny list, if it has changed.
    pub fn look(&mut self, denied: &Denied) {
        if self.denials != denied.changes {
            self.denials = denied.changes;
            self.recount(denied);
        }
    }

    fn recount(&mut self, denied: &Denied) {
        self.barred.clear();
        self.by_id.clear();
        self.domains.clear();
        self.placeable = 0;
        let nodes: Vec<NodeId> = self.joined.keys().copied().collect();
        for node in nodes {
            self.admit(node, denied);
        }
    }

    fn discount(&mut self, node: NodeId) {
        let domain = self.joined.get(&node).map(|(_, join)| join.labels.domain.clone());
        if let Some(domain) = domain {
            self.count(domain, false);
        }
    }

    fn count(&mut self, domain: Option<String>, comes: bool) {
        let order = self.order;
        let places = |domain: &Option<String>, nodes| order.places_of(domain.as_deref(), nodes);
        let nodes = self.domains.get(&domain).copied().unwrap_or(0);
        let now = if comes { nodes + 1 } else { nodes.saturating_sub(1) };
        self.placeable = self.placeable + places(&domain, now) - places(&domain, nodes);
        if now == 0 {
            self.domains.remove(&domain);
        } else {
            self.domains.insert(domain, now);
        }
    }

    /// How many nodes there are that may take part.
    pub fn len(&self) -> usize {
        self.joined.len() - self.barred.len()
    }

    pub fn placeable(&self) -> usize {
        self.placeable
    }

    /// Whether this node, or another one of the same `node_id`, is there.
    pub fn has(&self, node: NodeId, node_id: Option<&str>) -> bool {
        self.joined.contains_key(&node) || node_id.is_some_and(|id| self.by_id.contains_key(id))
    }

    pub fn none_is_barred(&self) -> bool {
        self.barred.is_empty()
    }

    pub fn may_take_part(&self, node: NodeId) -> bool {
        self.joined.contains_key(&node) && !self.barred.contains(&node)
    }

    pub fn get(&self, node: NodeId) -> Option<&Join> {
        self.joined.get(&node).map(|(_, join)| join)
    }

    /// Those who may take part, with the revision at which they came.
    pub fn admitted(&self) -> impl Iterator<Item = (NodeId, i64, &Join)> {
        let admitted = self.joined.iter().filter(|(node, _)| !self.barred.contains(node));
        admitted.map(|(node, (arrival, join))| (*node, *arrival, join))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rendezvous::labels::Labels;
    use crate::rendezvous::records::{Master, NodeInfo, Stay};

    fn join(node_id: Option<&str>, domain: Option<&str>) -> Join {
        let labels = Labels {
            node_id: node_id.map(String::from),
            domain: domain.map(String::from),
            ..Labels::default()
        };
        let master = Master { addr: "a".into(), port: 1 };
        Join::new(NodeInfo::default(), master, Stay::default(), labels)
    }

    fn nodes(roll: &Roll) -> Vec<NodeId> {
        roll.admitted().map(|(node, ..)| node).collect()
    }

    #[test]
    fn of_two_with_one_node_id_the_later_one_counts() {
        let (mut roll, denied) = (Roll::new(RankOrder::Stable), Denied::default());
        roll.insert(1, 10, join(Some("x"), None), &denied);
        roll.insert(2, 20, join(Some("x"), None), &denied);
        roll.insert(3, 5, join(Some("x"), None), &denied);
        assert_eq!((nodes(&roll), roll.len(), roll.placeable()), (vec![2], 1, 1));
        roll.remove(2, &denied);
        assert_eq!((nodes(&roll), roll.len(), roll.placeable()), (vec![1], 1, 1));
        roll.remove(3, &denied);
        roll.remove(1, &denied);
        assert_eq!((roll.len(), roll.placeable()), (0, 0));
    }

    #[test]
    fn places_are_counted_in_whole_segments() {
        let order = RankOrder::Topology { segment: 2 };
        let (mut roll, denied) = (Roll::new(order), Denied::default());
        for (node, domain) in [(1, Some("a")), (2, Some("b")), (3, Some("a")), (4, None), (5, None)]
        {
            roll.insert(node, node, join(None, domain), &denied);
        }
        assert_eq!((roll.len(), roll.placeable()), (5, 2));
        roll.remove(1, &denied);
        assert_eq!((roll.len(), roll.placeable()), (4, 0));
    }
}
