//! What a store's key holds in etcd.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::error::{StoreError, display};
use super::keys::Keys;
use crate::etcd::kv::{KeyValue, OpReply, Range, RangeReply};
use crate::etcd::{Branch, Slot};

/// No base64 begins with it; `#5` is a counter whose companions are added to 5.
const COUNTER: u8 = b'#';
/// Values of counters, and no others, lie between these.
pub(super) const COUNTERS: (&[u8], &[u8]) = (b"#", b"$");

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Literal(Vec<u8>),
    /// The base of a counter. Counters wrap as `TCPStore`'s do, so sums are taken modulo 2^64.
    Counter(i64),
}

pub(super) fn encode(value: &[u8]) -> Vec<u8> {
    STANDARD.encode(value).into_bytes()
}

pub(super) fn encode_base(base: i64) -> Vec<u8> {
    format!("#{base}").into_bytes()
}

/// `key` is only for the error.
pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Content, StoreError> {
    let foreign = || StoreError::Foreign { key: display(key) };
    match value.strip_prefix(&[COUNTER]) {
        None => STANDARD.decode(value).map(Content::Literal).map_err(|_| foreign()),
        Some(base) => std::str::from_utf8(base)
            .ok()
            .and_then(|text| text.parse().ok())
            .map(Content::Counter)
            .ok_or_else(foreign),
    }
}

/// A key and the companions of its counter at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub content: Content,
    /// Sum of the companions: what was added to the counter, also while it is a literal.
    pub added: i64,
    pub companions: usize,
    /// Of the key itself.
    pub mod_revision: i64,
    /// When a companion was last written.
    pub added_revision: i64,
}

impl Cell {
    pub fn value(&self) -> Cow<'_, [u8]> {
        match &self.content {
            Content::Literal(value) => Cow::Borrowed(value),
            Content::Counter(base) => Cow::Owned(self.sum(*base)),
        }
    }

    pub fn into_value(self) -> Vec<u8> {
        match self.content {
            Content::Counter(base) => self.sum(base),
            Content::Literal(value) => value,
        }
    }

    fn sum(&self, base: i64) -> Vec<u8> {
        base.wrapping_add(self.added).to_string().into_bytes()
    }
}

/// Where the answers come to "get the key, get its companions".
#[derive(Debug)]
pub(super) struct CellSlot {
    own: Slot<RangeReply>,
    companions: Slot<RangeReply>,
}

impl CellSlot {
    pub fn new(branch: &mut Branch, own: Range, companions: Range) -> Self {
        Self { own: branch.get(own), companions: branch.get(companions) }
    }

    /// `None` when the key does not exist. `key` is only for the error.
    pub fn take(&self, key: &[u8], replies: &mut [OpReply]) -> Result<Option<Cell>, StoreError> {
        let companions = self.companions.take(replies).kvs;
        let Some(kv) = self.own.take(replies).kvs.into_iter().next() else { return Ok(None) };
        Ok(Some(Cell {
            content: decode(key, &kv.value)?,
            added: sum(&companions),
            companions: companions.len(),
            mod_revision: kv.mod_revision,
            added_revision: companions.iter().map(|kv| kv.mod_revision).max().unwrap_or(0),
        }))
    }
}

fn sum(companions: &[KeyValue]) -> i64 {
    let products = companions
        .iter()
        .filter_map(|kv| Some(Keys::companion_number(&kv.key)?.wrapping_mul(kv.version)));
    products.fold(0, i64::wrapping_add)
}

/// The integer at the beginning of a value, as C's `strtoll` finds it: `TCPStore` parses so.
pub(super) fn leading_integer(value: &[u8]) -> Option<i64> {
    let start = value.iter().position(|byte| !is_c_space(*byte))?;
    let rest = &value[start..];
    let signed = usize::from(matches!(rest.first(), Some(b'+' | b'-')));
    let digits = rest[signed..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 {
        return None;
    }
    std::str::from_utf8(&rest[..signed + digits]).ok()?.parse().ok()
}

fn is_c_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_as_c_reads_them() {
        for (text, number) in [
            ("5abc", Some(5)),
            (" 7", Some(7)),
            ("\x0b+3", Some(3)),
            ("-3", Some(-3)),
            ("0x10", Some(0)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("", None),
            ("+", None),
            ("- 3", None),
            ("abc", None),
        ] {
            assert_eq!(leading_integer(text.as_bytes()), number, "{text:?}");
        }
    }

    #[test]
    fn contents_come_back() {
        for value in [&b""[..], b"#1", b"\0\xff", b"plain"] {
            assert_eq!(decode(b"k", &encode(value)), Ok(Content::Literal(value.to_vec())));
            assert_ne!(encode(value).first(), Some(&COUNTER));
        }
        for base in [0, -5, i64::MAX, i64::MIN] {
            let encoded = encode_base(base);
            assert!(encoded.as_slice() > COUNTERS.0 && encoded.as_slice() < COUNTERS.1);
            assert_eq!(decode(b"k", &encoded), Ok(Content::Counter(base)));
        }
        assert!(matches!(decode(b"k", b"no base64!"), Err(StoreError::Foreign { .. })));
        assert!(matches!(decode(b"k", b"#x"), Err(StoreError::Foreign { .. })));
    }

    #[test]
    fn a_counter_is_its_base_and_every_addition() {
        let keys = Keys::new(b"p");
        let companion = |n: i64, version: i64| KeyValue {
            key: keys.companion(b"k", n),
            version,
            ..KeyValue::default()
        };
        let cell = Cell {
            content: Content::Counter(10),
            added: sum(&[companion(1, 3), companion(-4, 2), companion(0, 9)]),
            companions: 3,
            mod_revision: 1,
            added_revision: 1,
        };
        assert_eq!(&*cell.value(), b"5");
    }

    #[test]
    fn counters_wrap() {
        let cell = Cell {
            content: Content::Counter(i64::MAX),
            added: 1,
            companions: 1,
            mod_revision: 1,
            added_revision: 1,
        };
        assert_eq!(&*cell.value(), i64::MIN.to_string().as_bytes());
    }
}
