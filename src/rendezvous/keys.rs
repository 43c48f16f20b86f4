//! Where the state of a run lies in etcd. `docs/protocol.md` has the table.

/// A node's identity is the id of its lease: unique for ever, and its keys go when it goes.
pub type NodeId = i64;

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
    pub fn members(&self, round: u64, attempt: &str) -> String {
        format!("{}rdzv/round/{round}/member/{attempt}/", self.run)
    }

    pub fn member(&self, round: u64, attempt: &str, node: NodeId) -> String {
        format!("{}rdzv/round/{round}/member/{attempt}/{node:016x}", self.run)
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

    /// What belongs to a round besides the rendezvous itself: `PyTorch`'s layout
    /// (torch `etcd_rendezvous.py`, `setup_kv_store` and `store_extra_data`).
    pub fn round_data(&self, round: u64) -> String {
        format!("{}rdzv/v_{round}/", self.run)
    }

    pub fn round_store(&self, round: u64) -> String {
        format!("{}rdzv/v_{round}/kv/", self.run)
    }
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
    fn runs_have_leases_of_their_own() {
        let lease = |run: &str| Keys::new(run).run_lease();
        assert_eq!(lease("/p/run_a"), lease("/p/run_a/"));
        assert_ne!(lease("/p/run_a"), lease("/p/run_b"));
        assert!(lease("") > 0);
    }
}
