//! Deleting what earlier rounds have left, after the next one is complete: nobody waits for it, so etcd
//! does it in pages. The node that completed the round does it, for as long as that round is current.

use super::cx::Cx;
use super::out::Slot;
use super::txns::control_unchanged;
use crate::etcd::kv::{Op, Range, Txn, TxnReply};
use crate::rendezvous::keys::{KeyRange, RoundId};

/// How many keys one transaction deletes, of each kind of key. Not fewer: to read a page etcd looks at all that is
/// left of the range.
const PAGE: i64 = 5000;

/// What the call under way is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Look,
    Delete,
}

pub struct Sweep {
    /// The round that stays.
    id: RoundId,
    ranges: Vec<KeyRange>,
    /// What the next transaction deletes.
    found: Vec<KeyRange>,
    pub slot: Slot<Purpose>,
}

impl Sweep {
    pub fn new(cx: &Cx, id: RoundId) -> Self {
        let ranges = cx.settings.keys.other_rounds(&id);
        Self { id, ranges, found: Vec::new(), slot: Slot::default() }
    }

    /// `false` where it is over: whoever completes the next round sweeps this one away, too.
    pub fn step(&mut self, cx: &mut Cx) -> bool {
        if cx.view.current().as_ref() != Some(&self.id) {
            return false;
        }
        let deadline = cx.now + cx.settings.close_timeout;
        let (purpose, txn) = if self.found.is_empty() {
            let look = |(from, end): &KeyRange| {
                let range = Range { range_end: Some(end.clone()), ..Range::key(from.clone()) };
                Op::Get(Range { limit: PAGE, ..range.keys_only() })
            };
            let reads: Vec<Op> = self.ranges.iter().map(look).collect();
            (Purpose::Look, Txn::when([]).then(reads))
        } else {
            let delete = |(from, end): &KeyRange| Op::delete_range(from.clone(), end.clone());
            let deletes: Vec<Op> = self.found.iter().map(delete).collect();
            (Purpose::Delete, Txn::when([control_unchanged(cx)]).then(deletes))
        };
        cx.out.txn(&mut self.slot, purpose, txn, deadline);
        true
    }

    /// `false` where it is over.
    pub fn answered(&mut self, purpose: Purpose, reply: &TxnReply) -> bool {
        match purpose {
            Purpose::Look => {
                let ranges = std::mem::take(&mut self.ranges);
                for (index, (_, end)) in ranges.into_iter().enumerate() {
                    let page = reply.range(index);
                    let (Some(first), Some(last)) = (page.kvs.first(), page.kvs.last()) else {
                        continue;
                    };
                    let after = [&last.key[..], &[0]].concat();
                    self.found.push((first.key.clone(), after.clone()));
                    if page.more {
                        self.ranges.push((after, end));
                    }
                }
                !self.found.is_empty()
            }
            Purpose::Delete => {
                self.found.clear();
                reply.succeeded && !self.ranges.is_empty()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{complete, cx, open, sees, sent};
    use super::*;
    use crate::etcd::kv::{KeyValue, OpReply, RangeReply};
    use crate::rendezvous::records::State;

    #[test]
    fn what_is_found_is_deleted_for_as_long_as_the_round_is_current() {
        let mut cx = cx();
        sees(&mut cx, 1, State::Final(complete(2)), 5);
        let mut sweep = Sweep::new(&cx, complete(2).id(1));
        assert!(sweep.step(&mut cx));
        assert!(sent(&mut cx).is_read_only());
        let kv = KeyValue { key: "/p/run_a/rdzv/round/0/x".into(), ..KeyValue::default() };
        let page = RangeReply { kvs: vec![kv], count: 1, more: false };
        let replies = vec![OpReply::Get(page)];
        let reply = TxnReply { revision: 6, succeeded: true, replies };
        assert!(sweep.answered(Purpose::Look, &reply));
        assert!(sweep.step(&mut cx));
        let txn = sent(&mut cx);
        assert_eq!((txn.success.len(), txn.compares.len()), (1, 1));
        assert!(!sweep.answered(Purpose::Delete, &reply), "nothing more is there");
        sees(&mut cx, 2, open(None), 7);
        assert!(!sweep.step(&mut cx), "the next round is open");
    }
}
