//! The values of the run's keys: JSON, so that an operator can read them and a newer version can add
//! to them. Unknown fields are ignored. Each record says in `v` which version of the protocol it is of.
//!
//! A run speaks the version of the node that created it. A node takes part if it knows that version, and
//! writes it; a record of a version that it does not know is [`UnreadableRecord::Version`], never garbage.
//!
//! Anybody may have written what lies under our keys, so nothing of it is used before it was checked: no
//! number that a sum of ours could not take, no name that would not fit into our own keys and values.

use super::keys::{NodeId, node_of};
use super::labels::{Labels, label};
use super::ranks::RankOrder;
use crate::etcd::kv::KeyValue;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

/// The version of the runs that this code creates. Raised when a record changes so that older readers would
/// misunderstand it.
pub const VERSION: u32 = 1;
/// The oldest version whose runs this code can take part in.
pub const OLDEST: u32 = 1;
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
    /// The version that the run speaks.
    #[serde(skip)]
    pub version: u32,
    pub round: u64,
    /// Seconds: the TTL of the run's lease, by the node that created the run; 0 where it is not told.
    #[serde(default, skip_serializing_if = "is_unknown")]
    pub run_ttl: u64,
    /// How often the run was reopened after a close.
    #[serde(default, skip_serializing_if = "is_none")]
    pub reopened: u32,
    #[serde(flatten)]
    pub state: State,
}

/// A round that was completed, and the attempt that completed it. The number alone comes back when an
/// operator deletes a run's keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RoundId {
    pub round: u64,
    pub attempt: String,
}

/// The last completed round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    #[serde(flatten)]
    pub id: RoundId,
    /// How many members it had; 0 where that is not told.
    #[serde(default, skip_serializing_if = "is_none")]
    pub world: u32,
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
    /// What ranks follow from. Between rounds all count by it, and by `max`, whatever they have themselves.
    #[serde(flatten)]
    pub order: RankOrder,
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
    /// The last round that was completed. Its ranks are in its roster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Previous>,
    /// How the job ended, where the node that closed the run knew it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// `succeeded`, `failed` or `signal`.
    #[serde(deserialize_with = "for_people")]
    pub result: String,
    /// In one clause for people.
    #[serde(deserialize_with = "for_people")]
    pub text: String,
}

impl Control {
    /// The first record of a run.
    pub fn first(version: u32, run_ttl: u64, round: u64, state: State) -> Self {
        Self { version, round, run_ttl, reopened: 0, state }
    }

    /// A later record of the same run.
    pub fn then(&self, round: u64, state: State) -> Self {
        Self { round, state, ..*self }
    }

    /// The completed round that is current.
    pub fn current(&self) -> Option<RoundId> {
        match &self.state {
            State::Final(complete) => Some(complete.id(self.round)),
            _ => None,
        }
    }

    /// The last round that was completed.
    pub fn last(&self) -> Option<Previous> {
        match &self.state {
            State::Open { previous, .. } => previous.clone(),
            State::Final(complete) => {
                Some(Previous { id: complete.id(self.round), world: complete.world })
            }
            State::Closed(closed) => closed.last.clone(),
        }
    }

    fn check(&self) -> Result<(), String> {
        if self.round > LAST_ROUND {
            return Err(format!("there is no round {}", self.round));
        }
        match &self.state {
            State::Open { previous: Some(previous), .. } => {
                if previous.id.round >= self.round {
                    return Err(format!(
                        "round {} cannot follow {}",
                        self.round, previous.id.round
                    ));
                }
                check_attempt(&previous.id.attempt)
            }
            State::Final(complete) => {
                if complete.world == 0 || complete.since < 0 {
                    return Err("no round is complete without a member".into());
                }
                check_address(&complete.master_addr)?;
                check_attempt(&complete.attempt)
            }
            State::Closed(Closed { last: Some(last), .. }) => {
                if last.id.round > self.round {
                    return Err(format!("round {} was not before {}", last.id.round, self.round));
                }
                check_attempt(&last.id.attempt)
            }
            State::Open { previous: None, .. } | State::Closed(_) => Ok(()),
        }
    }
}

impl Final {
    pub fn id(&self, round: u64) -> RoundId {
        RoundId { round, attempt: self.attempt.clone() }
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
        Self { node, master_addr, master_port, stay, labels, rank_order: None }
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
    /// Empty where it is not told: then it is of any attempt.
    #[serde(default)]
    pub attempt: String,
    #[serde(deserialize_with = "for_people")]
    pub member: String,
}

impl Loss {
    pub fn of(id: &RoundId, member: String) -> Self {
        Self { round: id.round, attempt: id.attempt.clone(), member }
    }

    pub fn is_of(&self, id: &RoundId) -> bool {
        self.round == id.round && (self.attempt.is_empty() || self.attempt == id.attempt)
    }
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

/// The waiting node that counts, for all, those who wait for a place in the round after this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usher {
    #[serde(flatten)]
    pub node: NodeInfo,
    #[serde(flatten)]
    pub id: RoundId,
    /// For so many of them there are places.
    pub count: u32,
    #[serde(default, skip_serializing_if = "is_unknown")]
    pub at: u64,
}

/// The clock of the last call: the time that this lease has left. It outlives the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastCall {
    pub lease: i64,
}

