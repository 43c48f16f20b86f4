//! Which node a record is of, for people, and where its workers can be reached.

use serde::{Deserialize, Serialize};

use super::absent::is_unknown;
use super::text::for_people;

/// No host name or address is longer (DNS has 253 bytes).
pub const LONGEST_ADDRESS: usize = 1024;

/// How people name a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    #[serde(deserialize_with = "for_people")]
    pub host: String,
    pub pid: u32,
}

impl std::fmt::Display for NodeInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (pid {})", self.host, self.pid)
    }
}

/// Since when a node is there, and when its call of `next_rendezvous()` gives up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stay {
    #[serde(default, skip_serializing_if = "is_unknown")]
    pub at: u64,
    #[serde(default, skip_serializing_if = "is_unknown")]
    pub until: u64,
}

/// An address and a port that a node offers to the workers of the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    pub addr: String,
    pub port: u16,
}

pub fn check_address(address: &str) -> Result<(), String> {
    if address.len() > LONGEST_ADDRESS {
        return Err(format!("its master_addr has {} bytes", address.len()));
    }
    Ok(())
}
