//! Deleting what earlier rounds have left, after the next one is complete: nobody waits for it, so etcd
//! does it in pages. Who completed the round does it, for as long as that round is current.

use super::keys::KeyRange;
use super::machine::{Machine, Step, Time};
use super::records::{Control, RoundId};
use crate::etcd::kv::{Op, Range, Txn, TxnReply};

/// How many keys one transaction deletes, of each kind of key. Not fewer: to read a page etcd looks at all that is
/// left of the range.
const PAGE: i64 = 5000;

pub(super) struct Sweep {
    /// The round that stays.
    id: RoundId,
    ranges: Vec<KeyRange>,
    /// What the next transaction deletes.
    found: Vec<KeyRange>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SweepStep {
    Look,
    Delete,
}

impl Machine {
    pub(super) fn begin_to_sweep(&mut self, id: RoundId) {
        let ranges = self.settings.keys.other_rounds(&id);
        self.sweep = Some(Sweep { id, ranges, found: Vec::new() });
    }

    /// `true` when a call was made.
    pub(super) fn step_sweep(&mut self, now: Time) -> bool {
        let current = self.control.value.as_ref().and_then(Control::current);
        let Some(sweep) = self.sweep.take_if(|sweep| current.as_ref() == Some(&sweep.id)) else {
            // Whoever completes the next round sweeps this one away, too.
            self.sweep = None;
            return false;
        };
        let deadline = now + self.settings.close_timeout;
        let (step, txn) = if sweep.found.is_empty() {
            let look = |(from, end): &KeyRange| {
                let range = Range { range_end: Some(end.clone()), ..Range::key(from.clone()) };
                Op::Get(Range { limit: PAGE, ..range.keys_only() })
            };
            let reads: Vec<Op> = sweep.ranges.iter().map(look).collect();
            (SweepStep::Look, Txn::when([]).then(reads))
        } else {
            let delete = |(from, end): &KeyRange| Op::delete_range(from.clone(), end.clone());
            let deletes: Vec<Op> = sweep.found.iter().map(delete).collect();
            (SweepStep::Delete, Txn::when([self.control_unchanged()]).then(deletes))
        };
        self.sweep = Some(sweep);
        self.txn(Step::Sweep(step), txn, deadline);
        true
    }

    pub(super) fn swept(&mut self, step: SweepStep, reply: &TxnReply) {
        let Some(sweep) = &mut self.sweep else { return };
        match step {
            SweepStep::Look => {
                let ranges = std::mem::take(&mut sweep.ranges);
                for (index, (_, end)) in ranges.into_iter().enumerate() {
                    let page = reply.range(index);
                    let (Some(first), Some(last)) = (page.kvs.first(), page.kvs.last()) else {
                        continue;
                    };
                    let after = [&last.key[..], &[0]].concat();
                    sweep.found.push((first.key.clone(), after.clone()));
                    if page.more {
                        sweep.ranges.push((after, end));
                    }
                }
                if sweep.found.is_empty() {
                    self.sweep = None;
                }
            }
            SweepStep::Delete => {
                sweep.found.clear();
                if !reply.succeeded || sweep.ranges.is_empty() {
                    self.sweep = None;
                }
            }
        }
    }
}