/// A record that this node cannot use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableRecord {
    #[error("The value of the etcd key '{key}' is no record of a rendezvous: {cause}.")]
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

    /// It is no garbage: others can read it.
    pub fn is_of_another_version(&self) -> bool {
        matches!(self, Self::Version { .. })
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

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_none(number: &u32) -> bool {
    *number == 0
}

pub(super) fn for_people<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(|text| plain(&text))
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

    fn versioned<T: DeserializeOwned>(
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

    pub fn control(self, key: &str, value: &[u8]) -> Result<Control, UnreadableRecord> {
        let (mut control, version): (Control, u32) = self.versioned(key, value)?;
        control.version = version;
        control.check().map_err(|cause| UnreadableRecord::garbage(key, &cause))?;
        Ok(control)
    }

    /// The member key of one's own in a world of that size.
    pub fn member(self, key: &str, value: &[u8], world: u32) -> Result<Member, UnreadableRecord> {
        let member: Member = self.record(key, value)?;
        if member.rank >= world {
            let cause = format!("it has rank {} in a world of {world}", member.rank);
            return Err(UnreadableRecord::garbage(key, &cause));
        }
        Ok(member)
    }

    /// The join that a node has written itself; `None` for whatever else lies there.
    pub fn join(self, kv: &KeyValue) -> Option<(NodeId, Join)> {
        let (node, join): (NodeId, Join) = self.of_its_node(kv)?;
        check_address(&join.master_addr).ok()?;
        Some((node, join))
    }

    /// The same of a node that waits.
    pub fn waiting(self, kv: &KeyValue) -> Option<(NodeId, Waiting)> {
        self.of_its_node(kv)
    }

    fn of_its_node<T: DeserializeOwned>(self, kv: &KeyValue) -> Option<(NodeId, T)> {
        // The lease has to be the node's own, or what follows from the key could outlive it.
        let node = node_of(&kv.key).filter(|node| kv.lease == *node)?;
        Some((node, self.record("", &kv.value).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READER: Reader = Reader { newest: 1 };

    #[test]
    fn a_control_record_reads_as_it_was_written() {
        let last = Previous { id: RoundId { round: 4, attempt: "1-1".into() }, world: 2 };
        let ended = Ended { result: "failed".into(), text: "train.py failed".into() };
        let (by, reason) = ("a (pid 1)".into(), "done".into());
        let closed = Closed { by, reason, at: 7, last: Some(last), ended: Some(ended) };
        for state in [
            State::Open {
                previous: Some(Previous {
                    id: RoundId { round: 3, attempt: "1-1".into() },
                    world: 5,
                }),
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
                order: RankOrder::Topology { segment: 2 },
                story: Story { by: "a (pid 1)".into(), at: 3, opened_at: 1, ..Story::default() },
            }),
            State::Closed(closed),
        ] {
            let control = Control { reopened: 2, ..Control::first(1, 60, 4, state) };
            assert_eq!(READER.control("k", &encode(&control, 1)).unwrap(), control);
        }
    }

    #[test]
    fn records_of_versions_that_told_less_are_read() {
        for value in [
            &br#"{"v":1,"round":1,"state":"open","previous":null,"by":"a"}"#[..],
            br#"{"v":1,"round":1,"state":"final","world":1,"attempt":"1","since":1,"master_addr":"a","master_port":1}"#,
        ] {
            READER.control("k", value).unwrap();
        }
        READER
            .record::<Coordinator>("k", br#"{"host":"a","pid":1,"joined":1,"last_call":false}"#)
            .unwrap();
        READER.record::<Waiting>("k", br#"{"host":"a","pid":1}"#).unwrap();
        READER.member("k", br#"{"host":"a","pid":1,"rank":0}"#, 1).unwrap();
    }

    #[test]
    fn garbage_and_newer_versions_are_named() {
        for (value, cause) in [
            (&b"\xff\x00"[..], "expected value"),
            (br#"{"v":2,"round":1,"state":"open","previous":null,"by":""}"#, "version 2"),
            (br#"{"v":1,"round":1,"state":"odd"}"#, "unknown variant"),
        ] {
            let error = READER.control("/k", value).unwrap_err().to_string();
            assert!(error.contains("'/k'") && error.contains(cause), "{error}");
        }
    }

    #[test]
    fn each_record_tells_its_version_and_a_newer_one_is_told_from_garbage() {
        let node = NodeInfo { host: "a".into(), pid: 1 };
        let stay = Stay::default();
        let master = Master { addr: "a".into(), port: 1 };
        let id = RoundId { round: 1, attempt: "1".into() };
        let labels = Labels::default();
        let newer = [
            encode(&Join::new(node.clone(), master, stay, labels.clone()), 2),
            encode(&Waiting { node: node.clone(), stay, labels: labels.clone() }, 2),
            encode(&Loss::of(&id, "a".into()), 2),
            encode(&Usher { node, id, count: 1, at: 1 }, 2),
            encode(&LastCall { lease: 1 }, 2),
        ];
        for value in newer {
            let text = String::from_utf8(value.clone()).unwrap();
            assert!(text.starts_with(r#"{"v":2,"#), "{text}");
            // Whatever it is read as: what it holds is not looked at.
            let error = READER.record::<Member>("k", &value).unwrap_err();
            assert!(error.is_of_another_version(), "{error}");
            let knows = error.to_string();
            assert!(
                knows.contains("speaks version 2") && knows.contains("agent 1: update it"),
                "{knows}"
            );
        }
        let error = READER.record::<Member>("k", br#"{"v":1}"#).unwrap_err();
        assert!(!error.is_of_another_version());
        let both = Reader { newest: 2 };
        let waiting = br#"{"v":2,"host":"a","pid":1}"#;
        assert!(both.record::<Waiting>("k", waiting).is_ok());
    }
}
