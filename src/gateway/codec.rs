//! `TCPStore`'s wire protocol: queries read from a stream of bytes, and answers.
//!
//! A text is its length (8 bytes) and its bytes. Numbers are in the byte order of the host, as in torch: both ends are on
//! this host.

use super::query::{Kind, Query, Shape};

/// The longest key or value. torch takes 8 MiB, and etcd less than this.
pub const MOST_TEXT: usize = 2 << 20;
/// The most keys in a query, as in torch.
pub const MOST_KEYS: usize = 128 << 10;
/// The most bytes of a query that is gathered.
pub const MOST_BYTES: usize = 16 << 20;

/// Why a connection is ended. The texts go on after "a client sent ".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the query {0}, which no version of torch's TCPStore up to 2.15 knows")]
    Unknown(u8),
    #[error("a key or value of {0} bytes, and at most {MOST_TEXT} are taken")]
    LongText(u64),
    #[error("a query of {0} keys, and at most {MOST_KEYS} are taken")]
    ManyKeys(u64),
    #[error("a query of more than {MOST_BYTES} bytes")]
    LongQuery,
}

/// Gathers queries from bytes as they come. Each byte is looked at once, however few come at a time.
#[derive(Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// How many of them are taken.
    taken: usize,
    begun: Option<Begun>,
}

struct Begun {
    query: Query,
    /// Texts that are to come; `None` before their number is known.
    texts: Option<usize>,
    /// Bytes of the texts so far.
    size: usize,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        // What is taken goes at once, so that this holds at most one item and what was read with it.
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next query, if all of it has come.
    pub fn next(&mut self) -> Result<Option<Query>, Malformed> {
        let mut begun = match self.begun.take() {
            Some(begun) => begun,
            None => match self.take::<1>() {
                Some([number]) => Begun::new(Kind::of(number).ok_or(Malformed::Unknown(number))?),
                None => return Ok(None),
            },
        };
        if self.go_on(&mut begun)?.is_some() {
            return Ok(Some(begun.query));
        }
        self.begun = Some(begun);
        Ok(None)
    }

    fn go_on(&mut self, begun: &mut Begun) -> Result<Option<()>, Malformed> {
        let shape = begun.query.kind.shape();
        let texts = match (shape, begun.texts) {
            (Shape::Groups(each), None) => {
                let Some(count) = self.take().map(u64::from_ne_bytes) else { return Ok(None) };
                let keys = usize::try_from(count).ok().filter(|keys| *keys <= MOST_KEYS);
                each * keys.ok_or(Malformed::ManyKeys(count))?
            }
            (_, Some(texts)) | (Shape::Texts(texts), None) => texts,
            (Shape::TextAndNumber, None) => 1,
            (Shape::Nothing | Shape::Word, None) => 0,
        };
        begun.texts = Some(texts);
        while begun.query.texts.len() < texts {
            let Some(text) = self.text()? else { return Ok(None) };
            begun.size += text.len() + size_of::<Vec<u8>>();
            if begun.size > MOST_BYTES {
                return Err(Malformed::LongQuery);
            }
            begun.query.texts.push(text);
        }
        match shape {
            Shape::Word => match self.take() {
                Some(word) => begun.query.word = word,
                None => return Ok(None),
            },
            Shape::TextAndNumber => match self.take() {
                Some(number) => begun.query.number = i64::from_ne_bytes(number),
                None => return Ok(None),
            },
            Shape::Nothing | Shape::Texts(_) | Shape::Groups(_) => {}
        }
        Ok(Some(()))
    }

    fn text(&mut self) -> Result<Option<Vec<u8>>, Malformed> {
        let Some(head) = self.bytes[self.taken..].first_chunk() else { return Ok(None) };
        let stated = u64::from_ne_bytes(*head);
        let length = usize::try_from(stated).ok().filter(|length| *length <= MOST_TEXT);
        let length = length.ok_or(Malformed::LongText(stated))?;
        let start = self.taken + head.len();
        let Some(text) = self.bytes.get(start..start + length) else { return Ok(None) };
        let text = text.to_vec();
        self.taken = start + length;
        Ok(Some(text))
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = self.bytes[self.taken..].first_chunk().copied()?;
        self.taken += N;
        Some(taken)
    }
}

impl Begun {
    fn new(kind: Kind) -> Self {
        Self { query: Query::new(kind), texts: None, size: 0 }
    }
}

/// What is sent back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// torch waits for none, of what only writes.
    Nothing,
    Byte(u8),
    Word([u8; 4]),
    Number(i64),
    Text(Vec<u8>),
    /// As many as were asked for.
    Texts(Vec<Vec<u8>>),
    /// As many as there are, after their number.
    Counted(Vec<Vec<u8>>),
}

/// A wait is over, or a check found all keys.
pub const READY: Answer = Answer::Byte(0);
/// A wait was cancelled, or a check did not find all keys.
pub const NOT_READY: Answer = Answer::Byte(1);

