//! The barrier: the way of a node that wants to be in the next world. Each step follows from what is known.

mod answers;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::time::Duration;

use crate::etcd::kv::{Compare, Op, Txn, TxnReply};
use crate::rendezvous::api::{Outcome, RendezvousError, Time};
use crate::rendezvous::core::cx::Cx;
use crate::rendezvous::core::explain;
use crate::rendezvous::core::membership::Membership;
use crate::rendezvous::core::out::{AnyCall as _, Out, Slot};
use crate::rendezvous::core::places::likely_count;
use crate::rendezvous::core::timers::Timer;
use crate::rendezvous::core::txns;
use crate::rendezvous::core::view::Phase;
use crate::rendezvous::core::wish::{Seat, Wish};
use crate::rendezvous::keys::{NodeId, RoundId};
use crate::rendezvous::records::{Control, Final, Master, State};
use crate::rendezvous::reopen::{Opening, reopening};
use crate::rendezvous::variant::Variant;

/// How many names an error message of a timeout may hold.
const NAMES: i64 = 32;

/// What the call under way is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    Join(u64),
    /// With the record that opens the round.
    Open(Box<Control>),
    ReadMembership(RoundId),
    /// With the count that this node tells if it is the usher.
    Wait(u64, u32),
    Claim,
    /// With the count that this node tells then.
    ClaimUsher(u32),
    /// The time is up: which nodes were there?
    GiveUp,
}

pub struct Barrier {
    pub wish: Option<Wish>,
    pub seat: Seat,
    /// The round that this node has asked to join: a copy of the request whose answer was lost may have come
    /// in time.
    asked_for: Option<u64>,
    pub slot: Slot<Purpose>,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq)]
pub enum Turn {
    /// Nothing before something happens.
    Wait,
    /// This node coordinates the round, or is the usher, whose key tells so many at present.
    Lead(Time),
    Usher(u32, Time),
    /// It does neither any more.
    StepDown,
    /// The barrier has ended.
    End(Result<Outcome, RendezvousError>),
    /// The same because its time is up: there is nothing else to do now.
    TimeIsUp(Result<Outcome, RendezvousError>),
}

impl Default for Barrier {
    fn default() -> Self {
        Self { wish: None, seat: Seat::Outside, asked_for: None, slot: Slot::default() }
    }
}

impl Barrier {
    pub fn begin(&mut self, cx: &mut Cx, master: Master, why: Option<String>, newcomer: bool) {
        cx.timers.set(Timer::Join, cx.now + cx.settings.join_timeout);
        self.wish = Some(Wish {
            master,
            started: cx.now,
            why,
            confirmed: false,
            newcomer,
            seen_open: false,
            parked: false,
            extended: false,
        });
    }

    /// Ends the wish. Tells whether the node was parked when the run was closed: it waited for a place, or had
    /// come while the run was open.
    pub fn end(&mut self, cx: &mut Cx) -> bool {
        cx.timers.clear(Timer::Join);
        let wish = self.wish.take();
        let waited = matches!(self.seat, Seat::Waiting(_));
        waited || wish.is_some_and(|wish| wish.newcomer && wish.seen_open)
    }

    pub fn is_on(&self) -> bool {
        self.wish.is_some()
    }

    pub fn is_parked(&self) -> bool {
        self.wish.as_ref().is_some_and(|wish| wish.parked)
    }

    /// The head was read.
    pub fn confirm(&mut self) {
        if let Some(wish) = &mut self.wish {
            wish.confirmed = true;
        }
    }

    /// `serves`: this node leads or ushers.
    pub fn step(&mut self, cx: &mut Cx, membership: Option<&Membership>, serves: bool) -> Turn {
        let Some(deadline) = self.deadline(cx) else { return self.give_up(cx) };
        let lease = match self.ready(cx, deadline) {
            ControlFlow::Continue(lease) => lease,
            ControlFlow::Break(turn) => return turn,
        };
        let Some(control) = cx.view.control.value.clone() else {
            self.create(cx, lease, deadline);
            return Turn::Wait;
        };
        match &control.state {
            State::Open { .. } => self.in_open(cx, control.round, lease, serves, deadline),
            State::Final(complete) => {
                let id = complete.id(control.round);
                if self.seat == Seat::Waiting(id.round) {
                    return self.in_line(cx, &id, complete, lease, serves, deadline);
                }
                let is_member = membership.is_some_and(|own| own.is_live(cx, &id));
                if self.seat == Seat::Joined(id.round) {
                    self.read_membership(cx, id, lease, deadline);
                } else if is_member {
                    self.open_next(cx, &control, lease, deadline);
                } else if self.asked_for == Some(id.round) {
                    // It may be a member nevertheless, and the others count on it then.
                    self.read_membership(cx, id, lease, deadline);
                } else {
                    self.wait_outside(cx, id.round, complete, lease, deadline);
                }
                Turn::Wait
            }
            State::Closed(_) if self.may_reopen(cx) => self.reopen(cx, &control, lease, deadline),
            State::Closed(closed) => Turn::End(Err(RendezvousError::Closed(closed.clone()))),
        }
    }

