//! What the fuzz targets in `fuzz/` run of the store. A failed assertion is a finding.

use std::time::Duration;

use arbitrary::{Arbitrary, Result, Unstructured};

use super::chunks::{MAX_BYTES, MAX_OPS, chunks};
use super::core::Store;
use super::error::{StoreError, display};
use super::keys::Keys;
use super::request::{StoreReply, StoreRequest};
use super::value::{COUNTERS, CellSlot, Content, decode, encode, encode_base, leading_integer};
use crate::etcd::kv::{KeyValue, OpReply, Range, RangeReply, prefix_end};
use crate::etcd::{Branch, Client, Config, EtcdError, TlsFiles, parse_endpoints};

/// Names, versions and revisions.
type Companions = Vec<(Vec<u8>, i64, i64)>;

/// Reads the bytes as a value, and a counter whose companions are anything.
pub fn read_values(data: &[u8]) {
    assert!(display(data).len() < 1000);
    if let Some(number) = leading_integer(data) {
        assert!(String::from_utf8_lossy(data).contains(&number.unsigned_abs().to_string()[..1]));
    }
    match decode(b"k", data) {
        Ok(Content::Literal(value)) => assert_eq!(encode(&value), data),
        Ok(Content::Counter(base)) => {
            assert_eq!(decode(b"k", &encode_base(base)), Ok(Content::Counter(base)));
        }
        Err(error) => assert!(error.to_string().contains("\"k\"")),
    }
    let literal = encode(data);
    assert_eq!(decode(b"k", &literal), Ok(Content::Literal(data.to_vec())));
    assert!(literal.as_slice() < COUNTERS.0 || literal.as_slice() >= COUNTERS.1);

    let mut u = Unstructured::new(data);
    let Ok((base, companions)) = <(i64, Companions)>::arbitrary(&mut u) else { return };
    let companions = companions.into_iter().map(|(name, version, mod_revision)| {
        let key = [b"/p/.add/aw==.", name.as_slice()].concat();
        KeyValue { key, mod_revision, version, ..KeyValue::default() }
    });
    let own = KeyValue { value: encode_base(base), ..KeyValue::default() };
    let get = |kvs| OpReply::Get(RangeReply { count: 0, more: false, kvs });
    let companions: Vec<_> = companions.collect();
    let slot = CellSlot::new(&mut Branch::default(), Range::default(), Range::default());
    let cell = slot.take(b"k", &mut [get(vec![own]), get(companions.clone())]);
    let Ok(Some(cell)) = cell else { panic!("{cell:?}") };
    assert!(leading_integer(&cell.value()).is_some());
    assert_eq!(slot.take(b"k", &mut [get(Vec::new()), get(companions)]), Ok(None));
}

/// Reads the bytes as an etcd key below a store, and finds its own keys again.
pub fn read_keys(data: &[u8]) {
    let keys = Keys::new(b"/p");
    let _ = Keys::companion_number(data);
    assert!(data.starts_with(Keys::queue_of(data)));
    if let Some(key) = keys.decode(data) {
        assert_eq!(keys.key(&key), data);
    }
    let mut u = Unstructured::new(data);
    let Ok((prefix, key, other, n)) = <(Vec<u8>, Vec<u8>, Vec<u8>, i64)>::arbitrary(&mut u) else {
        return;
    };
    let keys = Keys::new(&prefix);
    let own = keys.key(&key);
    assert_eq!(keys.decode(&own).as_ref(), Some(&key));
    let within = keys
        .all()
        .iter()
        .any(|range| own >= range.key && range.range_end.as_ref().is_some_and(|end| own < *end));
    assert!(within, "{own:?}");
    let companion = keys.companion(&key, n);
    assert_eq!(Keys::companion_number(&companion), Some(n));
    let entry = [keys.queue(&key), b"0f".to_vec()].concat();
    assert_eq!(Keys::queue_of(&entry), keys.queue(&key));
    assert_eq!((keys.decode(&companion), keys.decode(&entry)), (None, None));
    if other != key {
        let end = prefix_end(&keys.companions(&other));
        assert!(companion < keys.companions(&other) || companion >= end, "{companion:?}");
    }
}

