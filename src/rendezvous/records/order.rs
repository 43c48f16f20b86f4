//! What the ranks of a world follow from. That of the coordinator decides, and stands in the completed record.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::text::label;

/// What the ranks follow from. That of the coordinator decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Named", into = "Named")]
pub enum RankOrder {
    /// The order of arrival.
    Join,
    /// A node that stays keeps its rank.
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
        // An order that this node does not know counts as the default: only the coordinator ranks by it.
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
