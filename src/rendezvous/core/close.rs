//! What is under way to close the run.

use super::cx::Cx;
use super::effect::Effect;
use super::membership::Membership;
use super::out::Slot;
use super::standing;
use super::timers::Timer;
use super::{head, txns};
use crate::etcd::kv::TxnReply;
use crate::rendezvous::api::Close;
use crate::rendezvous::records::{Closed, Control, State};
use crate::rendezvous::variant::Variant;

/// The call that closes the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writing;

pub struct Closing {
    wish: Close,
    /// The revision as of which this node knew of the run when this began.
    known: i64,
    /// How often the run had been reopened then, or by the first that is known of it. What was to be closed was
    /// closed where it is more often now.
    reopened: Option<u32>,
    pub slot: Slot<Writing>,
}

impl Closing {
    /// A wish that is under way is replaced, and its call goes on.
    pub fn begin(cx: &mut Cx, wish: Close, under_way: Option<Self>) -> Self {
        cx.timers.set(Timer::Close, cx.now + cx.settings.close_timeout);
        let known = cx.view.control.as_of();
        let reopened = (known > 0).then(|| cx.view.reopened());
        let slot = under_way.map(|closing| closing.slot).unwrap_or_default();
        Self { wish, known, reopened, slot }
    }

    /// The first that is known of the run after this node was to close it.
    pub fn knows(&mut self, reopened: u32) {
        self.reopened.get_or_insert(reopened);
    }

    /// `early`: see [`Cx::know_head`]. `excluded`: why this node is none of the run.
    pub fn step(
        &mut self,
        cx: &mut Cx,
        membership: Option<&Membership>,
        excluded: Option<String>,
        early: bool,
    ) -> Option<Effect> {
        let deadline = cx.timers.get(Timer::Close).unwrap_or(cx.now);
        if !self.was_closed_meanwhile(cx) {
            if !cx.know_head(deadline.max(cx.now), early) {
                return None;
            }
            self.knows(cx.view.reopened());
        }
        if self.was_closed_meanwhile(cx) {
            return Some(Effect::Closed(Ok(None)));
        }
        if self.wish.only_member {
            if let Some(reason) = standing::why_not_close(cx, membership, excluded) {
                return Some(Effect::Closed(Ok(Some(reason))));
            }
        } else if let Some(error) = cx.replaced() {
            return Some(Effect::Closed(Err(error)));
        }
        if cx.ensure_run_lease(deadline) {
            let own = membership.filter(|_| self.wish.only_member).map(|own| own.own_key(cx));
            let txn = txns::close(cx, &self.record(cx), own);
            cx.out.txn(&mut self.slot, Writing, txn, deadline);
        }
        None
    }

    /// Somebody else has closed the run since this node was to do it; it may have been reopened since.
    fn was_closed_meanwhile(&self, cx: &Cx) -> bool {
        let Some(before) = self.reopened else { return false };
        let is_news = cx.view.control.as_of() > self.known || cx.head.is_known();
        let misses = cx.settings.wrong(Variant::MissesReopening);
        is_news && (cx.view.is_closed() || (cx.view.reopened() > before && !misses))
    }

    /// The record of a close keeps which world was the last one.
    fn record(&self, cx: &Cx) -> Control {
        let Close { by, reason, at, ended, .. } = self.wish.clone();
        let known = cx.view.control.value.as_ref();
        let forgets = cx.settings.wrong(Variant::ForgetsPrevious);
        let last = known.and_then(Control::last).filter(|_| !forgets);
        let state = State::Closed(Closed { by, reason, at, last, ended });
        match known {
            Some(control) => control.then(control.round, state),
            None => Control::first(cx.settings.version, cx.run_ttl_of_new(), 0, state),
        }
    }

    /// What the reply says of the head is known already; `is_news`: the record is another one than before.
    pub fn answered(&mut self, cx: &mut Cx, reply: &TxnReply, is_news: bool) -> Option<Effect> {
        if reply.succeeded {
            let control = self.record(cx);
            cx.view.control_written(control, reply.revision);
            return None;
        }
        let own = reply.range(head::reads(&cx.settings).len()).kvs;
        (self.wish.only_member && !is_news && own.is_empty()).then_some(Effect::Expelled)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{cx, open, puts, sees, sent};
    use super::*;

    fn closing(cx: &mut Cx, only_member: bool) -> Closing {
        Closing::begin(cx, Close { only_member, ..Close::default() }, None)
    }

    #[test]
    fn whoever_may_closes_what_it_knows() {
        let mut cx = cx();
        sees(&mut cx, 3, open(None), 5);
        let mut closing = closing(&mut cx, false);
        assert_eq!(closing.step(&mut cx, None, None, true), None);
        let txn = sent(&mut cx);
        assert_eq!((puts(&txn), txn.compares.len()), (vec!["head/control".to_string()], 1));
        let reply = TxnReply { revision: 6, succeeded: true, replies: Vec::new() };
        assert_eq!(closing.answered(&mut cx, &reply, false), None);
        let effect = closing.step(&mut cx, None, None, true);
        assert_eq!(effect, Some(Effect::Closed(Ok(None))));
    }

    #[test]
    fn a_node_that_is_no_member_leaves_the_run_as_it_is() {
        let mut cx = cx();
        sees(&mut cx, 3, open(None), 5);
        let mut closing = closing(&mut cx, true);
        let effect = closing.step(&mut cx, None, None, true);
        assert!(matches!(effect, Some(Effect::Closed(Ok(Some(_))))), "{effect:?}");
        assert!(cx.out.take().is_empty());
    }

    /// The answer to its close was lost, and an operator was quick.
    #[test]
    fn a_run_that_was_reopened_is_not_closed_again() {
        let mut cx = cx();
        sees(&mut cx, 3, open(None), 5);
        let mut closing = closing(&mut cx, false);
        sees(&mut cx, 4, open(None), 8);
        if let Some(control) = &mut cx.view.control.value {
            control.reopened = 1;
        }
        let effect = closing.step(&mut cx, None, None, true);
        assert_eq!(effect, Some(Effect::Closed(Ok(None))));
    }
}
