//! What a node asks of its driver: the actions, and the ids and the chance that they need.

use std::time::Duration;

use crate::etcd::WatchSpec;
use crate::etcd::kv::{Txn, TxnReply, prefix_end};
use crate::rendezvous::api::{Action, CallId, Time, Wanted, WatchId};

/// The call that a role waits for, and what it is for. A role has one at most.
#[derive(Debug)]
pub struct Slot<P>(Option<(CallId, P)>);

impl<P> Default for Slot<P> {
    fn default() -> Self {
        Self(None)
    }
}

impl<P> Slot<P> {
    pub fn is_free(&self) -> bool {
        self.0.is_none()
    }

    pub fn purpose(&self) -> Option<&P> {
        self.0.as_ref().map(|(_, purpose)| purpose)
    }

    /// What this call was for, which is answered now; `None` where it is not the one that is waited for.
    pub fn take(&mut self, call: CallId) -> Option<P> {
        self.0.take_if(|(own, _)| *own == call).map(|(_, purpose)| purpose)
    }
}

/// Whatever it is for.
pub trait AnyCall {
    /// The answer is not wanted any more.
    fn give_up(&mut self, out: &mut Out);
    /// The same without a word to the driver, for a wrong variant.
    fn forget(&mut self);
}

impl<P> AnyCall for Slot<P> {
    fn give_up(&mut self, out: &mut Out) {
        if let Some((call, _)) = self.0.take() {
            out.act(Action::Cancel(call));
        }
    }

    fn forget(&mut self) {
        self.0 = None;
    }
}

pub struct Out {
    actions: Vec<Action>,
    last_id: u64,
    rng: u64,
    /// The highest revision that etcd has told, and what it was when the last transaction was sent.
    revision: i64,
    known: i64,
}

impl Out {
    pub fn new(seed: u64) -> Self {
        Self { actions: Vec::new(), last_id: 0, rng: seed, revision: 0, known: 0 }
    }

    pub fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub fn take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub fn txn<P>(&mut self, slot: &mut Slot<P>, purpose: P, txn: Txn, deadline: Time) {
        let id = self.new_id();
        slot.0 = Some((id, purpose));
        self.known = self.revision;
        self.act(Action::Txn(id, txn, deadline));
    }

    pub fn grant<P>(
        &mut self,
        slot: &mut Slot<P>,
        purpose: P,
        lease: Wanted,
        ttl: Duration,
        deadline: Time,
    ) {
        let id = self.new_id();
        slot.0 = Some((id, purpose));
        self.act(Action::Grant(id, lease, ttl, deadline));
    }

    pub fn time_to_live<P>(&mut self, slot: &mut Slot<P>, purpose: P, lease: i64, deadline: Time) {
        let id = self.new_id();
        slot.0 = Some((id, purpose));
        self.act(Action::TimeToLive(id, lease, deadline));
    }

    pub fn has_reached(&mut self, revision: i64) {
        self.revision = self.revision.max(revision);
    }

    /// etcd cannot be behind what was known when it was asked: then it is another one than it was. Watches
    /// say it, too, but there may be none: the head's ends where rights are taken away.
    pub fn is_of_another_history(&self, reply: &TxnReply) -> bool {
        reply.revision < self.known
    }

    /// Revisions of now may be lower.
    pub fn begin_anew(&mut self) {
        self.revision = 0;
    }

    pub fn watch(&mut self, spec: WatchSpec) -> WatchId {
        let id = self.new_id();
        self.act(Action::Watch(id, spec));
        id
    }

    /// From now on.
    pub fn watch_prefix(&mut self, prefix: String, deletes_only: bool) -> WatchId {
        let range_end = Some(prefix_end(prefix.as_bytes()));
        self.watch(WatchSpec {
            key: prefix.into(),
            range_end,
            deletes_only,
            ..WatchSpec::default()
        })
    }

    pub fn unwatch(&mut self, watch: Option<WatchId>) {
        if let Some(watch) = watch {
            self.act(Action::Unwatch(watch));
        }
    }

    /// Up to `most`, different for each node and each time.
    pub fn jitter(&mut self, most: Duration) -> Duration {
        let share = self.random() >> 11;
        // 53 bits fit a float exactly.
        #[allow(clippy::cast_precision_loss, reason = "the value has 53 bits")]
        most.mul_f64(share as f64 / (1_u64 << 53) as f64)
    }

    pub fn random_lease(&mut self) -> i64 {
        i64::try_from(self.random() >> 1).unwrap_or(1).max(1)
    }

    /// `SplitMix64`: the seed comes from outside, so that a simulation can be repeated.
    fn random(&mut self) -> u64 {
        self.rng = self.rng.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.rng;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_answered_once_and_by_its_own_call() {
        let (mut out, mut slot) = (Out::new(1), Slot::default());
        out.txn(&mut slot, "read", Txn::when([]), Time::ZERO);
        let [Action::Txn(call, ..)] = out.take()[..] else { panic!("one call") };
        assert_eq!(slot.take(call + 1), None);
        assert_eq!(slot.take(call), Some("read"));
        assert!(slot.is_free());
        slot.give_up(&mut out);
        assert!(out.take().is_empty(), "there is nothing to cancel");
    }
}