    /// With a lease, and with the head known, it can act; else it does what is needed for that.
    fn ready(&mut self, cx: &mut Cx, deadline: Time) -> ControlFlow<Turn, NodeId> {
        // It begins while the lease is being granted.
        cx.watch_head();
        if cx.leases.has_past() && !cx.know_head(deadline, false) {
            // The node that it was before may have been denied, and another lease is easily had.
            return ControlFlow::Break(Turn::Wait);
        }
        if let Some(error) = cx.exclusion()
            && cx.head.is_known()
            && !cx.view.is_closed()
        {
            return ControlFlow::Break(self.turn_away(cx, error, deadline));
        }
        let Some(lease) = cx.leases.own() else {
            cx.leases.ask_for_own(&cx.settings, &mut cx.out, cx.now, deadline);
            return ControlFlow::Break(Turn::Wait);
        };
        if !cx.know_head(deadline, false) {
            return ControlFlow::Break(Turn::Wait);
        }
        if !cx.view.is_closed()
            && let Some(wish) = &mut self.wish
        {
            // From now on a close is for this node, too.
            wish.seen_open = true;
            if cx.view.control.value.is_some() {
                // The record is under the run's lease, which a node that failed to join has let go.
                cx.hold_run_lease();
            }
        }
        ControlFlow::Continue(lease)
    }

    /// Until when the barrier may go on; `None` when its time is up.
    fn deadline(&mut self, cx: &mut Cx) -> Option<Time> {
        let parked = self.has_no_place(cx);
        let last_call = self.is_last_call(cx);
        let wish = self.wish.as_mut()?;
        let begins_anew = wish.parked && !parked;
        wish.parked = parked;
        let deadline = cx.timers.get(Timer::Join)?;
        let deadline = if parked || begins_anew {
            // The time to get a place begins when there may be one, as for a node of torch's redundancy list
            // (torch dynamic_rendezvous.py, `_RendezvousJoinOp`).
            cx.now + cx.settings.join_timeout
        } else if cx.now < deadline {
            return Some(deadline);
        } else if !wish.extended && last_call {
            // Enough nodes are there, this one among them: if it left now it might take the minimum away.
            wish.extended = true;
            cx.now + cx.settings.last_call + cx.settings.ttl
        } else {
            return None;
        };
        cx.timers.set(Timer::Join, deadline);
        Some(deadline)
    }

    /// Waits for a place in a world that has none for it. The members are not notified then.
    fn has_no_place(&self, cx: &Cx) -> bool {
        let Seat::Waiting(round) = self.seat else { return false };
        if cx.settings.wrong(Variant::DeadlineWhileParked) {
            return false;
        }
        let Some(complete) = cx.view.complete(round) else { return false };
        cx.view.usher_of(&complete.id(round)).is_some_and(|(count, _)| count == 0)
    }

    fn is_last_call(&self, cx: &Cx) -> bool {
        let open = matches!((self.seat, cx.view.phase()), (Seat::Joined(round), Phase::Open(open)) if open.round == round);
        open && cx.view.coordinator.value.as_ref().is_some_and(|(told, _)| told.last_call)
    }

    /// An operator may have changed it just now, and this node not have been told yet: it looks first.
    fn turn_away(&mut self, cx: &mut Cx, error: RendezvousError, deadline: Time) -> Turn {
        if self.wish.as_ref().is_some_and(|wish| wish.confirmed) {
            return Turn::End(Err(error));
        }
        cx.head.read(&cx.settings, &mut cx.out, deadline);
        Turn::Wait
    }

