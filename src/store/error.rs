//! What can go wrong in a store.

use std::fmt::Write as _;
use std::time::Duration;

use crate::etcd::{EtcdError, Refusal};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The keys (as people read them) were not there in time.
    #[error("wait timeout after {}ms, {missing} of {wanted} keys missing: {named}", waited.as_millis())]
    Timeout { waited: Duration, wanted: usize, missing: usize, named: String },
    /// Whoever made the store ended its waits.
    #[error("a member of the round was lost: {reason}")]
    MemberLost { reason: String },
    #[error("queue {queue} is empty")]
    QueueEmpty { queue: String },
    #[error("add needs an integer, but the value of {key} is {value}")]
    NotAnInteger { key: String, value: String },
    #[error(
        "the value of {key} has {size} bytes, but etcd takes requests of 1.5 MiB, which with this key \
         leaves {limit} bytes for a value"
    )]
    TooLarge { key: String, size: usize, limit: usize },
    #[error("{keys} keys but {values} values were given")]
    UnevenLists { keys: usize, values: usize },
    #[error("the value of {key} was not written by a store: it is not base64")]
    Foreign { key: String },
    /// The lease that the store's keys live under is gone, and the keys with it.
    #[error("the lease of this store has run out: its keys are gone")]
    LeaseLost,
    /// A write may have taken effect or not.
    #[error("whether the {operation} of {key} took effect is not known: {cause}")]
    OutcomeUnknown { operation: &'static str, key: String, cause: EtcdError },
    #[error("{0}")]
    Etcd(#[from] EtcdError),
}

impl StoreError {
    /// Nothing was written, as etcd is full.
    pub(super) fn is_no_space(&self) -> bool {
        matches!(self, Self::Etcd(EtcdError::Refused { kind: Refusal::NoSpace, .. }))
    }
}

/// Keys are named in errors up to this many characters, and this many of them.
const NAME_LIMIT: usize = 80;
const NAMED: usize = 5;

/// A key or value for people.
pub(super) fn display(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown: String = text.chars().take(NAME_LIMIT).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

/// The first few of many keys for people.
pub(super) fn display_some<'a>(keys: impl ExactSizeIterator<Item = &'a [u8]>) -> String {
    let total = keys.len();
    let mut text = String::new();
    for (index, key) in keys.take(NAMED).enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{separator}{}", display(key));
    }
    if total > NAMED {
        let _ = write!(text, " and {} more", total - NAMED);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_and_cut() {
        assert_eq!(display(b"a\0b"), "\"a\\0b\"");
        let long = display(&[b'x'; 500]);
        assert!(long.chars().count() < 100 && long.contains('…'));
        let keys: Vec<Vec<u8>> = (0..7).map(|i| format!("k{i}").into_bytes()).collect();
        assert_eq!(
            display_some(keys.iter().map(Vec::as_slice)),
            "\"k0\", \"k1\", \"k2\", \"k3\", \"k4\" and 2 more"
        );
    }
}