/// Cuts any sizes into requests.
pub fn cut_chunks(data: &[u8]) {
    let Ok(sizes) = Vec::<u32>::arbitrary(&mut Unstructured::new(data)) else { return };
    let sizes: Vec<usize> = sizes.into_iter().map(|size| size as usize).collect();
    let cut: Vec<&[usize]> = chunks(&sizes, MAX_OPS, |size| *size).collect();
    assert_eq!(cut.concat(), sizes);
    for chunk in cut {
        assert!((1..=MAX_OPS).contains(&chunk.len()));
        assert!(chunk.len() == 1 || chunk.iter().sum::<usize>() <= MAX_BYTES);
    }
}

/// Asks a store whose client is closed: all that happens before a request is sent, for any request.
pub fn handle_requests(data: &[u8]) {
    let Ok(request) = request(&mut Unstructured::new(data)) else { return };
    let client = Client::new(Config {
        endpoints: parse_endpoints("127.0.0.1", false).unwrap_or_default(),
        tls: TlsFiles::default(),
        credentials: None,
        connect_timeout: Duration::from_secs(1),
        request_timeout: Duration::from_secs(1),
        as_it_is: false,
        cluster: None,
    });
    client.close();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let Ok(runtime) = runtime else { return };
    let store = Store::new(client, b"/p", 0, None);
    let answer = runtime.block_on(store.handle(request.clone(), Duration::from_secs(1)));
    match (&request, &answer) {
        // Of nothing all is there.
        (StoreRequest::MultiGet { keys, .. }, Ok(StoreReply::Values(values)))
        | (StoreRequest::MultiSet { keys, values }, Ok(StoreReply::Done)) => {
            assert!(keys.is_empty() && values.is_empty());
        }
        (StoreRequest::Check { keys }, Ok(StoreReply::Bool(true)))
        | (StoreRequest::Wait { keys, .. }, Ok(StoreReply::Done)) => assert!(keys.is_empty()),
        (StoreRequest::MultiSet { keys, values }, Err(StoreError::UnevenLists { .. })) => {
            assert_ne!(keys.len(), values.len());
        }
        (_, Err(StoreError::Etcd(EtcdError::Closed) | StoreError::TooLarge { .. })) => {}
        _ => panic!("{request:?}: {answer:?}"),
    }
}

fn request(u: &mut Unstructured<'_>) -> Result<StoreRequest> {
    use StoreRequest as Ask;
    let timeout = Duration::from_millis(u.arbitrary::<u16>()?.into());
    let key = u.arbitrary()?;
    Ok(match u.int_in_range(0..=14)? {
        0 => Ask::Set { key, value: u.arbitrary()? },
        1 => Ask::Get { key, timeout },
        2 => Ask::Add { key, n: u.arbitrary()? },
        3 => Ask::Check { keys: u.arbitrary()? },
        4 => Ask::Wait { keys: u.arbitrary()?, timeout },
        5 => Ask::CompareSet { key, expected: u.arbitrary()?, desired: u.arbitrary()? },
        6 => Ask::DeleteKey { key },
        7 => Ask::NumKeys,
        8 => Ask::ListKeys,
        9 => Ask::Append { key, value: u.arbitrary()? },
        10 => Ask::MultiGet { keys: u.arbitrary()?, timeout },
        11 => Ask::MultiSet { keys: u.arbitrary()?, values: u.arbitrary()? },
        12 => Ask::QueuePush { key, value: u.arbitrary()? },
        13 => Ask::QueuePop { key, timeout: u.arbitrary::<bool>()?.then_some(timeout) },
        _ => Ask::QueueLen { key },
    })
}