    /// Only a node that comes to a closed run may open it again, none that was in it when it was closed.
    fn may_reopen(&self, cx: &Cx) -> bool {
        let comes = |wish: &Wish| wish.newcomer && !wish.seen_open;
        cx.settings.reopen_if_closed && self.wish.as_ref().is_some_and(comes)
    }

    /// Not while a member of the last world is there: this node waits for that, until its time is up.
    fn reopen(&mut self, cx: &mut Cx, closed: &Control, lease: NodeId, deadline: Time) -> Turn {
        if let Some(error) = cx.exclusion() {
            return Turn::TimeIsUp(Err(error));
        }
        let Some(wish) = &self.wish else { return Turn::Wait };
        if !cx.ensure_run_lease(deadline) {
            return Turn::Wait;
        }
        let pause = Duration::from_millis(500);
        let pause = pause + cx.out.jitter(pause);
        if cx.timers.get(Timer::Reopen).is_some_and(|at| cx.now < at) {
            return Turn::Wait;
        }
        cx.timers.set(Timer::Reopen, cx.now + pause);
        let by = cx.settings.node.to_string();
        let why = format!("reopened by {by}, which came when all had gone");
        let opening = Opening { by, at: cx.unix_now(), why };
        let modified = cx.view.control.modified;
        let again = reopening(&cx.settings.keys, closed, modified, opening, true);
        let mut writes = again.writes;
        writes.extend(txns::own_part(cx, (wish, self.seat), again.control.round, lease));
        let own = cx.name.guard(&cx.settings);
        let guards: Vec<Compare> = again.guards.into_iter().chain(own).collect();
        let txn = Txn::when(guards)
            .then(writes)
            .or_else(crate::rendezvous::core::head::reads(&cx.settings));
        cx.out.txn(&mut self.slot, Purpose::Open(Box::new(again.control)), txn, deadline);
        Turn::Wait
    }

    fn open(
        &mut self,
        cx: &mut Cx,
        control: Control,
        guards: Vec<Compare>,
        leftovers: Vec<Op>,
        lease: NodeId,
        deadline: Time,
    ) {
        let Some(wish) = &self.wish else { return };
        let txn = txns::open(cx, (wish, self.seat), &control, guards, leftovers, lease);
        cx.out.txn(&mut self.slot, Purpose::Open(Box::new(control)), txn, deadline);
    }

    fn create(&mut self, cx: &mut Cx, lease: NodeId, deadline: Time) {
        if cx.ensure_run_lease(deadline) {
            let control = txns::first_round(cx);
            let leftovers = txns::leftovers(&cx.settings);
            self.open(cx, control, Vec::new(), leftovers, lease, deadline);
        }
    }

    /// The round after this one, by one of its members.
    fn open_next(&mut self, cx: &mut Cx, complete: &Control, lease: NodeId, deadline: Time) {
        let Some(wish) = &self.wish else { return };
        let next = txns::next_round(cx, complete, explain::why_open(cx, wish, complete));
        self.open(cx, next, Vec::new(), Vec::new(), lease, deadline);
    }

    /// The same by a node that waits, when no member is left.
    pub fn open_for_the_lost(&mut self, cx: &mut Cx, deadline: Time) {
        let (Some(complete), Some(lease)) = (cx.view.control.value.clone(), cx.leases.own()) else {
            return;
        };
        let Some(id) = complete.current() else { return };
        let why = format!("no member of round {} was left", id.round);
        let control = txns::next_round(cx, &complete, why);
        let none_is_left = Compare::none_below(cx.settings.keys.members(&id));
        self.open(cx, control, vec![none_is_left], Vec::new(), lease, deadline);
    }

    /// Joins the round, or waits for it to complete, as its coordinator or as one of the others.
    fn in_open(
        &mut self,
        cx: &mut Cx,
        round: u64,
        lease: NodeId,
        serves: bool,
        deadline: Time,
    ) -> Turn {
        if self.seat != Seat::Joined(round) {
            let Some(wish) = &self.wish else { return Turn::Wait };
            let txn = txns::join(cx, wish, round, lease);
            self.asked_for = Some(round);
            cx.out.txn(&mut self.slot, Purpose::Join(round), txn, deadline);
            return Turn::Wait;
        }
        match cx.view.coordinator_node() {
            Some(node) if node == lease => return Turn::Lead(deadline),
            _ if serves => return Turn::StepDown,
            Some(_) => {}
            None => {
                if time_to_claim(cx) {
                    let txn = txns::claim(cx, round, lease);
                    cx.out.txn(&mut self.slot, Purpose::Claim, txn, deadline);
                }
            }
        }
        Turn::Wait
    }

