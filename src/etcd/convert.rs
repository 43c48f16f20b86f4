//! Between our plain values and etcd-client's types.

use etcd_client as wire;
use etcd_client::proto::{PbEvent, PbKeyValue, PbRangeResponse, PbResponseOp, PbTxnOpResponse};

use super::kv::{
    Compare, Event, KeyValue, Op, OpReply, Ordering, Range, RangeReply, Target, Txn, TxnReply,
};

pub fn txn(txn: &Txn) -> wire::Txn {
    wire::Txn::new()
        .when(txn.compares.iter().map(compare).collect::<Vec<_>>())
        .and_then(txn.success.iter().map(op).collect::<Vec<_>>())
        .or_else(txn.failure.iter().map(op).collect::<Vec<_>>())
}

fn compare(compare: &Compare) -> wire::Compare {
    let ordering = match compare.ordering {
        Ordering::Equal => wire::CompareOp::Equal,
        Ordering::NotEqual => wire::CompareOp::NotEqual,
        Ordering::Less => wire::CompareOp::Less,
        Ordering::Greater => wire::CompareOp::Greater,
    };
    let key = compare.key.clone();
    let wired = match &compare.target {
        Target::Value(value) => wire::Compare::value(key, ordering, value.clone()),
        Target::Version(version) => wire::Compare::version(key, ordering, *version),
        Target::CreateRevision(revision) => {
            wire::Compare::create_revision(key, ordering, *revision)
        }
        Target::ModRevision(revision) => wire::Compare::mod_revision(key, ordering, *revision),
        Target::Lease(lease) => wire::Compare::lease(key, ordering, *lease),
    };
    match &compare.range_end {
        Some(end) => wired.with_range(end.clone()),
        None => wired,
    }
}

fn op(op: &Op) -> wire::TxnOp {
    match op {
        Op::Get(range) => wire::TxnOp::get(range.key.clone(), Some(range_options(range))),
        Op::Put { key, value, lease } => {
            wire::TxnOp::put(key.clone(), value.clone(), Some(put_options(*lease)))
        }
        Op::Delete { key, range_end } => {
            wire::TxnOp::delete(key.clone(), Some(delete_options(range_end.as_deref())))
        }
        Op::Txn(inner) => wire::TxnOp::txn(txn(inner)),
    }
}

fn put_options(lease: i64) -> wire::PutOptions {
    wire::PutOptions::new().with_lease(lease)
}

pub fn delete_options(range_end: Option<&[u8]>) -> wire::DeleteOptions {
    match range_end {
        Some(end) => wire::DeleteOptions::new().with_range(end),
        None => wire::DeleteOptions::new(),
    }
}

pub fn range_options(range: &Range) -> wire::GetOptions {
    let mut options = wire::GetOptions::new().with_limit(range.limit).with_revision(range.revision);
    if let Some(end) = &range.range_end {
        options = options.with_range(end.clone());
    }
    if range.keys_only {
        options = options.with_keys_only();
    }
    if range.count_only {
        options = options.with_count_only();
    }
    options
}

pub fn txn_reply(response: wire::TxnResponse) -> TxnReply {
    let response = response.0;
    TxnReply {
        revision: response.header.map_or(0, |header| header.revision),
        succeeded: response.succeeded,
        replies: response.responses.into_iter().map(op_reply).collect(),
    }
}

fn op_reply(response: PbResponseOp) -> OpReply {
    match response.response {
        Some(PbTxnOpResponse::ResponseRange(range)) => OpReply::Get(range_of(range)),
        Some(PbTxnOpResponse::ResponseDeleteRange(deleted)) => OpReply::Delete(deleted.deleted),
        Some(PbTxnOpResponse::ResponseTxn(inner)) => OpReply::Txn {
            succeeded: inner.succeeded,
            replies: inner.responses.into_iter().map(op_reply).collect(),
        },
        // etcd answers each operation.
        Some(PbTxnOpResponse::ResponsePut(_)) | None => OpReply::Put,
    }
}

pub fn range_reply(response: wire::GetResponse) -> RangeReply {
    range_of(response.0)
}

fn range_of(response: PbRangeResponse) -> RangeReply {
    RangeReply {
        count: response.count,
        more: response.more,
        kvs: response.kvs.into_iter().map(key_value).collect(),
    }
}

fn key_value(kv: PbKeyValue) -> KeyValue {
    let PbKeyValue { key, create_revision, mod_revision, version, value, lease } = kv;
    KeyValue { key, value, create_revision, mod_revision, version, lease }
}

pub fn events(response: wire::WatchResponse) -> impl Iterator<Item = Event> {
    response.0.events.into_iter().filter_map(event)
}

/// `None` for an event without a key, which etcd does not send.
fn event(event: PbEvent) -> Option<Event> {
    let mut kv = key_value(event.kv?);
    // Of the two types, `PUT` is 0.
    if event.r#type == 0 {
        return Some(Event::Put(kv));
    }
    if let Some(previous) = event.prev_kv {
        kv.value = previous.value;
    }
    Some(Event::Delete(kv))
}

/// Whether a renewal was answered by etcd's word that it does not have the lease: etcd-client has this text only.
pub fn is_lease_gone(error: &wire::Error) -> bool {
    matches!(error, wire::Error::LeaseKeepAliveError(text) if text == "lease not found")
}
