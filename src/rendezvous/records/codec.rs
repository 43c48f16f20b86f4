//! How all records are written and read: JSON, with the version of the protocol in `v`. Unknown fields are
//! ignored, so that a newer version can add to a record.
//!
//! A run speaks the version of the node that created it. A node takes part if it knows that version, and
//! writes it; a record of a version that it does not know is [`UnreadableRecord::Version`], never garbage.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::text::plain;
use crate::etcd::kv::KeyValue;
use crate::rendezvous::keys::{NodeId, node_of};

/// The version of the runs that this code creates. Raised when a record changes so that older readers would
/// misunderstand it.
pub const VERSION: u32 = 1;

/// The oldest version whose runs this code can take part in.
pub const OLDEST: u32 = 1;

/// A record that this node cannot use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableRecord {
    #[error("The value of the etcd key '{key}' is not a record of a rendezvous: {cause}.")]
    Garbage { key: String, cause: String },
    #[error(
        "This run speaks version {version}, this agent {knows}: {remedy} (the etcd key '{key}').",
        knows = versions(*.newest),
        remedy = if *.version > u64::from(*.newest) { "update it" } else { "give the run's agents one version" }
    )]
    Version { key: String, version: u64, newest: u32 },
}

fn versions(newest: u32) -> String {
    if newest > OLDEST { format!("{OLDEST} to {newest}") } else { newest.to_string() }
}

impl UnreadableRecord {
    pub fn garbage(key: &str, cause: &str) -> Self {
        // The cause may quote the value.
        Self::Garbage { key: key.into(), cause: plain(cause) }
    }

    /// It is not garbage: others can read it.
    pub fn is_of_another_version(&self) -> bool {
        matches!(self, Self::Version { .. })
    }
}

/// A record as a run of this version has it.
pub fn encode<T: Serialize>(record: &T, version: u32) -> Vec<u8> {
    #[derive(Serialize)]
    struct Versioned<'a, T> {
        v: u32,
        #[serde(flatten)]
        record: &'a T,
    }
    // Serialising these types cannot fail: no maps with other keys than strings, no own impls.
    serde_json::to_vec(&Versioned { v: version, record }).unwrap_or_default()
}

/// Reads what others have written.
#[derive(Clone, Copy, Debug)]
pub struct Reader {
    /// The newest version that this node knows.
    pub newest: u32,
}

impl Reader {
    pub fn record<T: DeserializeOwned>(
        self,
        key: &str,
        value: &[u8],
    ) -> Result<T, UnreadableRecord> {
        self.versioned(key, value).map(|(record, _)| record)
    }

    /// With the version that it says it is of.
    pub fn versioned<T: DeserializeOwned>(
        self,
        key: &str,
        value: &[u8],
    ) -> Result<(T, u32), UnreadableRecord> {
        /// Before records told it there was version 1 only.
        #[derive(Deserialize)]
        struct Version {
            #[serde(default = "first")]
            v: u64,
        }
        fn first() -> u64 {
            1
        }
        let garbage = |error: serde_json::Error| UnreadableRecord::garbage(key, &error.to_string());
        let Version { v } = serde_json::from_slice(value).map_err(garbage)?;
        match u32::try_from(v) {
            Ok(version) if (OLDEST..=self.newest).contains(&version) => {
                Ok((serde_json::from_slice(value).map_err(garbage)?, version))
            }
            _ => {
                let key = key.into();
                Err(UnreadableRecord::Version { key, version: v, newest: self.newest })
            }
        }
    }

    /// What a node has written itself; `None` for whatever else lies there.
    pub fn of_its_node<T: DeserializeOwned>(self, kv: &KeyValue) -> Option<(NodeId, T)> {
        // The lease has to be the node's own, or what follows from the key could outlive it.
        let node = node_of(&kv.key).filter(|node| kv.lease == *node)?;
        Some((node, self.record("", &kv.value).ok()?))
    }
}
