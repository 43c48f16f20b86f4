//! Which watches see a key: by the key where it is one, else by the range.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::model::in_range;
use super::node::NodeIx;
use crate::etcd::WatchSpec;
use crate::rendezvous::WatchId;

type Who = BTreeSet<(NodeIx, WatchId)>;

/// There are many keys that one node watches, and few ranges.
#[derive(Default)]
pub struct Watchers {
    keys: HashMap<Vec<u8>, Who>,
    ranges: BTreeMap<(Vec<u8>, Vec<u8>), Who>,
}

impl Watchers {
    pub fn add(&mut self, spec: &WatchSpec, node: NodeIx, id: WatchId) {
        self.of_spec(spec).insert((node, id));
    }

    pub fn remove(&mut self, spec: &WatchSpec, node: NodeIx, id: WatchId) {
        let who = self.of_spec(spec);
        who.remove(&(node, id));
        if who.is_empty() {
            match end(spec) {
                None => drop(self.keys.remove(&spec.key)),
                Some(end) => drop(self.ranges.remove(&(spec.key.clone(), end.to_vec()))),
            }
        }
    }

    fn of_spec(&mut self, spec: &WatchSpec) -> &mut Who {
        match end(spec) {
            None => self.keys.entry(spec.key.clone()).or_default(),
            Some(end) => self.ranges.entry((spec.key.clone(), end.to_vec())).or_default(),
        }
    }

    /// The watches that see this key.
    pub fn of(&self, key: &[u8]) -> Vec<(NodeIx, WatchId)> {
        let ranges = self.ranges.iter().filter(|((from, end), _)| in_range(key, from, Some(end)));
        let who = self.keys.get(key).into_iter().chain(ranges.map(|(_, who)| who));
        who.flatten().copied().collect()
    }
}

fn end(spec: &WatchSpec) -> Option<&[u8]> {
    spec.range_end.as_deref().filter(|end| !end.is_empty())
}
