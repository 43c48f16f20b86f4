//! Who is admitted to a round, and in which order.

use super::keys::NodeId;

/// A node that joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub node: NodeId,
    /// The revision at which it joined: the order of arrival.
    pub arrival: i64,
    /// Its rank in the last completed round, when it was a member there.
    pub previous: Option<u32>,
}

/// The members of the new world in the order of their ranks.
///
/// Members of the last world come before others when there are more than `max`, and the others in the
/// order of their arrival. A member of the last world keeps its order, and its rank where every lost
/// rank before it is taken by a newcomer: a replacement takes the rank it replaces.
pub fn assign(candidates: &[Candidate], max: usize) -> Vec<NodeId> {
    let mut stayed: Vec<(u32, &Candidate)> =
        candidates.iter().filter_map(|c| c.previous.map(|rank| (rank, c))).collect();
    stayed.sort_by_key(|(rank, candidate)| (*rank, candidate.arrival));
    stayed.truncate(max);
    let mut fresh: Vec<&Candidate> = candidates.iter().filter(|c| c.previous.is_none()).collect();
    fresh.sort_by_key(|candidate| candidate.arrival);
    fresh.truncate(max - stayed.len());

    let mut fresh = fresh.into_iter().map(|candidate| candidate.node);
    let mut world = Vec::new();
    let mut old_rank = 0;
    for (rank, candidate) in stayed {
        while old_rank < rank {
            match fresh.next() {
                Some(replacement) => world.push(replacement),
                None => break,
            }
            old_rank += 1;
        }
        world.push(candidate.node);
        old_rank = rank.saturating_add(1);
    }
    world.extend(fresh);
    world
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(list: &[(NodeId, Option<u32>)]) -> Vec<Candidate> {
        let arrivals = 1..;
        list.iter()
            .zip(arrivals)
            .map(|((node, previous), arrival)| Candidate {
                node: *node,
                arrival,
                previous: *previous,
            })
            .collect()
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
