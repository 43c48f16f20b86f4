//! etcd's data model as plain values: keys, transactions, answers and watch events.
//!
//! Nothing here does I/O, so the protocol core can use these types and the simulator can run the
//! same transactions against a model of etcd that the real client sends to the real one.

/// A key's state at one revision. Field meanings are etcd's:
/// <https://etcd.io/docs/v3.6/learning/data_model/>.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
    pub lease: i64,
}

/// What a comparison looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Value(Vec<u8>),
    Version(i64),
    CreateRevision(i64),
    ModRevision(i64),
    Lease(i64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ordering {
    Equal,
    NotEqual,
    Less,
    Greater,
}

/// One guard of a transaction. With `range_end` it must hold for every key of the range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    pub key: Vec<u8>,
    pub range_end: Option<Vec<u8>>,
    pub ordering: Ordering,
    pub target: Target,
}

impl Compare {
    pub fn new(key: impl Into<Vec<u8>>, ordering: Ordering, target: Target) -> Self {
        Self { key: key.into(), range_end: None, ordering, target }
    }

    pub fn mod_revision(key: impl Into<Vec<u8>>, revision: i64) -> Self {
        Self::new(key, Ordering::Equal, Target::ModRevision(revision))
    }

    pub fn create_revision(key: impl Into<Vec<u8>>, revision: i64) -> Self {
        Self::new(key, Ordering::Equal, Target::CreateRevision(revision))
    }

    /// No key with this prefix exists: what is compared must hold for each of them.
    pub fn none_below(prefix: impl Into<Vec<u8>>) -> Self {
        let key = prefix.into();
        let range_end = Some(prefix_end(&key));
        Self { range_end, ..Self::absent(key) }
    }

    pub fn exists(key: impl Into<Vec<u8>>) -> Self {
        Self::new(key, Ordering::Greater, Target::CreateRevision(0))
    }

    /// The key does not exist: etcd reports revision 0 for a key it does not have.
    pub fn absent(key: impl Into<Vec<u8>>) -> Self {
        Self::create_revision(key, 0)
    }
}

/// A range read. `range_end` of `None` reads the single key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    pub key: Vec<u8>,
    pub range_end: Option<Vec<u8>>,
    /// 0 means no limit.
    pub limit: i64,
    pub keys_only: bool,
    pub count_only: bool,
    /// 0 means the newest revision.
    pub revision: i64,
}

impl Range {
    pub fn key(key: impl Into<Vec<u8>>) -> Self {
        Self { key: key.into(), ..Self::default() }
    }

    pub fn prefix(prefix: impl Into<Vec<u8>>) -> Self {
        let key = prefix.into();
        Self { range_end: Some(prefix_end(&key)), key, ..Self::default() }
    }

    pub fn count_only(mut self) -> Self {
        self.count_only = true;
        self
    }

    pub fn keys_only(mut self) -> Self {
        self.keys_only = true;
        self
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Get(Range),
    Put { key: Vec<u8>, value: Vec<u8>, lease: i64 },
    Delete { key: Vec<u8>, range_end: Option<Vec<u8>> },
    Txn(Txn),
}

impl Op {
    pub fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>, lease: i64) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease }
    }

    pub fn get(key: impl Into<Vec<u8>>) -> Self {
        Self::Get(Range::key(key))
    }

    pub fn delete(key: impl Into<Vec<u8>>) -> Self {
        Self::Delete { key: key.into(), range_end: None }
    }

    /// All keys from `key` on, before `end`.
    pub fn delete_range(key: impl Into<Vec<u8>>, end: impl Into<Vec<u8>>) -> Self {
        Self::Delete { key: key.into(), range_end: Some(end.into()) }
    }

    pub fn delete_prefix(prefix: impl Into<Vec<u8>>) -> Self {
        let key = prefix.into();
        Self::Delete { range_end: Some(prefix_end(&key)), key }
    }
}

/// `if all compares hold { success } else { failure }`, atomically, at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub success: Vec<Op>,
    pub failure: Vec<Op>,
}

impl Txn {
    pub fn when(compares: impl Into<Vec<Compare>>) -> Self {
        Self { compares: compares.into(), ..Self::default() }
    }

    pub fn then(mut self, ops: impl Into<Vec<Op>>) -> Self {
        self.success = ops.into();
        self
    }

    pub fn or_else(mut self, ops: impl Into<Vec<Op>>) -> Self {
        self.failure = ops.into();
        self
    }

    /// Whether no branch can write, so that repeating the transaction changes nothing.
    pub fn is_read_only(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| match op {
            Op::Get(_) => true,
            Op::Txn(inner) => inner.is_read_only(),
            Op::Put { .. } | Op::Delete { .. } => false,
        })
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeReply {
    pub kvs: Vec<KeyValue>,
    /// Keys in the range, whatever the limit was.
    pub count: i64,
    pub more: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpReply {
    Get(RangeReply),
    Put,
    Delete(i64),
    Txn { succeeded: bool, replies: Vec<OpReply> },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnReply {
    /// The store's revision when the transaction was applied (its own, where it wrote something).
    pub revision: i64,
    pub succeeded: bool,
    /// One reply for each operation of the branch that was taken.
    pub replies: Vec<OpReply>,
}

impl TxnReply {
    /// How many keys were deleted, nested transactions aside.
    pub fn deleted(&self) -> i64 {
        let deleted = |reply: &OpReply| if let OpReply::Delete(keys) = reply { *keys } else { 0 };
        self.replies.iter().map(deleted).sum()
    }

    /// The range answered by operation `index`, or an empty one if the operation is not a range.
    pub fn range(&self, index: usize) -> RangeReply {
        range_of(&self.replies, index)
    }
}

/// The range answered by operation `index` of a branch, or an empty one if the operation is not a range.
pub fn range_of(replies: &[OpReply], index: usize) -> RangeReply {
    match replies.get(index) {
        Some(OpReply::Get(range)) => range.clone(),
        _ => RangeReply::default(),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Put(KeyValue),
    /// Holds the key, as `mod_revision` the revision of its deletion, and as `value` the deleted one
    /// where the watch asked for it.
    Delete(KeyValue),
}

impl Event {
    pub fn kv(&self) -> &KeyValue {
        match self {
            Self::Put(kv) | Self::Delete(kv) => kv,
        }
    }
}

/// The smallest key that is greater than every key with this prefix (etcd's `range_end`).
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.last_mut() {
        if *last < u8::MAX {
            *last += 1;
            return end;
        }
        end.pop();
    }
    // Nothing but 0xff: etcd reads a range end of one NUL as "to the end of the key space".
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_end_increments_the_last_byte_that_can_be() {
        assert_eq!(prefix_end(b"/a/"), b"/a0");
        assert_eq!(prefix_end(b"a\xff"), b"b");
        assert_eq!(prefix_end(b"\xff\xff"), b"\0");
    }

    #[test]
    fn a_nested_write_makes_a_transaction_a_write() {
        let read = Txn::when([]).then([Op::get("a")]);
        assert!(read.is_read_only());
        let nested = Txn::when([]).or_else([Op::Txn(Txn::when([]).then([Op::delete("a")]))]);
        assert!(!nested.is_read_only());
    }
}
