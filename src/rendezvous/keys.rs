//! Where the state of a run lies in etcd. `docs/protocol.md` has the table.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::etcd::kv::prefix_end;

/// From the first key on, before the second.
pub type KeyRange = (Vec<u8>, Vec<u8>);

/// A node's identity is the id of its lease: unique for ever, and its keys go when it goes.
pub type NodeId = i64;

/// A round that was completed, and the attempt that completed it. The number alone comes back when an
/// operator deletes a run's keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RoundId {
    pub round: u64,
    pub attempt: String,
}

/// The keys of one run.
#[derive(Clone, Debug)]
pub struct Keys {
    run: String,
}

impl Keys {
    /// `run` is the run's own prefix and ends with a slash.
    pub fn new(run: impl Into<String>) -> Self {
        let mut run = run.into();
        if !run.ends_with('/') {
            run.push('/');
        }
        Self { run }
    }

    /// The id of the lease that holds what must outlast every node: the same for all who use the run,
    /// so that nobody has to be asked for it. FNV-1a over the run's prefix, never 0 or negative.
    pub fn run_lease(&self) -> i64 {
        let hash = self.run.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        // The shift leaves 63 bits, so the conversion cannot fail.
        i64::try_from(hash >> 1).unwrap_or(1).max(1)
    }

    /// The prefix that everybody watches: the control record, the coordinator's key, the loss.
    pub fn head(&self) -> String {
        format!("{}rdzv/head/", self.run)
    }

    pub fn control(&self) -> String {
        format!("{}rdzv/head/control", self.run)
    }

    pub fn coordinator(&self) -> String {
        format!("{}rdzv/head/coordinator", self.run)
    }

    pub fn loss(&self) -> String {
        format!("{}rdzv/head/loss", self.run)
    }

    /// The prefix of the names that are denied.
    pub fn denials(&self) -> String {
        format!("{}rdzv/head/denied/", self.run)
    }

    /// The node that counts the waiting nodes, and how many there are.
    pub fn usher(&self) -> String {
        format!("{}rdzv/head/waiting", self.run)
    }

    /// The node that holds a node id at present.
    pub fn holder(&self, node_id: &str) -> String {
        format!("{}rdzv/node/{}", self.run, escape(node_id))
    }

    /// The prefix of the rounds that are remembered.
    pub fn histories(&self) -> String {
        format!("{}rdzv/history/", self.run)
    }

    pub fn history(&self, round: u64) -> String {
        format!("{}rdzv/history/{round:016x}", self.run)
    }

    /// The ranges of all that belongs to other rounds than this one, or to other attempts to complete it.
    pub fn other_rounds(&self, id: &RoundId) -> Vec<KeyRange> {
        let (run, RoundId { round, attempt }) = (&self.run, id);
        [
            (format!("{run}rdzv/round/"), self.round(*round)),
            (format!("{run}rdzv/v_"), self.round_data(*round)),
            (format!("{}member/", self.round(*round)), self.members(id)),
            (format!("{}roster/", self.round(*round)), self.rosters(id)),
            (self.round_data(*round), format!("{}{attempt}/", self.round_data(*round))),
        ]
        .into_iter()
        .flat_map(|(all, this)| {
            let end = prefix_end(all.as_bytes());
            let after = prefix_end(this.as_bytes());
            [(all.into_bytes(), this.into_bytes()), (after, end)]
        })
        .collect()
    }

    pub fn round(&self, round: u64) -> String {
        format!("{}rdzv/round/{round}/", self.run)
    }

    pub fn joins(&self, round: u64) -> String {
        format!("{}rdzv/round/{round}/join/", self.run)
    }

    pub fn join(&self, round: u64, node: NodeId) -> String {
        format!("{}rdzv/round/{round}/join/{node:016x}", self.run)
    }

    /// Each attempt to complete a round has member keys of its own: what is left of one that failed is
    /// nobody's membership, and is neither counted nor missed.
    pub fn members(&self, id: &RoundId) -> String {
        format!("{}member/{}/", self.round(id.round), id.attempt)
    }

    pub fn member(&self, id: &RoundId, node: NodeId) -> String {
        format!("{}{node:016x}", self.members(id))
    }

    /// The prefix of the parts of the list of a round's members.
    pub fn rosters(&self, id: &RoundId) -> String {
        format!("{}roster/{}/", self.round(id.round), id.attempt)
    }

    pub fn roster(&self, id: &RoundId, part: usize) -> String {
        format!("{}{part}", self.rosters(id))
    }

    pub fn waitings(&self, round: u64) -> String {
        format!("{}rdzv/round/{round}/waiting/", self.run)
    }

    pub fn waiting(&self, round: u64, node: NodeId) -> String {
        format!("{}rdzv/round/{round}/waiting/{node:016x}", self.run)
    }

    pub fn last_call(&self, round: u64) -> String {
        format!("{}rdzv/round/{round}/last_call", self.run)
    }

