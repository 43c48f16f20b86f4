//! The one key that says which round is current, and its state.

use serde::{Deserialize, Serialize};

use super::absent::{is_none, is_unknown};
use super::codec::{Reader, UnreadableRecord};
use super::node::check_address;
use super::order::RankOrder;
use super::text::for_people;
use crate::rendezvous::keys::RoundId;

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
    /// The node that completed it.
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

impl Reader {
    pub fn control(self, key: &str, value: &[u8]) -> Result<Control, UnreadableRecord> {
        let (mut control, version): (Control, u32) = self.versioned(key, value)?;
        control.version = version;
        control.check().map_err(|cause| UnreadableRecord::garbage(key, &cause))?;
        Ok(control)
    }
}
