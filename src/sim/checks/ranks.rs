//! Ranks are in the order that the run has.

use std::collections::BTreeSet;

use super::history::History;
use super::round::{Limits, Nth, Round};
use super::violation::Violation;
use crate::rendezvous::keys::NodeId;
use crate::rendezvous::records::RankOrder;

pub fn in_order(history: &History, nth: Nth) -> Result<(), Violation> {
    let Some(state) = history.get(nth) else { return Ok(()) };
    let Some(Limits { order, .. }) = state.limits() else { return Ok(()) };
    let round = nth.round;
    match order {
        RankOrder::Stable => stable(history, nth),
        RankOrder::Join => sorted(state, round, |node| state.joined.get(&node).copied()),
        RankOrder::Infra => sorted(state, round, |node| {
            let infra = state.labels.get(&node).and_then(|labels| labels.infra_rank);
            (infra.is_none(), infra, state.joined.get(&node).copied())
        }),
        RankOrder::Topology { segment } => in_segments(state, round, segment),
    }
}

fn sorted<K: Ord>(state: &Round, round: u64, key: impl Fn(NodeId) -> K) -> Result<(), Violation> {
    if state.members.values().map(|node| key(*node)).is_sorted() {
        return Ok(());
    }
    let text = format!("round {round} has {:?}, of {:?}", state.members, state.labels);
    Err(Violation::new("ranks", text))
}

/// Whole segments of one domain each, and the members of a domain are neighbours.
fn in_segments(state: &Round, round: u64, segment: usize) -> Result<(), Violation> {
    let domain = |node: &NodeId| state.labels.get(node).and_then(|labels| labels.domain.clone());
    let domains: Vec<Option<String>> = state.members.values().map(domain).collect();
    let whole = domains.chunks(segment).all(|s| s.len() == segment && s.iter().all(|d| *d == s[0]));
    let mut runs = domains.clone();
    runs.dedup();
    if whole && runs.iter().collect::<BTreeSet<_>>().len() == runs.len() {
        return Ok(());
    }
    let text = format!("round {round} has {domains:?}, in segments of {segment}");
    Err(Violation::new("ranks", text))
}

/// Nodes that stay keep their order, a replacement takes the rank it replaces, and a node that comes back by
/// its `node_id` has its own.
fn stable(history: &History, nth: Nth) -> Result<(), Violation> {
    let Some(new) = history.get(nth) else { return Ok(()) };
    let previous = new.previous.map(|round| Nth { round, ..nth });
    let (Some(old), round) = (previous.and_then(|nth| history.get(nth)), nth.round) else {
        return Ok(());
    };
    let id = |round: &Round, node: &NodeId| round.labels.get(node)?.node_id.clone();
    let same = |former: &NodeId, node: &NodeId| {
        former == node || id(new, node).is_some_and(|own| id(old, former) == Some(own))
    };
    let old_rank =
        |node: &NodeId| old.members.iter().find(|(_, n)| same(n, node)).map(|(rank, _)| *rank);
    let mut stayed: Vec<(u32, u32)> =
        new.members.iter().filter_map(|(rank, node)| Some((old_rank(node)?, *rank))).collect();
    stayed.sort_unstable();
    let fresh = u32::try_from(new.members.len() - stayed.len()).unwrap_or(u32::MAX);
    for ((old_rank, new_rank), before) in stayed.iter().zip(0..) {
        // The lost ranks before it are filled by as many newcomers as there are.
        let expected = (before + fresh).min(*old_rank);
        if *new_rank != expected {
            let text = format!(
                "the member of rank {old_rank} has rank {new_rank} in round {round}, not {expected}: \
                 {:?} became {:?}",
                old.members, new.members
            );
            return Err(Violation::new("ranks", text));
        }
    }
    Ok(())
}
