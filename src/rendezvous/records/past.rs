//! How the last rounds came about, to be read by people.

use serde::{Deserialize, Serialize};

use super::control::Story;

/// How many rounds are remembered.
pub const ROUNDS_KEPT: u64 = 64;

/// A round that was completed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    pub round: u64,
    pub world: u32,
    #[serde(flatten)]
    pub story: Story,
}
