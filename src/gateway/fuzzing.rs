//! What the fuzz target in `fuzz/` runs of the gateway. A failed assertion is a finding.

use super::codec::{Decoder, MOST_BYTES, MOST_TEXT, Malformed};
use super::query::{Kind, Query, Shape};

/// Reads the bytes as what a client sends, in parts and as a whole.
pub fn read_queries(data: &[u8]) {
    let Some((first, sent)) = data.split_first() else { return };
    let whole = read(sent, sent.len());
    let parts = read(sent, usize::from(*first));
    assert_eq!(whole, parts);
    for query in whole.0 {
        assert!(query.texts.iter().map(Vec::len).sum::<usize>() <= MOST_BYTES);
        assert!(query.texts.iter().all(|text| text.len() <= MOST_TEXT));
        let texts = query.texts.len();
        match query.kind.shape() {
            Shape::Nothing | Shape::Word => assert_eq!(texts, 0),
            Shape::Texts(wanted) => assert_eq!(texts, wanted),
            Shape::TextAndNumber => assert_eq!(texts, 1),
            Shape::Groups(each) => assert_eq!(texts % each, 0),
        }
        assert_eq!(Kind::of(query.kind as u8), Some(query.kind));
    }
}

fn read(sent: &[u8], at_a_time: usize) -> (Vec<Query>, Option<Malformed>) {
    let mut decoder = Decoder::default();
    let mut queries = Vec::new();
    for part in sent.chunks(at_a_time.max(1)) {
        decoder.push(part);
        loop {
            match decoder.next() {
                Ok(Some(query)) => queries.push(query),
                Ok(None) => break,
                Err(malformed) => return (queries, Some(malformed)),
            }
        }
    }
    (queries, None)
}
