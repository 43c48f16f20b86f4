//! The protocol core of one node: which role acts, and the door to all of them.
//!
//! A role (the barrier, the coordinator in `lead/`, the usher, the member, the sweep, the close) owns its state,
//! sees the rest as a [`Cx`], and returns as effects what it changes outside of itself. [`Roles`] holds them
//! and applies the effects; no role knows another one but the membership, which several ask.
//!
//! All is level-triggered: after each input [`Machine::advance`] looks at what is known and lets one role take
//! one step. Each role has a slot for one call, and one call is under way at a time in all: what comes next
//! follows from its answer. Every transaction is guarded by the control record's revision, so repeating one
//! whose answer was lost is harmless.

mod barrier;
mod close;
mod cx;
mod effect;
mod explain;
mod failure;
mod head;
mod lead;
mod leases;
mod membership;
mod name;
mod out;
mod pages;
mod places;
mod remarks;
mod roles;
mod standing;
mod status;
mod sweep;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod timers;
mod txns;
mod usher;
mod view;
mod wish;

use std::time::Duration;

use self::barrier::Turn;
use self::close::Closing;
use self::cx::Cx;
use self::failure::{Remedy, remedy};
use self::head::Watched;
use self::lead::Lead;
use self::roles::{Asked, Roles};
use self::timers::Timer;
use self::usher::Ushering;
use self::view::Phase;
use super::api::{Action, Answer, CallId, Input, RendezvousError, Settings, Status, Time, WatchId};
use super::keys::NodeId;
use super::variant::Variant;
use crate::etcd::kv::{Event, TxnReply};
use crate::etcd::{EtcdError, WatchMessage};

pub struct Machine {
    cx: Cx,
    roles: Roles,
}

impl Machine {
    pub fn new(settings: Settings) -> Self {
        Self { cx: Cx::new(settings), roles: Roles::default() }
    }

    /// Takes one input and returns what to do.
    pub fn handle(&mut self, now: Time, input: Input) -> Vec<Action> {
        self.cx.now = now;
        match input {
            Input::Join(master) => {
                (self.roles.excluded, self.roles.parked) = (None, false);
                self.cx.remarks.begin_anew();
                let why = self.roles.membership.as_ref().and_then(|own| {
                    let waiting = if self.roles.barrier.is_on() {
                        0
                    } else {
                        standing::waiting(&self.cx, own)
                    };
                    explain::why_again(&self.cx, &own.id, waiting)
                });
                if let Some(membership) = &mut self.roles.membership {
                    membership.stop_watching(&mut self.cx);
                }
                let newcomer = self.roles.membership.is_none();
                self.roles.barrier.begin(&mut self.cx, master, why, newcomer);
            }
            Input::Leave => self.roles.leave(&mut self.cx),
            Input::Close(wish) => {
                let under_way = self.roles.closing.take();
                self.roles.closing = Some(Closing::begin(&mut self.cx, wish, under_way));
            }
            Input::Observe => {
                self.cx.timers.set(Timer::Observe, now + self.cx.settings.close_timeout);
            }
            Input::Answer(call, answer) => self.answer(call, answer),
            Input::Watched(watch, message) => self.watched(watch, message),
            Input::LeaseLost(lease) => {
                if self.cx.leases.own() == Some(lease) {
                    if let Some(lease) = self.roles.drop_lease(&mut self.cx) {
                        self.cx.out.act(Action::Abandon(lease));
                    }
                } else if lease == self.cx.settings.keys.run_lease() {
                    self.cx.leases.run_is_gone();
                }
            }
            Input::Tick => {}
        }
        self.advance();
        self.cx.out.take()
    }

    /// When to send [`Input::Tick`], if nothing comes before.
    pub fn next_deadline(&self) -> Option<Time> {
        self.roles.next_deadline(&self.cx)
    }

    pub fn settings(&self) -> &Settings {
        &self.cx.settings
    }

    /// The identity of this node at present: the id of its lease.
    pub fn node(&self) -> Option<NodeId> {
        self.cx.leases.own()
    }

    /// What can be told without asking etcd.
    pub fn status(&self) -> Status {
        status::of(&self.cx, &self.roles)
    }

    /// Takes the next step, if none is under way.
    fn advance(&mut self) {
        self.answer_the_late();
        let now = self.cx.now;
        // A step that is settled without a call leaves room for the next one.
        while self.roles.is_idle(&self.cx)
            && self.cx.timers.get(Timer::Pause).is_none_or(|until| now >= until)
        {
            self.cx.timers.clear(Timer::Pause);
            let settled = self.step();
            if !settled {
                break;
            }
        }
    }

