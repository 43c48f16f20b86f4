//! How a server names the watches of a stream: etcd by the ids that it is asked to use, a proxy by its own.

use std::collections::HashMap;

/// How the server names the watches of a stream.
pub enum Names {
    /// It has named none yet. Until it has, one watch at a time is opened.
    Unknown,
    /// By our ids, as etcd does since 3.4.
    Ours,
    /// By ids of its own, as `etcd grpc-proxy` does: these are ours. It confirms watches in any order, so one at
    /// a time is opened.
    Theirs(HashMap<i64, i64>),
}

impl Names {
    /// Takes up what the server calls a watch that it has confirmed, by all signs the one asked for. Answers with
    /// our id of it.
    pub fn learn(&mut self, theirs: i64, asked: i64) -> i64 {
        match self {
            Self::Unknown if theirs == asked => *self = Self::Ours,
            Self::Unknown => *self = Self::Theirs(HashMap::from([(theirs, asked)])),
            Self::Ours => return theirs,
            Self::Theirs(names) => drop(names.insert(theirs, asked)),
        }
        asked
    }

    /// Our id of a watch.
    pub fn ours(&self, theirs: i64) -> Option<i64> {
        match self {
            Self::Unknown => None,
            Self::Ours => Some(theirs),
            Self::Theirs(names) => names.get(&theirs).copied(),
        }
    }

    /// The server's id of a watch that has ended.
    pub fn forget(&mut self, ours: i64) -> Option<i64> {
        match self {
            Self::Unknown => None,
            Self::Ours => Some(ours),
            Self::Theirs(names) => {
                let theirs = *names.iter().find(|(_, named)| **named == ours)?.0;
                names.remove(&theirs);
                Some(theirs)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_ours_where_the_server_takes_them() {
        let mut names = Names::Unknown;
        assert_eq!((names.ours(70), names.forget(70)), (None, None));
        names.learn(70, 70);
        assert_eq!((names.ours(70), names.ours(71)), (Some(70), Some(71)));
        assert_eq!(names.forget(71), Some(71));
    }

    #[test]
    fn ids_are_the_server_s_where_it_numbers_by_itself() {
        let mut names = Names::Unknown;
        for (theirs, ours) in [(0, 70), (1, 72), (2, 71)] {
            names.learn(theirs, ours);
        }
        assert_eq!(
            [0, 1, 2, 3].map(|theirs| names.ours(theirs)),
            [Some(70), Some(72), Some(71), None]
        );
        assert_eq!((names.forget(72), names.forget(72)), (Some(1), None));
        assert_eq!((names.ours(1), names.ours(2)), (None, Some(71)));
    }
}
