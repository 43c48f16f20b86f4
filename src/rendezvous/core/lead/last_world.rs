//! What the rosters of the last world say about the nodes that come back.

use std::collections::BTreeMap;

use crate::etcd::kv::KeyValue;
use crate::rendezvous::records::{Reader, Roster};

/// What the rosters of the last world say about the nodes that come back.
#[derive(Default)]
pub struct LastWorld {
    /// The rank of each `node_id`.
    pub seats: BTreeMap<String, u32>,
    /// The rank at which each domain began.
    pub places: BTreeMap<String, u32>,
}

impl LastWorld {
    /// A roster that cannot be read tells nothing.
    pub fn of(reader: Reader, rosters: &[KeyValue]) -> Self {
        let mut last = Self::default();
        let rosters = rosters.iter().filter_map(|kv| reader.record::<Roster>("", &kv.value).ok());
        for member in rosters.flat_map(|roster| roster.members) {
            if let Some(node_id) = member.node_id {
                last.seats.insert(node_id, member.rank);
            }
            if let Some(domain) = member.domain {
                let first = last.places.entry(domain).or_insert(member.rank);
                *first = member.rank.min(*first);
            }
        }
        last
    }
}
