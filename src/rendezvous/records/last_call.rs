//! Until when a round that has its minimum waits for more.

use serde::{Deserialize, Serialize};

/// The clock of the last call: the time that this lease has left. It outlives the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastCall {
    pub lease: i64,
}
