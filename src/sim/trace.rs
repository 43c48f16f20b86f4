//! One line for each thing that happens, to understand a failed seed.

use std::fmt::Write as _;

use super::model::Touched;
use super::node::Node;
use super::node::Reply;
use crate::etcd::WatchMessage;
use crate::etcd::kv::{Event, Op, Txn};
use crate::rendezvous::{Action, Answer, Input, Time};

pub fn input(input: &Input) -> String {
    match input {
        Input::Answer(call, reply) => format!("answer {call}: {}", self::reply(reply)),
        Input::Watched(watch, WatchMessage::Events(events)) => {
            let events: Vec<String> = events.iter().map(event).collect();
            format!("watch {watch}: {}", events.join(", "))
        }
        other => format!("{other:?}"),
    }
}

pub fn action(action: &Action) -> String {
    match action {
        Action::Txn(call, txn, _) => format!("call {call}: {}", self::txn(txn)),
        Action::Watch(watch, spec) => {
            format!("watch {watch}: {} from {}", text(&spec.key), spec.start_revision)
        }
        other => format!("{other:?}"),
    }
}

pub fn reply(reply: &Reply) -> String {
    match reply {
        Ok(Answer::Txn(reply)) => {
            let verdict = if reply.succeeded { "done" } else { "refused" };
            format!("{verdict} at {}", reply.revision)
        }
        Ok(other) => format!("{other:?}"),
        Err(error) => error.to_string(),
    }
}

pub fn settings(node: &Node) -> String {
    let settings = node.settings();
    format!(
        "version {}, {} to {} nodes, {}, leases of {:?} and {:?}, {:?}, stops in {:?}",
        settings.version,
        settings.min,
        settings.max,
        settings.order,
        settings.ttl,
        settings.run_ttl,
        settings.on_member_loss,
        node.agent.stop
    )
}

pub fn touched(touched: &Touched) -> String {
    let kv = &touched.kv;
    let verb = if touched.deleted { "deletes" } else { "writes" };
    let (key, value) = (text(&kv.key), text(&kv.value));
    format!("etcd: {} {verb} {key} {value}", kv.mod_revision)
}

/// Whatever is done, when and by which node, as one number: FNV-1a over the whole of each action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceHash(pub u64);

impl Default for TraceHash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl TraceHash {
    pub fn add(&mut self, now: Time, node: usize, action: &Action) {
        // Writing to it cannot fail.
        let _ = write!(self, "{} {node} {action:?}", now.as_nanos());
    }
}

impl std::fmt::Write for TraceHash {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

fn event(event: &Event) -> String {
    let kv = event.kv();
    let verb = if matches!(event, Event::Put(_)) { "+" } else { "-" };
    format!("{verb}{}@{}", text(&kv.key), kv.mod_revision)
}

fn txn(txn: &Txn) -> String {
    let ops: Vec<String> = txn.success.iter().map(op).collect();
    let guards: Vec<String> =
        txn.compares.iter().map(|c| format!("{} {:?}", text(&c.key), c.target)).collect();
    format!("if [{}] {}", guards.join(", "), ops.join(", "))
}

fn op(op: &Op) -> String {
    match op {
        Op::Get(range) => format!("get {}", text(&range.key)),
        Op::Put { key, .. } => format!("put {}", text(key)),
        Op::Delete { key, .. } => format!("delete {}", text(key)),
        Op::Txn(inner) => format!("({})", txn(inner)),
    }
}

fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.strip_prefix("/sim/run_a/rdzv/").unwrap_or(&text).to_string()
}
