//! The members of a round, to be read when they are gone.

use serde::{Deserialize, Serialize};

use super::member::Member;
use super::text::{for_people, label};
use crate::rendezvous::keys::NodeId;

/// A part of a round's members, as many as were written in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roster {
    pub members: Vec<RosterEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterEntry {
    pub rank: u32,
    #[serde(with = "hex")]
    pub node: NodeId,
    #[serde(deserialize_with = "for_people")]
    pub host: String,
    pub pid: u32,
    #[serde(deserialize_with = "label")]
    pub node_id: Option<String>,
    #[serde(deserialize_with = "for_people")]
    pub addr: String,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "label")]
    pub domain: Option<String>,
}

impl RosterEntry {
    pub fn of(node: NodeId, member: &Member) -> Self {
        Self {
            rank: member.rank,
            node,
            host: member.node.host.clone(),
            pid: member.node.pid,
            node_id: member.labels.node_id.clone(),
            addr: member.addr.clone(),
            domain: member.labels.domain.clone(),
        }
    }
}

/// As nodes are written in keys.
mod hex {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::NodeId;

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub fn serialize<S: Serializer>(node: &NodeId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{node:016x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NodeId, D::Error> {
        let text = String::deserialize(deserializer)?;
        i64::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rendezvous::records::{Reader, encode};

    #[test]
    fn a_roster_reads_as_it_was_written() {
        let entry = RosterEntry {
            rank: 3,
            node: 0x1234,
            host: "a".into(),
            pid: 7,
            node_id: Some("left".into()),
            addr: "10.0.0.1".into(),
            domain: None,
        };
        let roster = Roster { members: vec![entry] };
        let text = String::from_utf8(encode(&roster, 1)).unwrap();
        let expected = r#"{"v":1,"members":[{"rank":3,"node":"0000000000001234","host":"a","pid":7,"node_id":"left","addr":"10.0.0.1"}]}"#;
        assert_eq!(text, expected);
        let reader = Reader { newest: 1 };
        assert_eq!(reader.record::<Roster>("k", text.as_bytes()).unwrap(), roster);
    }
}
