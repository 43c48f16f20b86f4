//! Where a store's data lies in etcd.
//!
//! | etcd key | what |
//! |---|---|
//! | `{prefix}/{b64}` | the value of the key, or the base of a counter |
//! | `{prefix}/.add/{b64}.{n}` | its version says how often `n` was added to the counter |
//! | `{prefix}/.queue/{b64}.{revision}{unique}` | one entry of a queue |
//! | `{prefix}/.op/...` | receipts of writes, see [`crate::etcd::OnceTxns`] |
//!
//! base64 has no `.`, so no key is the prefix of another one's companions (it does have `/`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::etcd::kv::{Range, prefix_end};

#[derive(Clone, Debug)]
pub(super) struct Keys {
    /// Ends in a `/`.
    base: Vec<u8>,
}

impl Keys {
    /// Absolute, as the python-etcd shaped client makes its keys, so that it finds these.
    pub fn new(prefix: &[u8]) -> Self {
        let mut base = Vec::with_capacity(prefix.len() + 2);
        if !prefix.starts_with(b"/") {
            base.push(b'/');
        }
        base.extend_from_slice(prefix);
        if !base.ends_with(b"/") {
            base.push(b'/');
        }
        Self { base }
    }

    fn under(&self, parts: &[&[u8]]) -> Vec<u8> {
        let mut key = self.base.clone();
        for part in parts {
            key.extend_from_slice(part);
        }
        key
    }

    pub fn key(&self, key: &[u8]) -> Vec<u8> {
        self.under(&[STANDARD.encode(key).as_bytes()])
    }

    /// The store's key of an etcd key; `None` for one that no store wrote.
    pub fn decode(&self, etcd_key: &[u8]) -> Option<Vec<u8>> {
        STANDARD.decode(etcd_key.strip_prefix(self.base.as_slice())?).ok()
    }

    pub fn receipts(&self) -> Vec<u8> {
        self.under(&[b".op/"])
    }

    /// What the companions of a counter begin with.
    pub fn companions(&self, key: &[u8]) -> Vec<u8> {
        self.under(&[b".add/", STANDARD.encode(key).as_bytes(), b"."])
    }

    pub fn companion(&self, key: &[u8], n: i64) -> Vec<u8> {
        let mut companion = self.companions(key);
        companion.extend_from_slice(n.to_string().as_bytes());
        companion
    }

    /// The `n` of a companion; `None` for a key that [`Keys::companion`] did not make.
    pub fn companion_number(companion: &[u8]) -> Option<i64> {
        let last = companion.rsplit(|byte| *byte == b'/').next()?;
        let mut parts = last.split(|byte| *byte == b'.').skip(1);
        let (text, None) = (std::str::from_utf8(parts.next()?).ok()?, parts.next()) else {
            return None;
        };
        text.parse().ok().filter(|n: &i64| n.to_string() == text)
    }

    pub fn queues(&self) -> Vec<u8> {
        self.under(&[b".queue/"])
    }

    /// What the entries of a queue begin with.
    pub fn queue(&self, key: &[u8]) -> Vec<u8> {
        self.under(&[b".queue/", STANDARD.encode(key).as_bytes(), b"."])
    }

    /// The queue that an entry is in, as [`Keys::queue`] gives it.
    pub fn queue_of(entry: &[u8]) -> &[u8] {
        let end = entry.iter().rposition(|byte| *byte == b'.').map_or(0, |at| at + 1);
        &entry[..end]
    }

    /// All keys of the store and nothing of what lies beside them.
    pub fn all(&self) -> [Range; 2] {
        let before = Range {
            key: self.base.clone(),
            range_end: Some(self.under(&[b"."])),
            ..Range::default()
        };
        // '/' comes right after '.'.
        let after = Range {
            key: self.under(&[b"/"]),
            range_end: Some(prefix_end(&self.base)),
            ..Range::default()
        };
        [before, after]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_becomes_absolute() {
        for prefix in ["test", "/test", "test/", "/test/"] {
            assert_eq!(Keys::new(prefix.as_bytes()).key(b"k"), b"/test/aw==", "{prefix}");
        }
        assert_eq!(Keys::new(b"").key(b""), b"/");
    }

    #[test]
    fn keys_come_back() {
        let keys = Keys::new(b"p");
        for key in [&b""[..], b"a", b"\0\xff", &[b'x'; 300]] {
            assert_eq!(keys.decode(&keys.key(key)).as_deref(), Some(key));
        }
        assert_eq!(keys.decode(b"/p/.op/1"), None);
        assert_eq!(keys.decode(b"/q/aw=="), None);
    }

    #[test]
    fn companions_carry_their_number() {
        let keys = Keys::new(b"p");
        for n in [0, 7, -3, i64::MIN, i64::MAX] {
            let companion = keys.companion(b"k", n);
            assert!(companion.starts_with(&keys.companions(b"k")));
            assert_eq!(Keys::companion_number(&companion), Some(n));
        }
        assert_eq!(Keys::companion_number(&keys.companion(b"", 5)), Some(5));
        for foreign in ["", "x", "+5", "05", "-0", "1.5", "5/x", "9223372036854775808"] {
            let key = [keys.companions(b"k"), foreign.into()].concat();
            assert_eq!(Keys::companion_number(&key), None, "{foreign}");
        }
    }

    #[test]
    fn a_key_whose_base64_has_a_slash_is_nobody_s_companion() {
        let keys = Keys::new(b"p");
        // "abc" is YWJj, the other YWJj/w== : one base64 is the prefix of the other up to a slash.
        let long = keys.companion(b"abc\xff", 5);
        assert!(long.starts_with(b"/p/.add/YWJj/"));
        assert!(!long.starts_with(&keys.companions(b"abc")));
        let entry = [keys.queue(b"abc\xff"), b"1".to_vec()].concat();
        assert_eq!(Keys::queue_of(&entry), keys.queue(b"abc\xff"));
    }

    #[test]
    fn all_leaves_out_what_lies_beside() {
        let keys = Keys::new(b"p");
        let within = |key: &[u8]| {
            keys.all()
                .iter()
                .any(|range| key >= range.key.as_slice() && Some(key) < range.range_end.as_deref())
        };
        for key in [&b""[..], b"\xfb\xef", b"\xff", b"a", b"zzz"] {
            assert!(within(&keys.key(key)), "{key:?}");
        }
        assert!(!within(&keys.companion(b"k", 1)));
        assert!(!within(&keys.queue(b"k")));
        assert!(!within(&keys.receipts()));
    }
}