    /// Whatever is under way, whoever asked to close the run, or for its state, is answered in time.
    fn answer_the_late(&mut self) {
        let (slack, now) = (self.roles.slack(&self.cx), self.cx.now);
        let timers = &self.cx.timers;
        let late = |timer| timers.get(timer).is_some_and(|deadline| now >= deadline + slack);
        let (close, observe) = (late(Timer::Close), late(Timer::Observe));
        if close {
            let text = "The run could not be closed in time.".to_string();
            self.roles.closed(&mut self.cx, Err(RendezvousError::Timeout(text)));
        }
        if observe {
            let text = "etcd began no watch in time.".to_string();
            self.cx.observed(Err(RendezvousError::Timeout(text)));
        }
    }

    /// `true` when something was settled without a call to etcd, so that another step may follow.
    fn step(&mut self) -> bool {
        let head_is_known = self.cx.head.is_known();
        // What was read before the watch ended may be gone by now: then it is read again first.
        if head_is_known && let Some(error) = self.cx.view.unreadable().cloned() {
            self.roles.fail_all(&mut self.cx, &error.into());
            return false;
        }
        let observing = self.cx.timers.get(Timer::Observe);
        if head_is_known && observing.is_some() {
            self.cx.observed(Ok(()));
            return true;
        }
        if self.roles.closing.is_some() {
            return self.step_close();
        }
        if self.roles.barrier.is_on() {
            return self.step_barrier();
        }
        if let Some(deadline) = observing {
            self.cx.know_head(deadline, true);
            return false;
        }
        // Nobody asks for it now, but a member must learn of the next round whenever that may be.
        let deadline = self.cx.now + self.cx.settings.close_timeout;
        if self.cx.head.is_deaf() && !self.cx.know_head(deadline, true) {
            return false;
        }
        self.step_member();
        false
    }

    fn step_close(&mut self) -> bool {
        let (excluded, early) = (self.roles.excluded(&self.cx), !self.roles.barrier.is_on());
        let Some(closing) = &mut self.roles.closing else { return true };
        let effect = closing.step(&mut self.cx, self.roles.membership.as_ref(), excluded, early);
        let settled = effect.is_some();
        self.roles.apply(&mut self.cx, effect);
        settled
    }

    fn step_barrier(&mut self) -> bool {
        loop {
            let serves = self.roles.lead.is_some() || self.roles.ushering.is_some();
            let membership = self.roles.membership.as_ref();
            match self.roles.barrier.step(&mut self.cx, membership, serves) {
                Turn::Wait => return false,
                Turn::StepDown => self.roles.step_down(&mut self.cx),
                Turn::End(result) => {
                    self.roles.finish(&mut self.cx, result);
                    return true;
                }
                Turn::TimeIsUp(result) => {
                    self.roles.finish(&mut self.cx, result);
                    return false;
                }
                Turn::Lead(deadline) => {
                    if self.roles.lead.is_none() {
                        self.roles.begin_to_lead(&mut self.cx, true);
                    }
                    if let Some(lead) = &mut self.roles.lead {
                        lead.step(&mut self.cx, deadline);
                    }
                    return false;
                }
                Turn::Usher(told, deadline) => {
                    self.step_usher(told, deadline);
                    return false;
                }
            }
        }
    }

    fn step_usher(&mut self, told: u32, deadline: Time) {
        let Phase::Complete(round, complete) = self.cx.view.phase() else { return };
        let complete = complete.clone();
        let ushering =
            self.roles.ushering.get_or_insert_with(|| Ushering::new(&self.cx, round, &complete));
        let effects = ushering.step(&mut self.cx, &complete, told, deadline);
        self.roles.apply(&mut self.cx, effects);
    }

    fn step_member(&mut self) {
        let Some(membership) = &mut self.roles.membership else { return };
        if !membership.is_current(&self.cx) {
            // All members of a closed run leave, and may do so at any time. Those of an earlier round go with
            // its keys, all at once.
            return membership.stop_watching(&mut self.cx);
        }
        if !membership.step(&mut self.cx)
            && let Some(sweep) = &mut self.roles.sweep
            && !sweep.step(&mut self.cx)
        {
            self.roles.sweep = None;
        }
    }

