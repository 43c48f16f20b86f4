//! The roles of a node, and what one of them changes in the others: effects are applied here.

use std::time::Duration;

use super::barrier::{self, Barrier};
use super::close::Closing;
use super::cx::Cx;
use super::effect::Effect;
use super::lead::{self, Lead};
use super::leases;
use super::membership::{self, Membership};
use super::out::{AnyCall, Out};
use super::sweep::{self, Sweep};
use super::timers::Timer;
use super::usher::{self, Ushering};
use super::view::Phase;
use super::wish::Seat;
use crate::rendezvous::api::{Action, Answer, CallId, Outcome, RendezvousError, Time};
use crate::rendezvous::keys::NodeId;
use crate::rendezvous::variant::Variant;

#[derive(Default)]
pub struct Roles {
    pub barrier: Barrier,
    pub lead: Option<Lead>,
    pub ushering: Option<Ushering>,
    pub membership: Option<Membership>,
    pub sweep: Option<Sweep>,
    pub closing: Option<Closing>,
    /// Why this node is none of the run, until it is told to join again.
    pub excluded: Option<String>,
    /// The run was closed while this node waited for a place in it.
    pub parked: bool,
}

/// Which role's call was answered, and what it was for.
pub enum Asked {
    Head,
    Lease(leases::Purpose),
    Barrier(barrier::Purpose),
    Lead(lead::Purpose),
    Usher(usher::Purpose),
    Member(membership::Purpose),
    Sweep(sweep::Purpose),
    Close,
}

impl Roles {
    /// When there is something to do, if nothing happens before.
    pub fn next_deadline(&self, cx: &Cx) -> Option<Time> {
        let timers = &cx.timers;
        // Whoever asks for these waits no longer, whatever the call under way is for.
        let asked = timers.earliest(&[Timer::Close, Timer::Observe]).map(|at| at + self.slack(cx));
        let own = if !self.is_idle(cx) {
            None
        } else if let Some(pause) = timers.get(Timer::Pause) {
            // Whatever is due, the next step is taken when the pause ends.
            Some(pause)
        } else if self.closing.is_some() {
            // While the run is being closed nothing else is done.
            None
        } else {
            let mut among = Vec::with_capacity(6);
            if self.barrier.is_on() && !self.barrier.is_parked() {
                among.push(Timer::Join);
            }
            // Without the head nothing of that can be done.
            if cx.head.is_known() {
                among.extend([Timer::Claim, Timer::Reopen]);
                if self.lead.as_ref().is_some_and(Lead::has_counted) {
                    among.extend([Timer::LastCall, Timer::Report]);
                }
                if self.ushering.as_ref().is_some_and(Ushering::has_counted) {
                    among.push(Timer::Tell);
                }
            }
            timers.earliest(&among)
        };
        own.into_iter().chain(asked).min()
    }

    /// A call that is under way for those who asked ends by their deadline, and says more.
    pub fn slack(&self, cx: &Cx) -> Duration {
        let close = self.closing.as_ref().is_some_and(|closing| !closing.slot.is_free());
        let run_lease = cx.leases.slot.purpose() == Some(&leases::Purpose::Run);
        let own = close || run_lease || !cx.head.slot.is_free();
        if own { Duration::from_secs(1) } else { Duration::ZERO }
    }

    /// The text of an exclusion that is in force, or was when the barrier ended by it.
    pub fn excluded(&self, cx: &Cx) -> Option<String> {
        let in_force = || cx.exclusion().map(|error| error.to_string());
        self.excluded.clone().or_else(in_force)
    }

    /// This node is none of the run, until it is told to join again.
    fn exclude(&mut self, error: &RendezvousError) {
        if let RendezvousError::Denied(_) | RendezvousError::Replaced { .. } = error {
            self.excluded = Some(error.to_string());
        }
    }

    /// No call is under way.
    pub fn is_idle(&self, cx: &Cx) -> bool {
        cx.head.slot.is_free()
            && cx.leases.slot.is_free()
            && self.barrier.slot.is_free()
            && self.lead.as_ref().is_none_or(|role| role.slot.is_free())
            && self.ushering.as_ref().is_none_or(|role| role.slot.is_free())
            && self.membership.as_ref().is_none_or(|role| role.slot.is_free())
            && self.sweep.as_ref().is_none_or(|role| role.slot.is_free())
            && self.closing.as_ref().is_none_or(|role| role.slot.is_free())
    }

