//! The values of the run's keys: JSON, so that an operator can read them and a newer version can add
//! to them. Unknown fields are ignored; a record of a newer major version is refused.
//!
//! Anybody may have written what lies under our keys, so nothing of it is used before it was checked: no
//! number that a sum of ours could not take, no name that would not fit into our own keys and values.

use super::keys::{NodeId, node_of};
use super::labels::{Labels, label};
use super::ranks::RankOrder;
use crate::etcd::kv::KeyValue;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

/// Raised when a record changes so that older readers would misunderstand it.
const VERSION: u32 = 1;
/// What others say for people is cut to so many characters: it ends up in log lines and in our records.
const LONGEST_TEXT: usize = 200;
/// No host name or address is longer (DNS has 253 bytes).
pub const LONGEST_ADDRESS: usize = 1024;
/// Ours have a lease's id and a number; they are a part of keys.
const LONGEST_ATTEMPT: usize = 64;
/// Rounds are counted one by one.
const LAST_ROUND: u64 = i64::MAX as u64;

/// The one key that says which round is current, and its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    v: u32,
    pub round: u64,
    #[serde(flatten)]
    pub state: State,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum State {
    /// Nodes join.
    Open {
        previous: Option<Previous>,
        #[serde(deserialize_with = "for_people")]
        by: String,
        /// Unix time in seconds, by the writer's clock; 0 where it is not told, here and below.
        #[serde(default, skip_serializing_if = "is_unknown")]
        at: u64,
        /// What the node that opened the round knew of the reason, in one clause for people.
        #[serde(default, deserialize_with = "for_people")]
        why: String,
    },
    Final(Final),
    Closed(Closed),
}

/// The last completed round, and the attempt that completed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    pub round: u64,
    pub attempt: String,
}

/// A completed round. The same few bytes whatever the number of members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Final {
    pub world: u32,
    /// Which of the coordinators' attempts this is; member keys of another one do not count.
    pub attempt: String,
    /// All members were there at this revision: deletions after it are losses.
    pub since: i64,
    pub master_addr: String,
    pub master_port: u16,
    #[serde(flatten)]
    pub story: Story,
}

/// How a round came about, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Story {
    /// Who completed it.
    #[serde(default, deserialize_with = "for_people")]
    pub by: String,
    #[serde(default, skip_serializing_if = "is_unknown")]
    pub at: u64,
    #[serde(default, skip_serializing_if = "is_unknown")]
    pub opened_at: u64,
    #[serde(default, deserialize_with = "for_people")]
    pub opened_by: String,
    #[serde(default, deserialize_with = "for_people")]
    pub why: String,
    /// The coordinator's limits.
    #[serde(default)]
    pub min: u32,
    #[serde(default)]
    pub max: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    #[serde(deserialize_with = "for_people")]
    pub by: String,
    #[serde(deserialize_with = "for_people")]
    pub reason: String,
    /// Unix time in seconds.
    pub at: u64,
}

impl Control {
    pub fn new(round: u64, state: State) -> Self {
        Self { v: VERSION, round, state }
    }

    /// The run is closed, or was before an operator reopened it.
    pub fn was_closed(&self) -> bool {
        match &self.state {
            State::Closed(_) => true,
            State::Open { previous, .. } => previous.is_none() && self.round > 1,
            State::Final(_) => false,
        }
    }

    fn check(&self) -> Result<(), String> {
        if self.round > LAST_ROUND {
            return Err(format!("there is no round {}", self.round));
        }
        match &self.state {
            State::Open { previous: Some(previous), .. } => {
                if previous.round >= self.round {
                    return Err(format!("round {} cannot follow {}", self.round, previous.round));
                }
                check_attempt(&previous.attempt)
            }
            State::Final(complete) => {
                if complete.world == 0 || complete.since < 0 {
                    return Err("no round is complete without a member".into());
                }
                check_address(&complete.master_addr)?;
                check_attempt(&complete.attempt)
            }
            State::Open { previous: None, .. } | State::Closed(_) => Ok(()),
        }
    }
}