    fn answer(&mut self, call: CallId, answer: Result<Answer, EtcdError>) {
        let Some(asked) = self.roles.take_call(&mut self.cx, call) else { return };
        match answer {
            Ok(Answer::Txn(reply)) => {
                self.cx.out.has_reached(reply.revision);
                if self.cx.out.is_of_another_history(&reply) {
                    return self.roles.begin_anew(&mut self.cx);
                }
                self.replied(asked, reply);
            }
            Ok(answer) => self.granted(asked, answer),
            Err(error) => self.failed(&asked, error),
        }
        self.roles.take_news(&mut self.cx);
    }

    /// What a reply says about the head is known before the role has it.
    fn replied(&mut self, asked: Asked, reply: TxnReply) {
        let refused = !reply.succeeded;
        match asked {
            Asked::Head => self.head_read(&reply),
            // The driver answers a call with what it asked for.
            Asked::Lease(_) => {}
            Asked::Barrier(purpose) => {
                if refused && self.roles.barrier.reads_head(&purpose) {
                    self.observe_head(&reply);
                }
                let unchecked = self.cx.settings.wrong(Variant::UncheckedMembership);
                if matches!(purpose, barrier::Purpose::ReadMembership(_)) && !unchecked {
                    self.observe_control(&reply);
                }
                let effects = self.roles.barrier.answered(&mut self.cx, purpose, &reply);
                self.roles.apply(&mut self.cx, effects);
            }
            Asked::Lead(purpose) => {
                if Lead::reads_head(purpose, &reply) {
                    self.observe_head(&reply);
                }
                self.roles.lead_answered(&mut self.cx, purpose, Answer::Txn(reply));
            }
            Asked::Usher(purpose) => {
                if refused {
                    self.observe_head(&reply);
                }
                if let Some(ushering) = &mut self.roles.ushering {
                    ushering.answered(&mut self.cx, purpose, &reply);
                }
            }
            Asked::Member(purpose) => {
                if purpose == membership::Purpose::Confirm {
                    self.observe_control(&reply);
                } else if refused {
                    self.observe_head(&reply);
                }
                let joining = self.roles.barrier.is_on();
                if let Some(membership) = &mut self.roles.membership {
                    membership.answered(&mut self.cx, purpose, &reply, joining);
                }
            }
            Asked::Sweep(purpose) => {
                self.roles.sweep.take_if(|sweep| !sweep.answered(purpose, &reply));
            }
            Asked::Close => {
                let before = self.cx.view.control.modified;
                if refused {
                    self.observe_head(&reply);
                }
                let is_news = self.cx.view.control.modified != before;
                let cx = &mut self.cx;
                let closing = self.roles.closing.as_mut();
                let effect = closing.and_then(|closing| closing.answered(cx, &reply, is_news));
                self.roles.apply(&mut self.cx, effect);
            }
        }
    }

    fn granted(&mut self, asked: Asked, answer: Answer) {
        match (asked, answer) {
            (Asked::Lease(purpose), Answer::Granted(lease, ttl)) => {
                let Cx { settings, leases, out, now, .. } = &mut self.cx;
                leases.granted(settings, out, *now, purpose, (lease, ttl));
            }
            (Asked::Lead(purpose), answer) => {
                self.roles.lead_answered(&mut self.cx, purpose, answer);
            }
            _ => {}
        }
    }

    fn head_read(&mut self, reply: &TxnReply) {
        self.observe_head(reply);
        self.roles.barrier.confirm();
        self.cx.head.was_read(reply.revision);
        if self.roles.barrier.is_on() && self.cx.view.control.value.is_some() {
            // The record is under the run's lease, so etcd has it.
            self.cx.hold_run_lease();
        }
    }

    /// Takes over what `head::reads` has read.
    fn observe_head(&mut self, reply: &TxnReply) {
        self.cx.view.head_read(&self.cx.settings, reply);
        self.roles.take_news(&mut self.cx);
        let Cx { settings, leases, out, name, .. } = &mut self.cx;
        if settings.labels.node_id.is_some() {
            let holder = reply.range(5).kvs;
            name.observe(settings, leases, out, holder.first(), reply.revision);
        }
    }

    fn observe_control(&mut self, reply: &TxnReply) {
        let control = reply.range(0).kvs;
        self.cx.view.observe_control(&self.cx.settings, control.first(), reply.revision);
        self.roles.take_news(&mut self.cx);
    }