    /// What the call was for that has this id.
    pub fn take_call(&mut self, cx: &mut Cx, call: CallId) -> Option<Asked> {
        let head = cx.head.slot.take(call).map(|_| Asked::Head);
        head.or_else(|| cx.leases.slot.take(call).map(Asked::Lease))
            .or_else(|| self.barrier.slot.take(call).map(Asked::Barrier))
            .or_else(|| self.lead.as_mut()?.slot.take(call).map(Asked::Lead))
            .or_else(|| self.ushering.as_mut()?.slot.take(call).map(Asked::Usher))
            .or_else(|| self.membership.as_mut()?.slot.take(call).map(Asked::Member))
            .or_else(|| self.sweep.as_mut()?.slot.take(call).map(Asked::Sweep))
            .or_else(|| self.closing.as_mut()?.slot.take(call).map(|_| Asked::Close))
    }

    pub fn lead_answered(&mut self, cx: &mut Cx, purpose: lead::Purpose, answer: Answer) {
        if let Some(lead) = &mut self.lead {
            let effects = lead.answered(cx, purpose, answer);
            self.apply(cx, effects);
        }
    }

    /// What roles have to know of a change in the view.
    pub fn take_news(&mut self, cx: &mut Cx) {
        let news = cx.view.take_news();
        if news.another_run {
            // Where this node was in the last one is nowhere now.
            self.sit(cx, Seat::Outside);
            let Cx { settings, leases, out, view, .. } = cx;
            leases.renew_run_as(settings, out, view.control.value.as_ref());
        }
        if news.control_seen
            && let Some(closing) = &mut self.closing
        {
            closing.knows(cx.view.reopened());
        }
        if news.control {
            // Their calls are about a round which is current no more, and this node may have to join the next.
            let out = &mut cx.out;
            self.barrier.gives_up_claim(out);
            if let Some(ushering) = &mut self.ushering {
                ushering.slot.give_up(out);
            }
            if let Some(sweep) = &mut self.sweep {
                sweep.slot.give_up(out);
            }
        }
        let waits = matches!(self.barrier.seat, Seat::Waiting(_));
        if news.coordinator || (news.usher && waits) {
            cx.timers.clear(Timer::Claim);
        }
    }

    pub fn apply(&mut self, cx: &mut Cx, effects: impl IntoIterator<Item = Effect>) {
        for effect in effects {
            match effect {
                Effect::Seat(seat) => self.sit(cx, seat),
                Effect::Lead { took_over } => self.begin_to_lead(cx, took_over),
                Effect::StepDown => self.step_down(cx),
                Effect::Member { outcome, complete, next } => {
                    let Some(lease) = cx.leases.own() else { continue };
                    // By the record, and not by the answer to its completion: that may have been lost.
                    if cx.attempts.sweeps.as_ref() == Some(&complete.attempt) {
                        self.sweep = Some(Sweep::new(cx, outcome.id()));
                    }
                    self.membership = Some(Membership::new(cx, &outcome, &complete, lease, next));
                }
                Effect::Expelled => self.expel(),
                Effect::End(result) => self.finish(cx, result),
                Effect::CountAnew => self.end_ushering(cx),
                Effect::Closed(result) => self.closed(cx, result),
                Effect::OpenForTheLost { deadline } => {
                    self.barrier.open_for_the_lost(cx, deadline);
                }
            }
        }
    }

    fn sit(&mut self, cx: &mut Cx, seat: Seat) {
        if self.barrier.seat != seat {
            self.barrier.seat = seat;
            cx.timers.clear(Timer::Claim);
            cx.timers.clear(Timer::Reopen);
            self.end_ushering(cx);
            self.end_lead(cx);
        }
    }

    pub fn step_down(&mut self, cx: &mut Cx) {
        self.end_ushering(cx);
        self.end_lead(cx);
    }

    pub fn begin_to_lead(&mut self, cx: &mut Cx, took_over: bool) {
        let Phase::Open(open) = cx.view.phase() else { return };
        let (round, previous) = (open.round, open.previous.cloned());
        self.lead = Some(Lead::new(cx, round, previous, took_over));
        let ttl = cx.run_ttl();
        let Cx { settings, leases, out, .. } = cx;
        leases.renew_run_now(settings, out, ttl);
    }

    fn end_lead(&mut self, cx: &mut Cx) {
        if let Some(lead) = self.lead.take() {
            lead.end(cx);
        }
    }

    pub fn end_ushering(&mut self, cx: &mut Cx) {
        if let Some(ushering) = self.ushering.take() {
            ushering.end(cx);
        }
    }

    fn expel(&mut self) {
        if let Some(membership) = &mut self.membership {
            membership.expelled = true;
        }
    }

