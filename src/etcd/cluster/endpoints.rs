//! The endpoints that a client may use, and which of them one attempt to connect tries, in which order.

use std::collections::HashSet;

use crate::etcd::endpoint::Endpoint;
use crate::etcd::unique::unique;

/// How many of the rest one attempt tries: the first ones have their turn again after it. Of a thousand hosts three may
/// run an etcd, and nothing answers on the others.
const OF_THE_REST: usize = 16;

/// Each endpoint once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Those that each attempt tries.
    first: Vec<Endpoint>,
    /// Those that are tried when none of the first has answered.
    rest: Vec<Endpoint>,
}

impl Endpoints {
    pub fn new(first: Vec<Endpoint>, rest: Vec<Endpoint>) -> Self {
        let mut seen = HashSet::new();
        let mut once = |list: Vec<Endpoint>| {
            let new = list.into_iter().filter(|endpoint| seen.insert(endpoint.clone()));
            new.collect::<Vec<_>>()
        };
        Self { first: once(first), rest: once(rest) }
    }

    /// Those that are tried first come first.
    pub fn all(&self) -> impl Iterator<Item = &Endpoint> {
        self.first.iter().chain(&self.rest)
    }

    /// Whether each attempt tries it.
    pub fn is_first(&self, endpoint: &Endpoint) -> bool {
        self.first.contains(endpoint)
    }
}

/// Where an attempt begins in each of the two lists.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    first: usize,
    rest: usize,
}

impl Default for Turn {
    /// Clients of one cluster spread over its members.
    fn default() -> Self {
        let drawn = || usize::try_from(unique() >> 96).unwrap_or(0);
        Self { first: drawn(), rest: drawn() }
    }
}

impl Turn {
    /// The endpoints of an attempt, in the order in which they are tried.
    pub fn of(self, endpoints: &Endpoints) -> Vec<Endpoint> {
        let first = from(&endpoints.first, self.first);
        first.chain(from(&endpoints.rest, self.rest).take(OF_THE_REST)).cloned().collect()
    }

    /// The next attempt begins with the next one, and goes on in the rest where this one ends.
    pub fn tried(&mut self) {
        self.first = self.first.wrapping_add(1);
        self.rest = self.rest.wrapping_add(OF_THE_REST);
    }

    /// The next attempt begins behind the one that is connected.
    pub fn connected(&mut self, endpoints: &Endpoints, to: &Endpoint) {
        let next = |list: &[Endpoint]| Some(list.iter().position(|endpoint| endpoint == to)? + 1);
        if let Some(next) = next(&endpoints.first) {
            self.first = next;
        } else if let Some(next) = next(&endpoints.rest) {
            self.rest = next;
        }
    }
}

/// All of them, from one on.
fn from(list: &[Endpoint], number: usize) -> impl Iterator<Item = &Endpoint> {
    let (before, from) = list.split_at(number.checked_rem(list.len()).unwrap_or(0));
    from.iter().chain(before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::endpoint::parse_endpoints;

    fn list(text: &str) -> Vec<Endpoint> {
        parse_endpoints(text, false).expect("endpoints")
    }

    fn hosts(turn: Turn, endpoints: &Endpoints) -> String {
        let hosts = turn.of(endpoints).into_iter().map(|endpoint| endpoint.host);
        hosts.collect::<Vec<_>>().join(",")
    }

    #[test]
    fn the_first_come_before_the_rest_and_each_list_takes_turns() {
        let endpoints = Endpoints::new(list("a,b,c"), list("d,a,e"));
        let mut turn = Turn { first: 1, rest: 0 };
        assert_eq!(hosts(turn, &endpoints), "b,c,a,d,e");
        turn.tried();
        assert_eq!(hosts(turn, &endpoints), "c,a,b,d,e");
        turn.connected(&endpoints, &list("a")[0]);
        assert_eq!(hosts(turn, &endpoints), "b,c,a,d,e");
        turn.connected(&endpoints, &list("d")[0]);
        assert_eq!(hosts(turn, &endpoints), "b,c,a,e,d");
        turn.connected(&endpoints, &list("x")[0]);
        assert_eq!(hosts(turn, &endpoints), "b,c,a,e,d");
    }

    #[test]
    fn clients_begin_with_any_of_the_first() {
        let endpoints = Endpoints::new(list("a,b,c"), list("d"));
        let begun: HashSet<_> =
            (0..200).map(|_| Turn::default().of(&endpoints)[0].clone()).collect();
        assert_eq!(begun, list("a,b,c").into_iter().collect());
    }

    #[test]
    fn an_attempt_tries_some_of_a_long_rest_and_the_next_ones_the_others() {
        let rest = (0..40).map(|number| format!("h{number}")).collect::<Vec<_>>().join(",");
        let endpoints = Endpoints::new(list("a"), list(&rest));
        let mut turn = Turn { first: 0, rest: 0 };
        let mut seen = HashSet::new();
        for _ in 0..3 {
            let tried = turn.of(&endpoints);
            assert_eq!(tried.len(), 1 + OF_THE_REST);
            assert_eq!(tried[0].host, "a");
            seen.extend(tried);
            turn.tried();
        }
        assert_eq!(seen.len(), 41);
    }

    #[test]
    fn one_list_may_be_empty() {
        let turn = Turn { first: usize::MAX, rest: usize::MAX };
        assert_eq!(hosts(turn, &Endpoints::new(Vec::new(), list("a"))), "a");
        assert_eq!(hosts(turn, &Endpoints::new(list("a"), Vec::new())), "a");
        let mut turn = turn;
        turn.tried();
    }
}
