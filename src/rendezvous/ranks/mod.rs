//! Which nodes are admitted to a round, and in which order.

mod candidate;
mod roll;
mod stable;
mod topology;

use std::collections::BTreeMap;

pub use candidate::Candidate;
pub use roll::{Named, Roll};

use super::keys::NodeId;
use super::records::RankOrder;

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
