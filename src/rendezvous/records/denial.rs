//! A name that may not join.

use serde::{Deserialize, Serialize};

use super::absent::is_unknown;
use super::text::for_people;

/// The person that does not want a node in the run, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    #[serde(default, deserialize_with = "for_people")]
    pub by: String,
    #[serde(default, deserialize_with = "for_people")]
    pub reason: String,
    #[serde(default, skip_serializing_if = "is_unknown")]
    pub at: u64,
}