    /// Until the next round opens, which the members do, or the usher where none of them is left.
    fn in_line(
        &mut self,
        cx: &mut Cx,
        id: &RoundId,
        complete: &Final,
        lease: NodeId,
        serves: bool,
        deadline: Time,
    ) -> Turn {
        match cx.view.usher_of(id) {
            Some((told, node)) if node == lease => return Turn::Usher(told, deadline),
            _ if serves => return Turn::StepDown,
            Some(_) => {}
            None => {
                if time_to_claim(cx) {
                    let count = likely_count(cx, complete);
                    let txn = txns::claim_usher(cx, id.round, complete, count, lease);
                    cx.out.txn(&mut self.slot, Purpose::ClaimUsher(count), txn, deadline);
                }
            }
        }
        Turn::Wait
    }

    fn read_membership(&mut self, cx: &mut Cx, id: RoundId, lease: NodeId, deadline: Time) {
        let txn = txns::read_membership(&cx.settings, &id, lease);
        cx.out.txn(&mut self.slot, Purpose::ReadMembership(id), txn, deadline);
    }

    /// The round is complete without this node: say so, which makes the members open the next one when
    /// they have room.
    fn wait_outside(
        &mut self,
        cx: &mut Cx,
        round: u64,
        complete: &Final,
        lease: NodeId,
        deadline: Time,
    ) {
        let count = likely_count(cx, complete);
        let txn = txns::wait(cx, round, complete, count, lease);
        cx.out.txn(&mut self.slot, Purpose::Wait(round, count), txn, deadline);
    }

    fn give_up(&mut self, cx: &mut Cx) -> Turn {
        if let Some(closed) = cx.view.closed() {
            // It waited for the members of the last world to go.
            return Turn::TimeIsUp(Err(RendezvousError::Closed(closed.clone())));
        }
        if cx.view.crowd > explain::FEW {
            return Turn::TimeIsUp(Err(self.timeout(cx, &TxnReply::default())));
        }
        let txn = txns::read_names(&cx.settings, cx.view.round(), NAMES);
        // Only for the message: it must not keep the caller much longer.
        let deadline = cx.now + Duration::from_secs(2);
        cx.out.txn(&mut self.slot, Purpose::GiveUp, txn, deadline);
        Turn::Wait
    }

    /// How the barrier ends when its time is up and these are there.
    pub fn timeout(&self, cx: &Cx, reply: &TxnReply) -> RendezvousError {
        let text = self.wish.as_ref().map(|wish| explain::timeout(cx, wish, reply));
        RendezvousError::Timeout(text.unwrap_or_default())
    }

    /// A claim to usher is about a round that is current no more.
    pub fn gives_up_claim(&mut self, out: &mut Out) {
        if let Some(Purpose::ClaimUsher(_)) = self.slot.purpose() {
            self.slot.give_up(out);
        }
    }

    /// Whether the refusal of this call reads the head, for this node as it sits now.
    pub fn reads_head(&self, purpose: &Purpose) -> bool {
        match purpose {
            Purpose::Join(_) | Purpose::Open(_) | Purpose::Wait(..) => true,
            Purpose::Claim => matches!(self.seat, Seat::Joined(_)),
            Purpose::ClaimUsher(_) => matches!(self.seat, Seat::Waiting(_)),
            Purpose::ReadMembership(_) | Purpose::GiveUp => false,
        }
    }
}

/// Everybody misses a coordinator or an usher at the same moment: not all claim its place at once. Thousands
/// need longer, so that the first claim is seen before many more are made.
fn time_to_claim(cx: &mut Cx) -> bool {
    let crowd = u32::try_from(cx.view.crowd).unwrap_or(u32::MAX).min(100_000);
    let most = Duration::from_millis(300) + Duration::from_micros(50) * crowd;
    let pause = cx.out.jitter(most);
    let due = cx.now >= cx.timers.start(Timer::Claim, cx.now + pause);
    if due {
        cx.timers.clear(Timer::Claim);
    }
    due
}