impl Answer {
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Byte(byte) => vec![*byte],
            Self::Word(word) => word.to_vec(),
            Self::Number(number) => number.to_ne_bytes().to_vec(),
            Self::Text(text) => texts(std::slice::from_ref(text)),
            Self::Texts(all) => texts(all),
            Self::Counted(all) => [&length(all.len())[..], &texts(all)].concat(),
        }
    }
}

fn texts(all: &[Vec<u8>]) -> Vec<u8> {
    all.iter().flat_map(|text| [&length(text.len())[..], text].concat()).collect()
}

fn length(length: usize) -> [u8; 8] {
    (length as u64).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> Vec<u8> {
        [&length(bytes.len())[..], bytes].concat()
    }

    fn all_of(bytes: &[u8], at_a_time: usize) -> Result<Vec<Query>, Malformed> {
        let mut decoder = Decoder::default();
        let mut queries = Vec::new();
        for part in bytes.chunks(at_a_time) {
            decoder.push(part);
            while let Some(query) = decoder.next()? {
                queries.push(query);
            }
        }
        Ok(queries)
    }

    #[test]
    fn queries_are_the_same_however_they_are_cut() {
        let number = 5_i64.to_ne_bytes();
        let two = length(2);
        let sent = [
            &[0][..],
            &[1, 2, 3, 4],
            &[1],
            &text(b"/k"),
            &text(b""),
            &[4],
            &text(b"/c"),
            &number,
            &[6],
            &two,
            &text(b"/a"),
            &text(b"/b"),
            &[11],
            &two,
            &text(b"k"),
            &text(b"v"),
            &text(b"l"),
            &text(b"w"),
            &[12],
            &[5],
            &length(0),
            &[18],
            &text(b"/x"),
            &number,
        ]
        .concat();
        let whole = all_of(&sent, sent.len()).expect("valid");
        let kinds: Vec<u8> = whole.iter().map(|query| query.kind as u8).collect();
        assert_eq!(kinds, [0, 1, 4, 6, 11, 12, 5, 18]);
        assert_eq!(whole[0].word, [1, 2, 3, 4]);
        assert_eq!(whole[1].texts, [b"/k".to_vec(), Vec::new()]);
        assert_eq!((whole[2].number, whole[7].number), (5, 5));
        assert_eq!((whole[3].texts.len(), whole[4].texts.len(), whole[6].texts.len()), (2, 4, 0));
        for at_a_time in 1..9 {
            assert_eq!(all_of(&sent, at_a_time).as_ref(), Ok(&whole));
        }
        // All but the last byte is all but the last query.
        let cut = all_of(&sent[..sent.len() - 1], 7).expect("valid");
        assert_eq!(cut, whole[..whole.len() - 1]);
    }

    #[test]
    fn limits_hold_before_anything_is_kept() {
        assert_eq!(all_of(&[19], 1), Err(Malformed::Unknown(19)));
        assert_eq!(all_of(b"GET / HTTP/1.1\r\n", 9), Err(Malformed::Unknown(b'G')));
        for stated in [MOST_TEXT as u64 + 1, u64::MAX] {
            let sent = [&[3][..], &stated.to_ne_bytes()].concat();
            assert_eq!(all_of(&sent, 9), Err(Malformed::LongText(stated)));
        }
        for stated in [MOST_KEYS as u64 + 1, u64::MAX] {
            let sent = [&[11][..], &stated.to_ne_bytes()].concat();
            assert_eq!(all_of(&sent, 9), Err(Malformed::ManyKeys(stated)));
        }
        let long = text(&vec![b'x'; MOST_TEXT]);
        let sent = [&[5][..], &length(9), &long.repeat(9)].concat();
        assert_eq!(all_of(&sent, 1 << 16), Err(Malformed::LongQuery));
        let sent = [&[1][..], &text(b"k"), &long].concat();
        assert_eq!(all_of(&sent, 1 << 16).map(|queries| queries.len()), Ok(1));
    }

    #[test]
    fn answers_are_as_torch_reads_them() {
        assert!(Answer::Nothing.bytes().is_empty());
        assert_eq!(READY.bytes(), [0]);
        assert_eq!(NOT_READY.bytes(), [1]);
        assert_eq!(Answer::Word([1, 2, 3, 4]).bytes(), [1, 2, 3, 4]);
        assert_eq!(Answer::Number(-1).bytes(), [255; 8]);
        assert_eq!(Answer::Text(b"v".to_vec()).bytes(), text(b"v"));
        let two = vec![b"v".to_vec(), Vec::new()];
        let each = [text(b"v"), text(b"")].concat();
        assert_eq!(Answer::Texts(two.clone()).bytes(), each);
        assert_eq!(Answer::Counted(two).bytes(), [&length(2)[..], &each].concat());
    }
}