    fn failed(&mut self, asked: &Asked, error: EtcdError) {
        let now = self.cx.now;
        let waiting = self.cx.timers.earliest(&[Timer::Join, Timer::Close, Timer::Observe]);
        let remedy = remedy(asked, &error, waiting.is_some_and(|deadline| now >= deadline));
        match remedy {
            Remedy::LoadAnew | Remedy::LoseLeases => {
                self.cx.timers.set(Timer::Pause, now + Duration::from_millis(100));
            }
            Remedy::AskAgain | Remedy::TellAndAskAgain => {
                self.cx.timers.set(Timer::Pause, now + Duration::from_secs(1));
            }
            _ => {}
        }
        match remedy {
            Remedy::TimeIsUp => {
                let error = self.roles.barrier.timeout(&self.cx, &TxnReply::default());
                self.roles.finish(&mut self.cx, Err(error));
            }
            Remedy::EndSweep => self.roles.sweep = None,
            Remedy::LoadAnew => self.roles.load_anew(&mut self.cx),
            Remedy::LoseLeases => {
                if let Some(lease) = self.roles.drop_lease(&mut self.cx) {
                    self.cx.out.act(Action::Revoke(lease));
                }
                self.cx.leases.run_is_gone();
            }
            Remedy::CountAnew => {
                self.roles.end_ushering(&mut self.cx);
                self.roles.load_anew(&mut self.cx);
            }
            Remedy::AskAgain => {}
            Remedy::Tell | Remedy::TellAndAskAgain => {
                self.roles.fail_all(&mut self.cx, &RendezvousError::Etcd(error));
            }
        }
    }

    fn watched(&mut self, watch: WatchId, message: WatchMessage) {
        let of_head = self.cx.head.which(watch);
        let lead = self.roles.lead.as_mut().filter(|lead| lead.watches(watch));
        let ushering = self.roles.ushering.as_mut().filter(|ushering| ushering.watches(watch));
        let membership = self.roles.membership.as_mut().filter(|own| own.watches(watch));
        let is_ours =
            of_head.is_some() || lead.is_some() || ushering.is_some() || membership.is_some();
        if is_ours && message == WatchMessage::HistoryLost {
            return self.roles.begin_anew(&mut self.cx);
        }
        if let Some(which) = of_head {
            self.head_watched(watch, which, message);
        } else if let Some(lead) = lead {
            lead.watched(&mut self.cx, watch, message);
        } else if let Some(ushering) = ushering {
            let effects = ushering.watched(&mut self.cx, watch, message);
            self.roles.apply(&mut self.cx, effects);
        } else if let Some(membership) = membership {
            membership.watched(&self.cx, message);
        }
    }

    fn head_watched(&mut self, watch: WatchId, which: Watched, message: WatchMessage) {
        match message {
            WatchMessage::Started(revision) => self.cx.head.started(watch, revision),
            WatchMessage::Events(events) => {
                for event in &events {
                    self.cx.out.has_reached(event.kv().mod_revision);
                    self.head_event(which, event);
                }
            }
            // Reread it: the present keys contain what was missed.
            WatchMessage::Compacted { .. } => self.cx.forget_head(),
            WatchMessage::Failed(error) => {
                self.cx.forget_head();
                self.failed(&Asked::Head, error);
            }
            // The machine restarts.
            WatchMessage::HistoryLost => {}
        }
    }

    fn head_event(&mut self, which: Watched, event: &Event) {
        let Cx { settings, leases, out, name, view, .. } = &mut self.cx;
        match which {
            Watched::Head => view.head_event(settings, event),
            Watched::Name => {
                let kv = event.kv();
                let there = matches!(event, Event::Put(_)).then_some(kv);
                name.observe(settings, leases, out, there, kv.mod_revision);
            }
        }
        self.roles.take_news(&mut self.cx);
    }
}

/// What the simulator looks at, and a driver has no use for.
#[cfg(test)]
impl Machine {
    /// Its earlier identities, as far as it remembers them.
    pub fn former_nodes(&self) -> impl Iterator<Item = NodeId> {
        self.cx.leases.past()
    }

    /// Wants to be in the next round.
    pub fn is_joining(&self) -> bool {
        self.roles.barrier.is_on()
    }

    /// The watch of the head, where all its existing keys have been read.
    pub fn known_head(&self) -> Option<WatchId> {
        self.cx.head.known_watch()
    }
}
