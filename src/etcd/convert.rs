//! Between our plain values and etcd-client's types.

use etcd_client as wire;

use super::kv::{
    Compare, Event, KeyValue, Op, OpReply, Ordering, Range, RangeReply, Target, Txn, TxnReply,
};

pub(super) fn txn(txn: &Txn) -> wire::Txn {
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

pub(super) fn delete_options(range_end: Option<&[u8]>) -> wire::DeleteOptions {
    match range_end {
        Some(end) => wire::DeleteOptions::new().with_range(end),
        None => wire::DeleteOptions::new(),
    }
}

pub(super) fn range_options(range: &Range) -> wire::GetOptions {
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

pub(super) fn txn_reply(response: &wire::TxnResponse) -> TxnReply {
    TxnReply {
        revision: response.header().map_or(0, wire::ResponseHeader::revision),
        succeeded: response.succeeded(),
        replies: response.op_responses().into_iter().map(op_reply).collect(),
    }
}

fn op_reply(response: wire::TxnOpResponse) -> OpReply {
    match response {
        wire::TxnOpResponse::Get(range) => OpReply::Get(range_reply(range)),
        wire::TxnOpResponse::Put(_) => OpReply::Put,
        wire::TxnOpResponse::Delete(deleted) => OpReply::Delete(deleted.deleted()),
        wire::TxnOpResponse::Txn(inner) => OpReply::Txn {
            succeeded: inner.succeeded(),
            replies: inner.op_responses().into_iter().map(op_reply).collect(),
        },
    }
}

pub(super) fn range_reply(mut response: wire::GetResponse) -> RangeReply {
    RangeReply {
        count: response.count(),
        more: response.more(),
        kvs: response.take_kvs().into_iter().map(key_value).collect(),
    }
}

fn key_value(kv: wire::KeyValue) -> KeyValue {
    let (create_revision, mod_revision, version, lease) =
        (kv.create_revision(), kv.mod_revision(), kv.version(), kv.lease());
    let (key, value) = kv.into_key_value();
    KeyValue { key, value, create_revision, mod_revision, version, lease }
}

/// `None` for an event without a key, which etcd does not send.
pub(super) fn event(event: &wire::Event) -> Option<Event> {
    let mut kv = key_value(event.kv()?.clone());
    Some(match event.event_type() {
        wire::EventType::Put => Event::Put(kv),
        wire::EventType::Delete => {
            if let Some(previous) = event.prev_kv() {
                kv.value = previous.value().to_vec();
            }
            Event::Delete(kv)
        }
    })
}
