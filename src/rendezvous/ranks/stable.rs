//! A member that stays keeps its order, and its rank where every lost rank before it is taken by a newcomer: a
//! replacement takes the rank it replaces.

use super::candidate::Candidate;

/// All of them, in the order of ranks that begin with `first` in the last world.
pub fn in_order<'a>(admitted: &[Candidate<'a>], first: u32) -> Vec<Candidate<'a>> {
    let mut stayed: Vec<(u32, Candidate<'a>)> =
        admitted.iter().filter_map(|c| Some((c.previous?, *c))).collect();
    stayed.sort_by_key(|(_, candidate)| candidate.claim());
    let mut fresh: Vec<Candidate<'a>> =
        admitted.iter().filter(|c| c.previous.is_none()).copied().collect();
    fresh.sort_by_key(Candidate::claim);

    let mut fresh = fresh.into_iter();
    let mut world = Vec::with_capacity(admitted.len());
    let mut old_rank = first;
    for (rank, candidate) in stayed {
        while old_rank < rank {
            match fresh.next() {
                Some(replacement) => world.push(replacement),
                None => break,
            }
            old_rank += 1;
        }
        world.push(candidate);
        old_rank = rank.saturating_add(1);
    }
    world.extend(fresh);
    world
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::assign as assign_in;
    use super::*;
    use crate::rendezvous::keys::NodeId;
    use crate::rendezvous::records::RankOrder;

    fn candidates(list: &[(NodeId, Option<u32>)]) -> Vec<Candidate<'static>> {
        let arrivals = 1..;
        let candidate = |((node, previous), arrival): (&(NodeId, Option<u32>), i64)| Candidate {
            node: *node,
            arrival,
            previous: *previous,
            ..Candidate::default()
        };
        list.iter().zip(arrivals).map(candidate).collect()
    }

    fn assign(candidates: &[Candidate<'_>], max: usize) -> Vec<NodeId> {
        assign_in(candidates, max, RankOrder::Stable, &BTreeMap::new())
    }

    #[test]
    fn newcomers_are_ranked_by_arrival() {
        assert_eq!(assign(&candidates(&[(7, None), (3, None), (5, None)]), 2), [7, 3]);
    }

    #[test]
    fn who_stays_keeps_its_rank_and_a_replacement_takes_the_lost_one() {
        let joined = candidates(&[(9, None), (3, Some(3)), (2, Some(2)), (1, Some(0))]);
        assert_eq!(assign(&joined, 4), [1, 9, 2, 3]);
    }

    #[test]
    fn without_replacements_the_order_is_kept() {
        let joined = candidates(&[(3, Some(3)), (2, Some(2)), (1, Some(0))]);
        assert_eq!(assign(&joined, 4), [1, 2, 3]);
    }

    #[test]
    fn survivors_come_before_spares_that_were_faster() {
        let joined = candidates(&[(8, None), (9, None), (2, Some(1)), (1, Some(0))]);
        assert_eq!(assign(&joined, 2), [1, 2]);
        assert_eq!(assign(&joined, 3), [1, 2, 8]);
    }

    #[test]
    fn a_newcomer_does_not_push_anyone_when_nobody_was_lost() {
        assert_eq!(assign(&candidates(&[(9, None), (2, Some(1)), (1, Some(0))]), 4), [1, 2, 9]);
    }

    #[test]
    fn a_false_claim_of_a_huge_rank_costs_nothing() {
        assert_eq!(assign(&candidates(&[(2, Some(u32::MAX)), (1, None)]), 4), [1, 2]);
        let both = candidates(&[(2, Some(u32::MAX)), (3, Some(u32::MAX)), (1, None)]);
        assert_eq!(assign(&both, 4), [1, 2, 3]);
    }
}