    pub fn finish(&mut self, cx: &mut Cx, result: Result<Outcome, RendezvousError>) {
        let parked = self.barrier.end(cx);
        if let Err(RendezvousError::Closed(_)) = &result {
            self.parked = parked;
        }
        if !cx.settings.wrong(Variant::KeepsCallOfFinished) {
            // Its answer would be taken for one to the next wish to join.
            self.give_up_calls(cx);
        }
        self.sit(cx, Seat::Outside);
        if let Err(error) = &result {
            self.exclude(error);
            self.give_back_lease(cx);
        }
        cx.out.act(Action::Joined(result));
    }

    pub fn closed(&mut self, cx: &mut Cx, result: Result<Option<String>, RendezvousError>) {
        cx.timers.clear(Timer::Close);
        if let Some(mut closing) = self.closing.take() {
            closing.slot.give_up(&mut cx.out);
        }
        if let Err(error) = &result {
            self.exclude(error);
        }
        cx.out.act(Action::Closed(result));
    }

    pub fn fail_all(&mut self, cx: &mut Cx, error: &RendezvousError) {
        if self.closing.is_some() {
            self.closed(cx, Err(error.clone()));
        }
        if cx.timers.get(Timer::Observe).is_some() {
            cx.observed(Err(error.clone()));
        }
        if self.barrier.is_on() {
            self.finish(cx, Err(error.clone()));
        }
    }

    pub fn load_anew(&mut self, cx: &mut Cx) {
        if let Some(lead) = &mut self.lead {
            lead.reload(cx);
        }
    }

    /// etcd was wiped, restored or replaced: what is known is of a lost history, revisions may
    /// now be lower, and an existing lease is one of the past. This node is another one from now on, and a
    /// member learns that its world is over.
    pub fn begin_anew(&mut self, cx: &mut Cx) {
        if let Some(lease) = self.drop_lease(cx) {
            cx.out.act(Action::Revoke(lease));
        }
        cx.abandon_run_lease();
        if let Some(membership) = &mut self.membership {
            membership.stop_watching(cx);
        }
        cx.forget_head();
        cx.view.begin_anew();
        cx.name.begin_anew();
        cx.out.begin_anew();
        self.sweep = None;
    }

    pub fn leave(&mut self, cx: &mut Cx) {
        // Whatever is under way now is for a node that is gone.
        self.forget_calls(cx);
        if self.barrier.is_on() {
            self.finish(cx, Err(RendezvousError::Left));
        } else {
            self.give_back_lease(cx);
        }
    }

    fn give_back_lease(&mut self, cx: &mut Cx) {
        if let Some(mut membership) = self.membership.take() {
            membership.stop_watching(cx);
        }
        if let Some(lease) = cx.leases.lose_own() {
            cx.name.lease_is_gone(lease);
            cx.out.act(Action::Revoke(lease));
        }
        // Whoever is not there does not keep the run's keys there.
        cx.abandon_run_lease();
    }

    /// The lease is gone, and with it every key of this node: it starts again as another node. Returns
    /// the lease it had.
    pub fn drop_lease(&mut self, cx: &mut Cx) -> Option<NodeId> {
        // An answer that is on its way is about the node that was: a join that it reports is undone.
        self.forget_calls(cx);
        self.sit(cx, Seat::Outside);
        self.expel();
        let lease = cx.leases.lose_own();
        if let Some(lease) = lease {
            cx.name.lease_is_gone(lease);
        }
        lease
    }

    fn forget_calls(&mut self, cx: &mut Cx) {
        if cx.settings.wrong(Variant::CallsGoOn) {
            self.each_call(cx, |call, _| call.forget());
        } else {
            self.give_up_calls(cx);
        }
    }

    /// Whatever is under way, its answer is not wanted any more.
    fn give_up_calls(&mut self, cx: &mut Cx) {
        self.each_call(cx, |call, out| call.give_up(out));
    }

    fn each_call(&mut self, cx: &mut Cx, does: impl Fn(&mut dyn AnyCall, &mut Out)) {
        let Cx { head, leases, out, .. } = cx;
        does(&mut head.slot, out);
        does(&mut leases.slot, out);
        does(&mut self.barrier.slot, out);
        self.lead.iter_mut().for_each(|role| does(&mut role.slot, out));
        self.ushering.iter_mut().for_each(|role| does(&mut role.slot, out));
        self.membership.iter_mut().for_each(|role| does(&mut role.slot, out));
        self.sweep.iter_mut().for_each(|role| does(&mut role.slot, out));
        self.closing.iter_mut().for_each(|role| does(&mut role.slot, out));
    }
}
