//! Who is admitted to a round, and in which order.

mod stable;
mod topology;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::keys::NodeId;
use super::labels::label;

/// What the ranks follow from. That of the coordinator decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Named", into = "Named")]
pub enum RankOrder {
    /// The order of arrival.
    Join,
    /// Who stays keeps its rank.
    #[default]
    Stable,
    /// The ranks that the infrastructure gave.
    Infra,
    /// Nodes of one domain are neighbours, in whole segments of so many.
    Topology { segment: usize },
}

impl RankOrder {
    /// By the name that parameters have; `None` where there is no such order.
    pub fn of(name: &str, segment: usize) -> Option<Self> {
        match (name, segment) {
            ("join", 1) => Some(Self::Join),
            ("stable", 1) => Some(Self::Stable),
            ("infra", 1) => Some(Self::Infra),
            ("topology", 1..) => Some(Self::Topology { segment }),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Stable => "stable",
            Self::Infra => "infra",
            Self::Topology { .. } => "topology",
        }
    }

    fn segment(self) -> usize {
        match self {
            Self::Topology { segment } => segment.max(1),
            _ => 1,
        }
    }

    /// For how many of these nodes, which share a domain, there can be places.
    pub fn places_of(self, domain: Option<&str>, nodes: usize) -> usize {
        let segment = self.segment();
        if segment > 1 && domain.is_none() {
            // Whose neighbours they are is not known.
            return 0;
        }
        nodes / segment * segment
    }

    /// The same of nodes of several domains.
    pub fn placeable<'a>(self, domains: impl Iterator<Item = Option<&'a str>>) -> usize {
        let mut nodes: BTreeMap<Option<&str>, usize> = BTreeMap::new();
        domains.for_each(|domain| *nodes.entry(domain).or_default() += 1);
        nodes.into_iter().map(|(domain, nodes)| self.places_of(domain, nodes)).sum()
    }

    /// The size of the smallest world where `min` are needed.
    pub fn smallest(self, min: usize) -> usize {
        min.div_ceil(self.segment()).saturating_mul(self.segment())
    }

    /// The size of the largest world where `max` are allowed.
    pub fn largest(self, max: usize) -> usize {
        max / self.segment() * self.segment()
    }
}

/// As records and parameters have it.
#[derive(Serialize, Deserialize)]
struct Named {
    #[serde(default, deserialize_with = "label")]
    rank_order: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    segment: Option<u32>,
}

impl From<RankOrder> for Named {
    fn from(order: RankOrder) -> Self {
        let segment = u32::try_from(order.segment()).unwrap_or(u32::MAX);
        Self { rank_order: Some(order.name().into()), segment: (segment > 1).then_some(segment) }
    }
}

impl From<Named> for RankOrder {
    fn from(named: Named) -> Self {
        let name = named.rank_order.as_deref().unwrap_or_default();
        let segment = named.segment.unwrap_or(1) as usize;
        // An order that this node does not know counts as the default: only who coordinates ranks by it.
        Self::of(name, segment).unwrap_or_default()
    }
}

impl std::fmt::Display for RankOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Topology { segment } => write!(f, "topology in segments of {segment}"),
            _ => write!(f, "{}", self.name()),
        }
    }
}

/// A node that joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidate<'a> {
    pub node: NodeId,
    /// The revision at which it joined: the order of arrival.
    pub arrival: i64,
    /// Its rank in the last completed round, when it, or an earlier one of its `node_id`, was a member there.
    pub previous: Option<u32>,
    pub infra: Option<u64>,
    pub domain: Option<&'a str>,
}

impl Candidate<'_> {
    /// Who was there before comes first, by rank, and then who came first.
    fn claim(&self) -> (u32, i64, NodeId) {
        (self.previous.unwrap_or(u32::MAX), self.arrival, self.node)
    }
}

/// The members of the new world in the order of their ranks.
///
/// Members of the last world come before others when there are more than `max`, and the others in the
/// order of their arrival; a world of segments prefers segments with such members. `places` says at
/// which rank a domain began in the last world.
pub fn assign(
    candidates: &[Candidate<'_>],
    max: usize,
    order: RankOrder,
    places: &BTreeMap<String, u32>,
) -> Vec<NodeId> {
    if let RankOrder::Topology { segment } = order {
        return topology::assign(candidates, max, segment.max(1), places);
    }
    let mut admitted: Vec<Candidate<'_>> = candidates.to_vec();
    admitted.sort_by_key(|c| (c.previous.is_none(), c.claim()));
    admitted.truncate(max);
    match order {
        RankOrder::Join => admitted.sort_by_key(|c| (c.arrival, c.node)),
        RankOrder::Infra => {
            admitted.sort_by_key(|c| (c.infra.is_none(), c.infra, c.arrival, c.node));
        }
        RankOrder::Stable | RankOrder::Topology { .. } => {
            return stable::in_order(&admitted, 0).into_iter().map(|c| c.node).collect();
        }
    }
    admitted.into_iter().map(|c| c.node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn infra(list: &[(NodeId, Option<u64>)]) -> Vec<Candidate<'static>> {
        let arrivals = 1..;
        let candidate = |((node, infra), arrival): (&(NodeId, Option<u64>), i64)| Candidate {
            node: *node,
            infra: *infra,
            arrival,
            previous: Some(u32::try_from(*node).unwrap()),
            domain: None,
        };
        list.iter().zip(arrivals).map(candidate).collect()
    }

    fn assigned(candidates: &[Candidate<'_>], order: RankOrder) -> Vec<NodeId> {
        assign(candidates, 8, order, &BTreeMap::new())
    }

    #[test]
    fn by_arrival_whatever_was_before() {
        let joined = infra(&[(3, None), (1, Some(0)), (2, None)]);
        assert_eq!(assigned(&joined, RankOrder::Join), [3, 1, 2]);
    }

    #[test]
    fn by_the_ranks_of_the_infrastructure_which_need_not_be_dense() {
        let joined = infra(&[(1, Some(7)), (2, Some(0)), (3, Some(u64::MAX)), (4, Some(3))]);
        assert_eq!(assigned(&joined, RankOrder::Infra), [2, 4, 1, 3]);
    }

    #[test]
    fn of_those_with_one_rank_who_came_first_and_last_those_without() {
        let joined = infra(&[(5, None), (4, Some(1)), (3, Some(1)), (2, Some(0)), (1, None)]);
        assert_eq!(assigned(&joined, RankOrder::Infra), [2, 4, 3, 5, 1]);
    }

    #[test]
    fn who_was_there_is_admitted_first_in_every_order() {
        let mut joined = infra(&[(9, Some(0)), (8, Some(1)), (7, Some(2))]);
        joined[0].previous = None;
        for order in [RankOrder::Join, RankOrder::Stable, RankOrder::Infra] {
            let mut world = assign(&joined, 2, order, &BTreeMap::new());
            world.sort_unstable();
            assert_eq!(world, [7, 8], "{order}");
        }
    }
}
