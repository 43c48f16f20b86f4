//! One attempt to complete the round: the member keys, some at a time, and then the record.

use base64::prelude::{BASE64_STANDARD, Engine as _};

use super::super::cx::{Cx, number};
use super::super::txns;
use super::super::view::Phase;
use crate::etcd::kv::Op;
use crate::rendezvous::keys::{NodeId, RoundId};
use crate::rendezvous::ranks::Roll;
use crate::rendezvous::records::{
    Control, Final, Join, Member, Past, ROUNDS_KEPT, Roster, RosterEntry, State, Story,
};
use crate::rendezvous::variant::Variant;

pub struct Attempt {
    id: RoundId,
    members: Vec<NodeId>,
    written: usize,
    since: i64,
    /// Unix time at which it began.
    at: u64,
}

impl Attempt {
    pub fn new(round: u64, attempt: String, members: Vec<NodeId>, at: u64) -> Self {
        Self { id: RoundId { round, attempt }, members, written: 0, since: 0, at }
    }

    pub fn members(&self) -> &[NodeId] {
        &self.members
    }

    pub fn has(&self, node: NodeId) -> bool {
        self.members.contains(&node)
    }

    pub fn is_written(&self) -> bool {
        self.written == self.members.len()
    }

    /// The next member keys, and how many are written then; `None` where one of them has gone.
    pub fn next_members(&self, cx: &Cx, roll: &Roll<Join>) -> Option<(usize, Vec<Op>)> {
        let (keys, most) = (&cx.settings.keys, cx.settings.tuning.members_per_txn);
        let to = self.members.len().min(self.written + most);
        let mut writes = Vec::with_capacity(to - self.written + 1);
        let mut roster = Roster::default();
        for (rank, node) in self.members.iter().enumerate().take(to).skip(self.written) {
            let join = roll.get(*node)?;
            let mut next = self.members[(rank + 1) % self.members.len()];
            let last = rank + 1 == self.members.len();
            if last && cx.settings.wrong(Variant::LastWatchesNobody) {
                next = 0;
            }
            let member = Member {
                rank: number(rank),
                next,
                node: join.node.clone(),
                addr: join.master_addr.clone(),
                labels: join.labels.clone(),
            };
            roster.members.push(RosterEntry::of(*node, &member));
            writes.push(Op::put(keys.member(&self.id, *node), cx.encode(&member), *node));
        }
        let key = keys.roster(&self.id, self.written / most);
        writes.push(Op::put(key, cx.encode(&roster), keys.run_lease()));
        Some((to, writes))
    }

    pub fn wrote(&mut self, to: usize, revision: i64) {
        // Where nothing was written in between, nobody was lost: all members so far are there at this revision.
        if self.written == 0 || revision == self.since.saturating_add(1) {
            self.since = revision;
        }
        self.written = to;
    }

    pub fn complete(&self, cx: &Cx, roll: &Roll<Join>) -> Option<Vec<Op>> {
        let control = self.record(cx, roll)?;
        let State::Final(complete) = &control.state else { return None };
        let keys = &cx.settings.keys;
        let round = control.round;
        let kv = keys.round_store(&complete.id(round), "kv");
        let store = |key: &str, value: &str| {
            let key = format!("{kv}{}", BASE64_STANDARD.encode(key));
            Op::put(key, BASE64_STANDARD.encode(value), keys.run_lease())
        };
        let mut writes = vec![
            txns::put_control(&cx.settings, &control),
            Op::delete(keys.coordinator()),
            Op::delete(keys.last_call(round)),
            // The names of torch's RendezvousStoreInfo (torch api.py), for whoever looks there.
            store("MASTER_ADDR", &complete.master_addr),
            store("MASTER_PORT", &complete.master_port.to_string()),
        ];
        let past = Past { round, world: complete.world, story: complete.story.clone() };
        writes.push(Op::put(keys.history(round), cx.encode(&past), keys.run_lease()));
        if let Some(old) = round.checked_sub(ROUNDS_KEPT) {
            writes.push(Op::delete(keys.history(old)));
        }
        Some(writes)
    }

    /// The control record of the round as this attempt completes it.
    pub fn record(&self, cx: &Cx, roll: &Roll<Join>) -> Option<Control> {
        let first = roll.get(*self.members.first()?)?;
        let Phase::Open(open) = cx.view.phase() else { return None };
        let story = Story {
            by: cx.settings.node.to_string(),
            at: self.at,
            opened_at: open.at,
            opened_by: open.by.into(),
            why: open.why.into(),
            min: number(cx.settings.min),
            max: number(cx.settings.max),
        };
        let complete = Final {
            world: number(self.members.len()),
            attempt: self.id.attempt.clone(),
            since: self.since,
            master_addr: first.master_addr.clone(),
            master_port: first.master_port,
            order: cx.settings.order,
            story,
        };
        Some(cx.view.control.value.as_ref()?.then(self.id.round, State::Final(complete)))
    }
}
