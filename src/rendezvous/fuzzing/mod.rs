//! What the fuzz targets in `fuzz/` run of the rendezvous. A failed assertion is a finding.

mod machine;

use std::collections::{BTreeMap, BTreeSet};

use arbitrary::{Arbitrary, Unstructured};

pub use self::machine::run_machine;
use super::keys::{Keys, NodeId, RoundId, escape, node_of, unescape};
use super::ranks::{Candidate, assign};
use super::records::{
    self, Coordinator, Denial, LastCall, Loss, Past, RankOrder, Reader, Roster, Waiting,
};
use crate::etcd::kv::KeyValue;

const READER: Reader = Reader { newest: 1 };

/// Reads the bytes as each kind of record.
pub fn read_records(data: &[u8]) {
    reads(data, |data| READER.control("/k", data));
    reads(data, |data| READER.member("/k", data, u32::MAX));
    reads::<Coordinator>(data, |data| READER.record("/k", data));
    reads::<Waiting>(data, |data| READER.record("/k", data));
    reads::<Denial>(data, |data| READER.record("/k", data));
    reads::<Loss>(data, |data| READER.record("/k", data));
    reads::<Roster>(data, |data| READER.record("/k", data));
    reads::<Past>(data, |data| READER.record("/k", data));
    reads::<LastCall>(data, |data| READER.record("/k", data));
    let kv = KeyValue {
        key: b"/join/0000000000000007".to_vec(),
        value: data.to_vec(),
        lease: 7,
        ..KeyValue::default()
    };
    if let Some((node, join)) = READER.join(&kv) {
        assert_eq!(node, 7);
        let again = KeyValue { value: records::encode(&join, 1), ..kv };
        assert!(again.value.len() < 8000, "{join:?}");
        assert_eq!(READER.join(&again), Some((7, join)));
    }
}

/// What was read reads the same when it is written again, and an error names the key in few words.
fn reads<T: serde::Serialize + PartialEq + std::fmt::Debug>(
    data: &[u8],
    decode: impl Fn(&[u8]) -> std::result::Result<T, records::UnreadableRecord>,
) {
    match decode(data) {
        Ok(record) => {
            let again = records::encode(&record, 1);
            assert!(again.len() < 8000, "{record:?}");
            assert_eq!(decode(&again), Ok(record));
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("'/k'") && text.chars().count() < 2000, "{text}");
            assert!(!text.contains(|c: char| c.is_control()), "{text:?}");
        }
    }
}

/// Finds nodes in names, and those of our own keys.
pub fn read_keys(data: &[u8]) {
    if let Some(node) = node_of(data) {
        assert!(node > 0);
    }
    let mut u = Unstructured::new(data);
    let Ok((run, attempt, round, node)) = <(&str, &str, u64, NodeId)>::arbitrary(&mut u) else {
        return;
    };
    assert_eq!(unescape(escape(run).as_bytes()).as_deref(), Some(run));
    if let Some(name) = unescape(data) {
        assert!(!escape(&name).contains('/'));
    }
    let keys = Keys::new(run);
    assert!(keys.run_lease() > 0);
    let id = RoundId { round, attempt: attempt.into() };
    let own = [keys.join(round, node), keys.waiting(round, node), keys.member(&id, node)];
    for key in own {
        assert_eq!(node_of(key.as_bytes()), Some(node).filter(|node| *node > 0), "{key}");
        assert!(key.starts_with(&keys.round(round)));
    }
}

/// Ranks of any candidates.
pub fn assign_ranks(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let Ok((max, list)) = <(u16, Vec<(NodeId, i64, Option<u32>)>)>::arbitrary(&mut u) else {
        return;
    };
    let labels: Vec<(Option<u64>, u8)> = Vec::arbitrary(&mut u).unwrap_or_default();
    let (mut seen, max) = (BTreeSet::new(), usize::from(max).max(1));
    let candidates: Vec<Candidate<'_>> = list
        .into_iter()
        .zip(labels.into_iter().chain(std::iter::repeat((None, 0))))
        .filter(|((node, ..), _)| seen.insert(*node))
        .map(|((node, arrival, previous), (infra, domain))| {
            let domain = ["a", "b", "c"].get(usize::from(domain % 4)).copied();
            Candidate { node, arrival, previous, infra, domain }
        })
        .collect();
    for order in [RankOrder::Join, RankOrder::Stable, RankOrder::Infra] {
        check_ranks(&candidates, max, order);
    }
    for segment in 1..=3 {
        check_segments(&candidates, max, segment);
    }
}

fn check_segments(candidates: &[Candidate<'_>], max: usize, segment: usize) {
    let order = RankOrder::Topology { segment };
    let places = BTreeMap::from([("b".to_string(), 0), ("c".to_string(), 4)]);
    let world = assign(candidates, max, order, &places);
    let distinct: BTreeSet<_> = world.iter().collect();
    assert_eq!(distinct.len(), world.len(), "a node has two ranks");
    let placeable = order.placeable(candidates.iter().map(|c| c.domain));
    assert_eq!(world.len(), placeable.min(order.largest(max)));
    let domain = |node: &NodeId| candidates.iter().find(|c| c.node == *node).map(|c| c.domain);
    let domains: Vec<_> = world.iter().map(domain).collect();
    for members in domains.chunks(segment) {
        assert_eq!(members, vec![members[0]; segment], "a segment has nodes of one domain");
    }
    let mut runs = domains;
    runs.dedup();
    let distinct: BTreeSet<_> = runs.iter().collect();
    assert_eq!(distinct.len(), runs.len(), "nodes of one domain are neighbours");
}

fn check_ranks(candidates: &[Candidate<'_>], max: usize, order: RankOrder) {
    let world = assign(candidates, max, order, &BTreeMap::new());
    assert_eq!(world.len(), candidates.len().min(max));
    let members: BTreeSet<_> = world.iter().collect();
    assert_eq!(members.len(), world.len(), "a node has two ranks");
    let stayed = |c: &&Candidate| c.previous.is_some();
    let survivors = candidates.iter().filter(stayed).count();
    let kept = candidates.iter().filter(stayed).filter(|c| members.contains(&c.node)).count();
    assert_eq!(kept, survivors.min(max), "a newcomer took a survivor's place");
}