    /// What belongs to rounds of this number besides the rendezvous itself: `PyTorch`'s layout
    /// (torch `etcd_rendezvous.py`, `setup_kv_store` and `store_extra_data`), with the attempt in between.
    pub fn round_data(&self, round: u64) -> String {
        format!("{}rdzv/v_{round}/", self.run)
    }

    /// One of the stores of a round.
    pub fn round_store(&self, id: &RoundId, name: &str) -> String {
        format!("{}{}/{name}/", self.round_data(id.round), id.attempt)
    }
}

/// What stays as it is in a name that is a part of a key, besides letters and digits; the same as for run
/// ids (`python/torchetcd/_key_names.py`).
const KEPT: &[u8] = b"_-.~!$&'()*+,;=:@ ";

/// A name as the part of a key that holds no slash, and that no other name has.
pub fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || KEPT.contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

/// The name that was escaped so; `None` where nothing was.
pub fn unescape(segment: &[u8]) -> Option<String> {
    let mut name = Vec::with_capacity(segment.len());
    let mut rest = segment;
    while let [first, after @ ..] = rest {
        if *first == b'%' {
            let code = std::str::from_utf8(after.get(..2)?).ok()?;
            name.push(u8::from_str_radix(code, 16).ok()?);
            rest = &after[2..];
        } else {
            name.push(*first);
            rest = after;
        }
    }
    String::from_utf8(name).ok()
}

/// The node of a key that ends with one; `None` for a key that is not ours.
pub fn node_of(key: &[u8]) -> Option<NodeId> {
    let name = key.rsplit(|byte| *byte == b'/').next()?;
    if name.len() != 16 {
        return None;
    }
    i64::from_str_radix(std::str::from_utf8(name).ok()?, 16).ok().filter(|node| *node > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_found_again_in_its_keys() {
        let keys = Keys::new("/p/run_a");
        for node in [1, 0x0123_4567_89ab_cdef, i64::MAX] {
            assert_eq!(node_of(keys.join(3, node).as_bytes()), Some(node));
        }
        for foreign in ["/p/x", "/p/0000000000000000", "/p/ffffffffffffffff", "/p/zzzzzzzzzzzzzzzz"]
        {
            assert_eq!(node_of(foreign.as_bytes()), None, "{foreign}");
        }
    }

    #[test]
    fn a_name_is_found_again_in_its_key() {
        for (name, segment) in [
            ("host-1.x", "host-1.x"),
            ("a/b", "a%2Fb"),
            ("100%", "100%25"),
            ("größe 1", "gr%C3%B6%C3%9Fe 1"),
            ("\n\"#?[]", "%0A%22%23%3F%5B%5D"),
            ("!$&'()*+,;=:@~_", "!$&'()*+,;=:@~_"),
        ] {
            assert_eq!(escape(name), segment);
            assert_eq!(unescape(segment.as_bytes()).as_deref(), Some(name));
        }
        for broken in ["%", "%2", "%zz", "%FF", "a%2"] {
            assert_eq!(unescape(broken.as_bytes()), None, "{broken}");
        }
    }

    #[test]
    fn the_other_rounds_are_all_but_one() {
        let keys = Keys::new("/p/run_a");
        let id = |round, attempt: &str| RoundId { round, attempt: attempt.into() };
        let others = keys.other_rounds(&id(12, "5.1"));
        let is_other = |key: &str| {
            let key = key.as_bytes();
            others.iter().filter(|(from, end)| &from[..] <= key && key < &end[..]).count() == 1
        };
        for round in [1, 2, 11, 13, 112, 120, 121, 2000] {
            let store = keys.round_store(&id(round, "5.1"), "kv");
            assert!(is_other(&keys.join(round, 1)) && is_other(&store), "{round}");
        }
        for attempt in ["5.0", "5.10", "5.2", "5", "6.1", ""] {
            let id = id(12, attempt);
            let store = keys.round_store(&id, "kv");
            for key in [keys.member(&id, 1), keys.roster(&id, 0), store] {
                assert!(is_other(&key), "{key}");
            }
        }
        let id = id(12, "5.1");
        let (store, member) = (keys.round_store(&id, "kv"), keys.member(&id, 1));
        let own = [keys.join(12, 1), keys.last_call(12), store, member, keys.roster(&id, 0)];
        assert!(!own.iter().any(|key| is_other(key)));
        assert!(!is_other(&keys.control()) && !is_other(&keys.waiting(12, 1)));
        assert!(!is_other(&keys.history(3)) && !is_other(&keys.holder("x")));
    }

    #[test]
    fn runs_have_leases_of_their_own() {
        let lease = |run: &str| Keys::new(run).run_lease();
        assert_eq!(lease("/p/run_a"), lease("/p/run_a/"));
        assert_ne!(lease("/p/run_a"), lease("/p/run_b"));
        assert!(lease("") > 0);
    }
}
