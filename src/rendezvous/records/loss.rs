//! A member of the round is gone.

use serde::{Deserialize, Serialize};

use super::text::for_people;
use crate::rendezvous::keys::RoundId;

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