fn check_attempt(attempt: &str) -> Result<(), String> {
    if attempt.len() > LONGEST_ATTEMPT {
        return Err(format!("its attempt has {} bytes", attempt.len()));
    }
    Ok(())
}

fn check_address(address: &str) -> Result<(), String> {
    if address.len() > LONGEST_ADDRESS {
        return Err(format!("its master_addr has {} bytes", address.len()));
    }
    Ok(())
}

/// A node that takes part in a round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    v: u32,
    #[serde(flatten)]
    pub node: NodeInfo,
    /// Where this node's workers could be reached if it became rank 0.
    pub master_addr: String,
    pub master_port: u16,
    #[serde(flatten)]
    pub stay: Stay,
    #[serde(flatten)]
    pub labels: Labels,
    /// Its `rank_order`, unless it is the default.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "label")]
    rank_order: Option<String>,
}

/// Since when a node is there, and when its call of `next_rendezvous()` gives up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stay {
    #[serde(default, skip_serializing_if = "is_unknown")]
    pub at: u64,
    #[serde(default, skip_serializing_if = "is_unknown")]
    pub until: u64,
}

/// Who a node is, for people.
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

impl Join {
    pub fn new(node: NodeInfo, master: Master, stay: Stay, labels: Labels) -> Self {
        let Master { addr: master_addr, port: master_port } = master;
        Self { v: VERSION, node, master_addr, master_port, stay, labels, rank_order: None }
    }

    pub fn with_order(mut self, order: RankOrder) -> Self {
        self.rank_order = (order != RankOrder::Stable).then(|| order.to_string());
        self
    }

    /// By what it wants ranks to be.
    pub fn order(&self) -> &str {
        self.rank_order.as_deref().unwrap_or("stable")
    }
}

/// An address and a port that a node offers to the workers of the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    pub addr: String,
    pub port: u16,
}

/// A member's rank, under the member's own lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub rank: u32,
    /// The member that this one watches: that of the next rank, and of rank 0 for the last one.
    #[serde(default)]
    pub next: NodeId,
    #[serde(flatten)]
    pub node: NodeInfo,
    /// The address that it offered.
    #[serde(default, deserialize_with = "for_people")]
    pub addr: String,
    #[serde(flatten)]
    pub labels: Labels,
}

/// A node that came too late for the round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    #[serde(flatten)]
    pub node: NodeInfo,
    #[serde(flatten)]
    pub stay: Stay,
    #[serde(flatten)]
    pub labels: Labels,
}

/// A member of the round is gone. Written once for a round: it is over then, whoever else goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    pub round: u64,
    #[serde(deserialize_with = "for_people")]
    pub member: String,
}

/// Who completes the round, and how far it has come (for the log lines of all who wait).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coordinator {
    #[serde(flatten)]
    pub node: NodeInfo,
    pub joined: u32,
    /// The last call has begun: enough nodes are there.
    pub last_call: bool,
    /// Its limits, and since when it has coordinated.
    #[serde(default)]
    pub min: u32,
    #[serde(default)]
    pub max: u32,
    #[serde(default, skip_serializing_if = "is_unknown")]
    pub at: u64,
}

/// The clock of the last call: the time that this lease has left. It outlives the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastCall {
    pub lease: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The value of the etcd key '{key}' is no record of a rendezvous: {cause}.")]
pub struct CorruptRecord {
    key: String,
    cause: String,
}

impl CorruptRecord {
    pub fn new(key: &str, cause: &str) -> Self {
        // The cause may quote the value.
        Self { key: key.into(), cause: plain(cause) }
    }
}

/// Text of others in one line that is not too long.
pub fn plain(text: &str) -> String {
    let mut chars = text.chars();
    let harmless = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let mut shown: String = chars.by_ref().take(LONGEST_TEXT).map(harmless).collect();
    if chars.next().is_some() {
        shown.push('…');
    }
    shown
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(super) fn is_unknown(at: &u64) -> bool {
    *at == 0
}

pub(super) fn for_people<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(|text| plain(&text))
}

pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    // Serialising these types cannot fail: no maps with other keys than strings, no own impls.
    serde_json::to_vec(record).unwrap_or_default()
}

pub fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, CorruptRecord> {
    serde_json::from_slice(value).map_err(|error| CorruptRecord::new(key, &error.to_string()))
}

/// As [`decode`], of a record that tells its version: a newer one may look otherwise.
fn decode_versioned<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, CorruptRecord> {
    #[derive(Deserialize)]
    struct Versioned {
        v: u64,
    }
    match serde_json::from_slice(value) {
        Ok(Versioned { v }) if v > u64::from(VERSION) => {
            let cause = format!("it is of version {v}, this torchetcd reads up to {VERSION}");
            Err(CorruptRecord::new(key, &cause))
        }
        _ => decode(key, value),
    }
}

pub fn decode_control(key: &str, value: &[u8]) -> Result<Control, CorruptRecord> {
    let control: Control = decode_versioned(key, value)?;
    control.check().map_err(|cause| CorruptRecord::new(key, &cause))?;
    Ok(control)
}

/// The member key of one's own in a world of that size.
pub fn decode_member(key: &str, value: &[u8], world: u32) -> Result<Member, CorruptRecord> {
    let member: Member = decode(key, value)?;
    if member.rank >= world {
        let cause = format!("it has rank {} in a world of {world}", member.rank);
        return Err(CorruptRecord::new(key, &cause));
    }
    Ok(member)
}

/// The join that a node has written itself; `None` for whatever else lies there.
pub fn join_of(kv: &KeyValue) -> Option<(NodeId, Join)> {
    // The lease has to be the node's own, or the member key could outlive it.
    let node = node_of(&kv.key).filter(|node| kv.lease == *node)?;
    let join: Join = decode_versioned("", &kv.value).ok()?;
    check_address(&join.master_addr).ok()?;
    Some((node, join))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_record_reads_as_it_was_written() {
        let closed = Closed { by: "a (pid 1)".into(), reason: "done".into(), at: 7 };
        for state in [
            State::Open {
                previous: Some(Previous { round: 3, attempt: "1-1".into() }),
                by: "a (pid 1)".into(),
                at: 1,
                why: "the first round".into(),
            },
            State::Final(Final {
                world: 2,
                attempt: "1-1".into(),
                since: 9,
                master_addr: "a".into(),
                master_port: 1,
                story: Story { by: "a (pid 1)".into(), at: 3, opened_at: 1, ..Story::default() },
            }),
            State::Closed(closed),
        ] {
            let control = Control::new(4, state);
            assert_eq!(decode_control("k", &encode(&control)).unwrap(), control);
        }
    }

    #[test]
    fn records_of_versions_that_told_less_are_read() {
        for value in [
            &br#"{"v":1,"round":1,"state":"open","previous":null,"by":"a"}"#[..],
            br#"{"v":1,"round":1,"state":"final","world":1,"attempt":"1","since":1,"master_addr":"a","master_port":1}"#,
        ] {
            decode_control("k", value).unwrap();
        }
        decode::<Coordinator>("k", br#"{"host":"a","pid":1,"joined":1,"last_call":false}"#)
            .unwrap();
        decode::<Waiting>("k", br#"{"host":"a","pid":1}"#).unwrap();
        decode_member("k", br#"{"host":"a","pid":1,"rank":0}"#, 1).unwrap();
    }

    #[test]
    fn garbage_and_newer_versions_are_named() {
        for (value, cause) in [
            (&b"\xff\x00"[..], "expected value"),
            (br#"{"v":2,"round":1,"state":"open","previous":null,"by":""}"#, "version 2"),
            (br#"{"v":1,"round":1,"state":"odd"}"#, "unknown variant"),
        ] {
            let error = decode_control("/k", value).unwrap_err().to_string();
            assert!(error.contains("'/k'") && error.contains(cause), "{error}");
        }
    }
}
