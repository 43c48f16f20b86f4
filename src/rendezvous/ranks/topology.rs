//! Nodes of one domain are neighbours. The world is made of whole segments, each of nodes of one domain;
//! who fills none waits. A domain keeps its place: one that is new takes that of one that is gone, where
//! it fits.

use std::collections::BTreeMap;

use super::candidate::Candidate;
use super::stable;
use crate::rendezvous::keys::NodeId;

/// The members of one domain, and where it began in the last world.
struct Domain<'a> {
    place: Option<u32>,
    /// When its first member came.
    arrival: i64,
    members: Vec<Candidate<'a>>,
}

pub fn assign(
    candidates: &[Candidate<'_>],
    max: usize,
    segment: usize,
    places: &BTreeMap<String, u32>,
) -> Vec<NodeId> {
    let chosen = choose(candidates, max / segment, segment);
    let domains = chosen.into_iter().map(|(name, members)| {
        let place = name.and_then(|name| places.get(name).copied());
        let known = || members.iter().filter_map(|c| c.previous).min();
        let arrival = members.iter().map(|c| c.arrival).min().unwrap_or(i64::MAX);
        Domain { place: place.or_else(known), arrival, members }
    });
    let ordered = in_places(domains.collect());
    let members = ordered.iter().flat_map(|d| stable::in_order(&d.members, d.place.unwrap_or(0)));
    members.map(|candidate| candidate.node).collect()
}

/// At most so many segments, by domain.
fn choose<'a>(
    candidates: &[Candidate<'a>],
    most: usize,
    segment: usize,
) -> BTreeMap<Option<&'a str>, Vec<Candidate<'a>>> {
    let mut domains: BTreeMap<Option<&str>, Vec<Candidate<'a>>> = BTreeMap::new();
    for candidate in candidates {
        // Whose neighbours those without a domain are is not known.
        if segment == 1 || candidate.domain.is_some() {
            domains.entry(candidate.domain).or_default().push(*candidate);
        }
    }
    let mut segments = Vec::new();
    for (domain, mut nodes) in domains {
        nodes.sort_by_key(|c| (c.previous.is_none(), c.claim()));
        for members in nodes.chunks_exact(segment) {
            let newcomers = members.iter().filter(|c| c.previous.is_none()).count();
            let complete = members.iter().map(|c| c.arrival).max();
            segments.push(((newcomers, complete, domain), members.to_vec()));
        }
    }
    segments.sort_by_key(|(merit, _)| *merit);
    segments.truncate(most);
    let mut chosen: BTreeMap<Option<&str>, Vec<Candidate<'a>>> = BTreeMap::new();
    for ((.., domain), members) in segments {
        chosen.entry(domain).or_default().extend(members);
    }
    chosen
}

fn in_places(domains: Vec<Domain<'_>>) -> Vec<Domain<'_>> {
    let (mut known, mut new): (Vec<_>, Vec<_>) =
        domains.into_iter().partition(|domain| domain.place.is_some());
    known.sort_by_key(|domain| (domain.place, domain.arrival));
    new.sort_by_key(|domain| domain.arrival);
    let (mut ordered, mut ranks) = (Vec::with_capacity(known.len() + new.len()), 0);
    for domain in known {
        let place = usize::try_from(domain.place.unwrap_or(0)).unwrap_or(usize::MAX);
        while let Some(fits) = new.iter().position(|d| ranks + d.members.len() <= place) {
            let newcomer = new.remove(fits);
            ranks += newcomer.members.len();
            ordered.push(newcomer);
        }
        ranks += domain.members.len();
        ordered.push(domain);
    }
    ordered.extend(new);
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes 1, 2, ... with a domain each and a rank in the last world.
    fn candidates<'a>(list: &[(&'a str, Option<u32>)]) -> Vec<Candidate<'a>> {
        let candidate = |((domain, previous), node): (&(&'a str, Option<u32>), i64)| Candidate {
            node,
            arrival: node,
            previous: *previous,
            infra: None,
            domain: Some(*domain).filter(|domain| !domain.is_empty()),
        };
        list.iter().zip(1..).map(candidate).collect()
    }

    fn assigned(list: &[(&str, Option<u32>)], max: usize, segment: usize) -> Vec<NodeId> {
        assign(&candidates(list), max, segment, &BTreeMap::new())
    }

    const NEW: Option<u32> = None;

    #[test]
    fn nodes_of_one_domain_are_neighbours() {
        let list = [("a", NEW), ("b", NEW), ("a", NEW), ("c", NEW), ("b", NEW)];
        assert_eq!(assigned(&list, 8, 1), [1, 3, 2, 5, 4]);
    }

    #[test]
    fn who_fills_no_segment_waits() {
        let list = [("a", NEW), ("b", NEW), ("a", NEW), ("c", NEW), ("b", NEW), ("a", NEW)];
        assert_eq!(assigned(&list, 8, 2), [1, 3, 2, 5]);
        assert_eq!(assigned(&list, 3, 2), [1, 3]);
        assert_eq!(assigned(&list, 8, 4), [0; 0]);
    }

    #[test]
    fn nodes_without_a_domain_fill_no_segment() {
        let list = [("", NEW), ("a", NEW), ("", NEW), ("a", NEW)];
        assert_eq!(assigned(&list, 8, 2), [2, 4]);
        assert_eq!(assigned(&list, 8, 1).len(), 4);
    }

    #[test]
    fn segments_of_those_who_were_there_come_first() {
        let list =
            [("a", NEW), ("a", NEW), ("b", Some(0)), ("b", Some(1)), ("c", NEW), ("c", Some(2))];
        assert_eq!(assigned(&list, 4, 2), [3, 4, 6, 5]);
    }

    #[test]
    fn a_domain_keeps_its_place_and_a_new_one_takes_that_of_a_lost_one() {
        // a had 0 and 1, b 2 and 3 and is gone, c 4 and 5; d is new.
        let list = [
            ("c", Some(4)),
            ("c", Some(5)),
            ("d", NEW),
            ("d", NEW),
            ("a", Some(0)),
            ("a", Some(1)),
        ];
        assert_eq!(assigned(&list, 8, 2), [5, 6, 3, 4, 1, 2]);
    }

    #[test]
    fn a_domain_whose_nodes_are_all_new_has_the_place_it_had() {
        let list = [("b", NEW), ("b", NEW), ("a", Some(0)), ("a", Some(1))];
        let places = BTreeMap::from([("a".to_string(), 0), ("b".to_string(), 2)]);
        assert_eq!(assign(&candidates(&list), 8, 2, &places), [3, 4, 1, 2]);
        let places = BTreeMap::from([("a".to_string(), 2), ("b".to_string(), 0)]);
        assert_eq!(assign(&candidates(&list), 8, 2, &places), [1, 2, 3, 4]);
    }

    #[test]
    fn within_its_domain_a_replacement_takes_the_rank_it_replaces() {
        let list = [
            ("b", Some(5)),
            ("b", NEW),
            ("b", Some(3)),
            ("a", Some(0)),
            ("a", Some(1)),
            ("a", Some(2)),
        ];
        let places = BTreeMap::from([("a".to_string(), 0), ("b".to_string(), 3)]);
        assert_eq!(assign(&candidates(&list), 8, 3, &places), [4, 5, 6, 3, 2, 1]);
    }
}
