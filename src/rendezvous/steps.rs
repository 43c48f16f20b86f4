//! Joining a round: the steps of a node that wants to be in the next world.

use std::time::Duration;

use super::lead::Lead;
use super::machine::{
    Action, Answer, Joining, Machine, Outcome, Place, RendezvousError, Step, Time, Wanted,
};
use super::records::{
    self, Control, Coordinator, Final, Join, Previous, RoundId, State, Stay, Waiting,
};
use super::reopen::{Opening, reopening};
use super::variants::Variant;
use crate::etcd::kv::{Compare, Op, OpReply, Ordering, Range, Target, Txn, TxnReply, range_of};

/// How many names an error message of a timeout may hold.
const NAMES: i64 = 32;
/// With more nodes than this it holds none.
const FEW: usize = 512;

/// A count as records have it.
pub(super) fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Machine {
    /// See [`Machine::step`] for what is returned.
    pub(super) fn step_join(&mut self, now: Time) -> bool {
        let Some(deadline) = self.joining.as_ref().map(|joining| joining.deadline) else {
            return true;
        };
        let Some(deadline) = self.deadline_now(now, deadline) else {
            self.give_up(now);
            return false;
        };
        // It begins while the lease is being granted.
        self.watch_head();
        if !self.formers.is_empty() && !self.know_head(deadline) {
            // The one that it was before may have been denied, and another one is easily made.
            return false;
        }
        if self.head_is_known()
            && !self.is_closed()
            && let Some(error) = self.exclusion()
        {
            return self.turn_away(error, deadline);
        }
        let Some(lease) = self.lease else {
            let lease = Wanted::New(self.random_lease());
            self.grant(Step::GrantNode(now), lease, self.settings.ttl, deadline);
            return false;
        };
        if !self.know_head(deadline) {
            return false;
        }
        if !self.is_closed()
            && let Some(error) = self.exclusion()
        {
            return self.turn_away(error, deadline);
        }
        let Some(control) = self.control.value.clone() else {
            self.sees_open();
            if self.ensure_run_lease(deadline) {
                self.create(lease, deadline);
            }
            return false;
        };
        let round = control.round;
        if !matches!(control.state, State::Closed(_)) {
            self.sees_open();
            // The record is under the run's lease, which a node that failed to join has let go.
            self.hold_run_lease(self.run_ttl());
        }
        match &control.state {
            State::Closed(closed) => {
                if self.may_reopen() {
                    self.reopen(now, &control, lease, deadline);
                    return false;
                }
                self.finish(Err(RendezvousError::Closed(closed.clone())));
                return true;
            }
            State::Open { .. } => {
                if self.place == Place::Joined(round) {
                    self.take_part(now, lease, deadline);
                } else {
                    self.join_round(round, lease, deadline);
                }
            }
            State::Final(complete) => match self.place {
                Place::Joined(joined) if joined == round => {
                    self.read_membership(&complete.id(round), lease, deadline);
                }
                Place::Waiting(waiting) if waiting == round => {
                    self.wait_in_line(now, round, complete, lease, deadline);
                }
                _ if self.was_member(&complete.id(round)) => self.open(&control, lease, deadline),
                // It may be a member all the same, and the others count on it then.
                _ if self.asked_for == Some(round) => {
                    self.read_membership(&complete.id(round), lease, deadline);
                }
                _ => self.wait_outside(round, complete, lease, deadline),
            },
        }
        false
    }

    /// Until when the barrier may go on; `None` when its time is up.
    fn deadline_now(&mut self, now: Time, deadline: Time) -> Option<Time> {
        let parked = self.is_parked();
        let joining = self.joining.as_mut()?;
        let begins_anew = joining.parked && !parked;
        joining.parked = parked;
        if parked || begins_anew {
            // The time to get a place begins when there may be one, as for a node of torch's redundancy list
            // (torch dynamic_rendezvous.py, `_RendezvousJoinOp`).
            joining.deadline = now + self.settings.join_timeout;
            return Some(joining.deadline);
        }
        if now < deadline {
            return Some(deadline);
        }
        if joining.extended || !self.is_last_call() {
            return None;
        }
        // Enough nodes are there, this one among them: who leaves now may take the minimum away.
        let more = self.settings.last_call + self.settings.ttl;
        let joining = self.joining.as_mut()?;
        joining.extended = true;
        joining.deadline = now + more;
        Some(joining.deadline)
    }

    /// Waits for a place in a world that has none for it. The members are told of nobody then.
    fn is_parked(&self) -> bool {
        if self.settings.wrong(Variant::DeadlineWhileParked) {
            return false;
        }
        let (Place::Waiting(round), Some(control)) = (self.place, &self.control.value) else {
            return false;
        };
        let current = control.current().filter(|current| current.round == round);
        let told = self.usher.value.as_ref().filter(|(told, _)| Some(&told.id) == current.as_ref());
        told.is_some_and(|(told, _)| told.count == 0)
    }

    fn is_last_call(&self) -> bool {
        let Place::Joined(round) = self.place else { return false };
        let open = self.control.value.as_ref().filter(|control| control.round == round);
        let open = open.is_some_and(|control| matches!(control.state, State::Open { .. }));
        open && self.coordinator.value.as_ref().is_some_and(|(told, _)| told.last_call)
    }

    /// From now on a close is for this node, too.
    fn sees_open(&mut self) {
        if let Some(joining) = &mut self.joining {
            joining.seen_open = true;
        }
    }

    /// Only who comes to a closed run may open it again, none who was in it when it was closed.
    fn may_reopen(&self) -> bool {
        let comes = |joining: &Joining| joining.newcomer && !joining.seen_open;
        self.settings.reopen_if_closed && self.joining.as_ref().is_some_and(comes)
    }

    /// Not while a member of the last world is there: this node waits for that, until its time is up.
    fn reopen(&mut self, now: Time, closed: &Control, lease: i64, deadline: Time) {
        if let Some(error) = self.exclusion() {
            return self.finish(Err(error));
        }
        if !self.ensure_run_lease(deadline) {
            return;
        }
        let pause = self.jitter(Duration::from_millis(500));
        if now < self.look_at.unwrap_or(now) {
            return;
        }
        self.look_at = Some(now + Duration::from_millis(500) + pause);
        let why = format!("reopened by {}, which came when all had gone", self.settings.node);
        let opening = Opening { by: self.settings.node.to_string(), at: self.unix_now(), why };
        let again = reopening(&self.settings.keys, closed, self.control.modified, opening, true);
        let mut writes = again.writes;
        writes.extend(self.put_own_part(again.control.round, lease));
        let guards: Vec<Compare> =
            again.guards.into_iter().chain(self.identity_unchanged()).collect();
        let txn = Txn::when(guards).then(writes).or_else(self.get_head());
        self.txn(Step::Open(Box::new(again.control)), txn, deadline);
    }

    pub(super) fn answered(&mut self, now: Time, step: Step, answer: Answer) {
        match (step, answer) {
            (Step::GrantNode(asked), Answer::Granted(lease, ttl)) => {
                self.lease = Some(lease);
                // The TTL runs from when etcd granted it, and the answer may have taken long. Thousands that came
                // at once need not renew at once.
                let asked =
                    if self.settings.wrong(Variant::RenewsFromAnswer) { now } else { asked };
                let due = asked.saturating_add(ttl / 3).saturating_sub(self.jitter(ttl / 12));
                self.act(Action::KeepAlive(lease, ttl, due.saturating_sub(now)));
            }
            (Step::GrantRun, Answer::Granted(_, ttl)) => {
                self.hold_run_lease(ttl);
            }
            (Step::ReadHead, Answer::Txn(reply)) => {
                self.head_was_read(&reply);
                if self.control.value.is_some() && self.joining.is_some() {
                    // The record is under the run's lease, so etcd has it.
                    self.hold_run_lease(self.run_ttl());
                }
            }
            (Step::Open(control), Answer::Txn(reply)) => self.opened(*control, &reply),
            (Step::JoinRound(round), Answer::Txn(reply)) => self.joined_round(round, &reply),
            (Step::Claim, Answer::Txn(reply)) => self.claimed(&reply),
            (Step::ReadMembership(id), Answer::Txn(reply)) => {
                self.read_membership_answered(&id, &reply);
            }
            (Step::Wait(round, count), Answer::Txn(reply)) => {
                self.waits_outside(round, count, &reply);
            }
            (Step::GiveUp, Answer::Txn(reply)) => self.give_up_with(now, &reply),
            (Step::Close, Answer::Txn(reply)) => self.close_answered(&reply),
            (Step::Confirm(id), Answer::Txn(reply)) => self.confirmed(&id, &reply),
            (Step::Announce(loss), Answer::Txn(reply)) => self.announced(loss, &reply),
            (Step::Lead(step), answer) => self.lead_answered(now, step, answer),
            (Step::Usher(step), Answer::Txn(reply)) => self.usher_answered(step, &reply),
            (Step::Sweep(step), Answer::Txn(reply)) => self.swept(step, &reply),
            // The driver answers a call with what it asked for.
            _ => {}
        }
    }

    /// Denied, or replaced by another agent.
    pub(super) fn exclusion(&self) -> Option<RendezvousError> {
        self.denial().map(RendezvousError::Denied).or_else(|| self.replaced())
    }

    /// An operator may have changed it just now, and this node not have been told yet: it looks first.
    fn turn_away(&mut self, error: RendezvousError, deadline: Time) -> bool {
        let confirmed = self.joining.as_ref().is_some_and(|joining| joining.confirmed);
        if confirmed {
            self.finish(Err(error));
        } else {
            let txn = Txn::when([]).then(self.get_head());
            self.txn(Step::ReadHead, txn, deadline);
        }
        confirmed
    }

    /// What `observe_head` takes over.
    pub(super) fn get_head(&self) -> Vec<Op> {
        let keys = &self.settings.keys;
        let mut reads = vec![
            Op::get(keys.control()),
            Op::get(keys.coordinator()),
            Op::get(keys.loss()),
            Op::Get(Range::prefix(keys.denials())),
            Op::get(keys.usher()),
        ];
        reads.extend(self.get_identity());
        reads
    }

    /// The guard of every write: the control record is the one this node acts upon.
    pub(super) fn control_unchanged(&self) -> Compare {
        Compare::mod_revision(self.settings.keys.control(), self.control.modified)
    }

    /// The guards of what this node puts for itself.
    pub(super) fn unchanged(&self) -> Vec<Compare> {
        let control = [self.control_unchanged()];
        control.into_iter().chain(self.identity_unchanged()).collect()
    }

    pub(super) fn put_control(&self, control: &Control) -> Op {
        let keys = &self.settings.keys;
        Op::put(keys.control(), records::encode(control, control.version), keys.run_lease())
    }

    pub(super) fn put_coordinator(&self, joined: usize, last_call: bool, lease: i64) -> Op {
        let record = self.coordinator_record(joined, last_call, lease);
        Op::put(self.settings.keys.coordinator(), self.encode(&record), lease)
    }

    /// What this node, which holds that lease, says as the coordinator.
    pub(super) fn coordinator_record(
        &self,
        joined: usize,
        last_call: bool,
        lease: i64,
    ) -> Coordinator {
        let known = self.coordinator.value.as_ref().filter(|(_, holder)| *holder == lease);
        Coordinator {
            node: self.settings.node.clone(),
            joined: number(joined),
            last_call,
            min: number(self.settings.min),
            max: number(self.settings.max),
            at: known.map_or_else(|| self.unix_now(), |(told, _)| told.at),
        }
    }

    fn put_join(&self, round: u64, lease: i64) -> Option<Op> {
        let master = self.joining.as_ref()?.master.clone();
        let labels = self.settings.labels.clone();
        let record = Join::new(self.settings.node.clone(), master, self.stay(), labels)
            .with_order(self.settings.order);
        Some(Op::put(self.settings.keys.join(round, lease), self.encode(&record), lease))
    }

    /// From now until its time is up.
    fn stay(&self) -> Stay {
        let until = self.joining.as_ref().map_or(0, |joining| self.unix(joining.deadline));
        Stay { at: self.unix_now(), until }
    }

    /// `false` while the run's lease is being granted.
    pub(super) fn ensure_run_lease(&mut self, deadline: Time) -> bool {
        if self.run_lease.is_none() {
            let lease = Wanted::Shared(self.settings.keys.run_lease());
            self.grant(Step::GrantRun, lease, self.settings.run_ttl, deadline);
        }
        self.run_lease.is_some()
    }

    fn hold_run_lease(&mut self, ttl: Duration) {
        if self.run_lease.is_none() {
            self.run_lease = Some(ttl);
            // Who coordinates renews it at once, so the others need not, nor all at the same time.
            let first = self.jitter(ttl / 3);
            self.act(Action::KeepAlive(self.settings.keys.run_lease(), ttl, first));
        }
    }

    /// Another run of this name may be under a lease of another TTL. Without a record it is the lease of the
    /// last one, which is there as long as somebody renews it.
    pub(super) fn renew_run_lease_as(&mut self, control: Option<&Control>) {
        let ttl = control.map(|control| Duration::from_secs(control.run_ttl));
        if let (Some(held), Some(ttl)) = (self.run_lease, ttl)
            && held != ttl
            && !ttl.is_zero()
        {
            self.run_lease = None;
            self.hold_run_lease(ttl);
        }
    }

    fn create(&mut self, lease: i64, deadline: Time) {
        let (by, at) = (self.settings.node.to_string(), self.unix_now());
        let state = State::Open { previous: None, by, at, why: "the first round".into() };
        let control = Control::first(self.settings.version, self.run_ttl_s(), 1, state);
        // A record that an operator removed leaves its round's data behind, which would be taken for that of
        // the new round of this number.
        let keys = &self.settings.keys;
        let leftovers = vec![
            Op::delete_prefix(keys.round_data(1)),
            Op::delete_prefix(keys.waitings(1)),
            Op::delete(keys.last_call(1)),
            Op::delete_prefix(keys.histories()),
        ];
        self.open_round(control, Vec::new(), leftovers, lease, deadline);
    }

    /// Opens the round after a completed one, as one of its members.
    fn open(&mut self, complete: &Control, lease: i64, deadline: Time) {
        let why = self.why_open(complete);
        let control = self.next_round(complete, why);
        self.open_round(control, Vec::new(), Vec::new(), lease, deadline);
    }

    /// The same as the first of those who wait, when no member is left.
    pub(super) fn open_for_the_lost(&mut self, complete: &Control, lease: i64, deadline: Time) {
        let Some(id) = complete.current() else { return };
        let why = format!("no member of round {} was left", id.round);
        let control = self.next_round(complete, why);
        let members = self.settings.keys.members(&id);
        let none_is_left = Compare::none_below(members);
        self.open_round(control, vec![none_is_left], Vec::new(), lease, deadline);
    }

    fn next_round(&self, complete: &Control, why: String) -> Control {
        let (by, at) = (self.settings.node.to_string(), self.unix_now());
        let previous: Option<Previous> = complete.last();
        complete.then(complete.round + 1, State::Open { previous, by, at, why })
    }

    /// What this node, a member, knows of the reason to open the round after this one.
    fn why_open(&self, complete: &Control) -> String {
        let known = self.joining.as_ref().and_then(|joining| joining.why.clone());
        let own = || format!("{} asked for a new round", self.settings.node);
        let lost = complete.current().and_then(|id| self.why_lost(&id));
        lost.or(known).unwrap_or_else(own)
    }

    /// This node is the first participant of the round it opens, and its coordinator.
    fn open_round(
        &mut self,
        control: Control,
        guards: Vec<Compare>,
        leftovers: Vec<Op>,
        lease: i64,
        deadline: Time,
    ) {
        let keys = &self.settings.keys;
        let mut writes =
            vec![self.put_control(&control), Op::delete(keys.loss()), Op::delete(keys.usher())];
        writes.extend(leftovers);
        writes.extend(self.put_own_part(control.round, lease));
        let guards: Vec<Compare> = self.unchanged().into_iter().chain(guards).collect();
        let txn = Txn::when(guards).then(writes).or_else(self.get_head());
        self.txn(Step::Open(Box::new(control)), txn, deadline);
    }

    /// What the node that opens a round puts of its own.
    fn put_own_part(&mut self, round: u64, lease: i64) -> Vec<Op> {
        let mut writes = vec![self.put_coordinator(1, false, lease)];
        writes.extend(self.put_join(round, lease));
        if let Place::Waiting(waited) = self.place {
            writes.push(Op::delete(self.settings.keys.waiting(waited, lease)));
        }
        writes.extend(self.take_identity(lease));
        writes
    }

    fn opened(&mut self, control: Control, reply: &TxnReply) {
        if !reply.succeeded {
            self.observe_head(reply);
            if let Place::Waiting(_) = self.place {
                // A member may be left all the same: count them anew.
                self.usher_anew();
            }
            return;
        }
        self.identity_written(reply.revision);
        let round = control.round;
        self.control_written(control, reply.revision);
        if reply.revision < self.incarnation() {
            return;
        }
        self.set_place(Place::Joined(round));
        self.coordinates(round, reply.revision, false);
    }

    fn join_round(&mut self, round: u64, lease: i64, deadline: Time) {
        let coordinator = self.settings.keys.coordinator();
        let claim = Txn::when([Compare::absent(coordinator.clone())])
            .then([self.put_coordinator(1, false, lease)])
            .or_else([Op::get(coordinator)]);
        let mut writes: Vec<Op> = self.put_join(round, lease).into_iter().collect();
        writes.push(Op::Txn(claim));
        writes.extend(self.take_identity(lease));
        let txn = Txn::when(self.unchanged()).then(writes).or_else(self.get_head());
        self.asked_for = Some(round);
        self.txn(Step::JoinRound(round), txn, deadline);
    }

    fn joined_round(&mut self, round: u64, reply: &TxnReply) {
        if !reply.succeeded {
            return self.observe_head(reply);
        }
        self.identity_written(reply.revision);
        if reply.revision < self.incarnation() {
            // The answer took long: an operator has deleted the run meanwhile, and it began anew.
            return;
        }
        self.set_place(Place::Joined(round));
        match reply.replies.get(1) {
            Some(OpReply::Txn { succeeded: false, replies }) => {
                let range = range_of(replies, 0);
                self.observe_coordinator(range.kvs.first(), reply.revision);
            }
            _ => self.coordinates(round, reply.revision, true),
        }
    }

    /// Waits for the round to complete, as its coordinator or as one of the others.
    fn take_part(&mut self, now: Time, lease: i64, deadline: Time) {
        match self.coordinator.value.as_ref().map(|(_, holder)| *holder) {
            Some(holder) if holder == lease => {
                if self.lead.is_none() {
                    self.begin_to_lead(true);
                }
                self.step_lead(now, deadline);
            }
            Some(_) => self.stop_leading(),
            None => {
                self.stop_leading();
                // Everybody misses the coordinator at the same moment: not all claim its place at once.
                let pause = self.pause_of_claim();
                if now >= *self.look_at.get_or_insert(now + pause) {
                    self.look_at = None;
                    self.claim(lease, deadline);
                }
            }
        }
    }

    /// How long a node waits before it claims a key that is missing: thousands need longer, so that the
    /// first claim is seen before many more are made.
    pub(super) fn pause_of_claim(&mut self) -> Duration {
        let crowd = u32::try_from(self.crowd).unwrap_or(u32::MAX).min(100_000);
        self.jitter(Duration::from_millis(300) + Duration::from_micros(50) * crowd)
    }

    fn claim(&mut self, lease: i64, deadline: Time) {
        let Place::Joined(round) = self.place else { return };
        let keys = &self.settings.keys;
        let still_joined =
            Compare::new(keys.join(round, lease), Ordering::Equal, Target::Lease(lease));
        // The key is absent, or what is there is no coordinator's: that would stay for ever.
        let vacant = Compare::mod_revision(keys.coordinator(), self.coordinator.modified);
        let guards = [self.control_unchanged(), vacant, still_joined];
        let mut reads = self.get_head();
        reads.push(Op::get(keys.join(round, lease)));
        let txn = Txn::when(guards).then([self.put_coordinator(1, false, lease)]).or_else(reads);
        self.txn(Step::Claim, txn, deadline);
    }

    fn claimed(&mut self, reply: &TxnReply) {
        let Place::Joined(round) = self.place else { return };
        if reply.succeeded {
            return self.coordinates(round, reply.revision, true);
        }
        self.observe_head(reply);
        // A round that is complete by now is another matter: this node may be a member of it.
        let joined = reply.range(self.get_head().len()).kvs.first().map(|kv| kv.lease);
        if self.complete_round(round).is_none() && (joined.is_none() || joined != self.lease) {
            // Our join key is gone or another program's (an operator removed or wrote it).
            self.set_place(Place::Outside);
        }
    }

    /// This node wrote the coordinator's key of this round at `revision`.
    fn coordinates(&mut self, round: u64, revision: i64, took_over: bool) {
        if let (Place::Joined(joined), Some(lease)) = (self.place, self.lease)
            && joined == round
        {
            self.coordinator_written(1, false, lease, revision);
            if self.coordinator.value.as_ref().is_some_and(|(_, holder)| *holder == lease) {
                self.begin_to_lead(took_over);
            }
        }
    }

    fn begin_to_lead(&mut self, took_over: bool) {
        if let Some(Control { state: State::Open { previous, .. }, .. }) = &self.control.value {
            self.lead =
                Some(Lead::new(previous.clone(), self.settings.order, self.now(), took_over));
            if self.run_lease.is_some() {
                // Nobody may have been there for long. Without this, nodes that live for less than a third
                // of its TTL, one after another, would let it run out in the middle of a world.
                let (run_lease, ttl) = (self.settings.keys.run_lease(), self.run_ttl());
                self.act(Action::KeepAlive(run_lease, ttl, Duration::ZERO));
            }
        }
    }

    fn read_membership(&mut self, id: &RoundId, lease: i64, deadline: Time) {
        let keys = &self.settings.keys;
        let reads = [Op::get(keys.control()), Op::get(keys.member(id, lease))];
        self.txn(Step::ReadMembership(id.clone()), Txn::when([]).then(reads), deadline);
    }

    fn read_membership_answered(&mut self, id: &RoundId, reply: &TxnReply) {
        if !self.settings.wrong(Variant::UncheckedMembership) {
            self.observe_control(reply.range(0).kvs.first(), reply.revision);
        }
        let Some(Control { round, state: State::Final(complete), .. }) = self.control.value.clone()
        else {
            return;
        };
        if !self.settings.is_same(&complete.id(round), id) {
            // Another round is current by now, or one of this number in another run of this name.
            return;
        }
        let member = reply.range(1).kvs.into_iter().next().map(|kv| {
            let key = String::from_utf8_lossy(&kv.key);
            self.reader().member(&key, &kv.value, complete.world)
        });
        let record = match member.transpose() {
            Ok(record) => record,
            Err(error) => return self.finish(Err(error.into())),
        };
        let (Some(record), Some(lease)) = (record, self.lease) else {
            // Not admitted: more nodes than places.
            self.asked_for = None;
            return self.set_place(Place::Outside);
        };
        let outcome = Outcome {
            round,
            attempt: complete.attempt.clone(),
            rank: record.rank,
            world: complete.world,
            master: records::Master {
                addr: complete.master_addr.clone(),
                port: complete.master_port,
            },
        };
        self.become_member(&outcome, &complete, lease, record.next);
        self.finish(Ok(outcome));
    }

    /// The round is complete without this node: say so, which makes the members open the next one when
    /// they have room.
    fn wait_outside(&mut self, round: u64, complete: &Final, lease: i64, deadline: Time) {
        let keys = self.settings.keys.clone();
        let record = Waiting {
            node: self.settings.node.clone(),
            stay: self.stay(),
            labels: self.settings.labels.clone(),
        };
        let record = self.encode(&record);
        // Where nobody ushers, this node does.
        let (usher, count) = (keys.usher(), self.likely_count(complete));
        let claim = Txn::when([Compare::absent(usher.clone())])
            .then([self.put_usher(round, complete, count, lease)])
            .or_else([Op::get(usher)]);
        let mut writes = vec![
            Op::Txn(claim),
            Op::put(keys.waiting(round, lease), record, lease),
            Op::delete(keys.join(round, lease)),
        ];
        writes.extend(self.take_identity(lease));
        let txn = Txn::when(self.unchanged()).then(writes).or_else(self.get_head());
        self.txn(Step::Wait(round, count), txn, deadline);
    }

    fn waits_outside(&mut self, round: u64, count: u32, reply: &TxnReply) {
        if !reply.succeeded {
            return self.observe_head(reply);
        }
        self.identity_written(reply.revision);
        if reply.revision < self.incarnation() {
            return;
        }
        self.set_place(Place::Waiting(round));
        match reply.replies.first() {
            Some(OpReply::Txn { succeeded: false, replies }) => {
                let range = range_of(replies, 0);
                self.observe_usher(range.kvs.first(), reply.revision);
            }
            _ => self.usher_written(round, count, reply.revision),
        }
    }

    fn give_up(&mut self, now: Time) {
        if let Some(closed) = self.closed() {
            // It waited for the members of the last world to go.
            return self.finish(Err(RendezvousError::Closed(closed.clone())));
        }
        if self.crowd > FEW {
            // To read even one of their keys etcd would look at each of them, and many give up at once.
            return self.give_up_with(now, &TxnReply::default());
        }
        let round = self.control.value.as_ref().map_or(0, |control| control.round);
        let mut joins = Range::prefix(self.settings.keys.joins(round));
        joins.limit = NAMES;
        let txn = Txn::when([]).then([Op::Get(joins)]);
        // Only for the message: it must not keep the caller much longer.
        self.txn(Step::GiveUp, txn, now + Duration::from_secs(2));
    }

    pub(super) fn give_up_with(&mut self, now: Time, reply: &TxnReply) {
        let text = self.timeout_text(now, reply);
        self.finish(Err(RendezvousError::Timeout(text)));
    }

    fn timeout_text(&self, now: Time, reply: &TxnReply) -> String {
        let waited = self
            .joining
            .as_ref()
            .map_or(0.0, |joining| now.saturating_sub(joining.started).as_secs_f64());
        let (min, max) = (self.settings.min, self.settings.max);
        let Some(control) = &self.control.value else {
            return format!("The rendezvous did not begin within {waited:.0} s.");
        };
        let round = control.round;
        if let State::Final(complete) = &control.state {
            return format!(
                "Round {round} is complete with {} of at most {max} nodes, and no place came free within \
                 {waited:.0} s.",
                complete.world
            );
        }
        let joined = reply.range(0);
        let names: Vec<String> = joined
            .kvs
            .iter()
            .filter_map(|kv| self.reader().join(kv))
            .map(|(_, join)| join.node.to_string())
            .collect();
        let mut foreign = joined.kvs.iter().filter(|kv| self.reader().join(kv).is_none());
        let foreign_key = foreign.next().map(|kv| String::from_utf8_lossy(&kv.key));
        let others = foreign.count();
        let others = if others > 0 { format!(" and {others} more") } else { String::new() };
        let foreign = foreign_key.map_or_else(String::new, |key| {
            format!(
                " Not written by a node of this version: the etcd key '{}'{others}.",
                records::plain(&key)
            )
        });
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        if joined.kvs.is_empty() && self.crowd > FEW {
            return format!(
                "Round {round} was not complete within {waited:.0} s: {} of at least {min} nodes joined, as its \
                 coordinator last told.",
                self.crowd
            );
        }
        let nodes = joined.count.saturating_sub(count(joined.kvs.len() - names.len()));
        let more = nodes.saturating_sub(count(names.len()));
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let missing = count(min).saturating_sub(nodes).max(0);
        let coordinator = match &self.coordinator.value {
            Some((told, holder)) if missing == 0 && self.lease != Some(*holder) => {
                format!(" Its coordinator, {}, did not complete it.", told.node)
            }
            _ => String::new(),
        };
        format!(
            "Round {round} was not complete within {waited:.0} s: {nodes} of at least {min} nodes joined, \
             {missing} missing. Joined: {}{more}.{coordinator}{foreign}",
            names.join(", "),
        )
    }

    pub(super) fn set_place(&mut self, place: Place) {
        if self.place != place {
            self.place = place;
            self.look_at = None;
            self.stop_ushering();
            self.stop_leading();
        }
    }

    pub(super) fn finish(&mut self, result: Result<Outcome, RendezvousError>) {
        let joining = self.joining.take();
        if let Err(RendezvousError::Closed(_)) = &result {
            let waited = matches!(self.place, Place::Waiting(_));
            let comes = |joining: Joining| joining.newcomer && joining.seen_open;
            self.parked = waited || joining.is_some_and(comes);
        }
        if !self.settings.wrong(Variant::KeepsCallOfFinished) {
            // Its answer would be taken for one to the next wish to join.
            self.drop_call();
        }
        self.set_place(Place::Outside);
        if let Err(error) = &result {
            self.exclude(error);
            self.give_back_lease();
        }
        self.act(Action::Joined(result));
    }

    pub(super) fn leave(&mut self) {
        // Whatever is under way now is for a node that is gone.
        self.forget_call();
        if self.joining.is_some() {
            self.finish(Err(RendezvousError::Left));
        } else {
            self.give_back_lease();
        }
    }

    fn forget_call(&mut self) {
        if self.settings.wrong(Variant::CallsGoOn) {
            self.call = None;
        } else {
            self.drop_call();
        }
    }

    fn give_back_lease(&mut self) {
        self.stop_watching_members();
        self.membership = None;
        if let Some(lease) = self.lease.take() {
            self.identity_gone(lease);
            self.act(Action::Revoke(lease));
        }
        // Who is not there does not keep the run's keys there.
        self.abandon_run_lease();
    }

    pub(super) fn abandon_run_lease(&mut self) {
        if self.run_lease.take().is_some() {
            self.act(Action::Abandon(self.settings.keys.run_lease()));
        }
    }

    /// The lease is gone, and with it every key of this node: it starts anew as another node. Gives back
    /// the lease it had.
    pub(super) fn drop_lease(&mut self) -> Option<i64> {
        // An answer that is on its way is about the node that was: a join that it reports is undone.
        self.forget_call();
        self.set_place(Place::Outside);
        self.expel();
        let lease = self.lease.take();
        if let Some(lease) = lease {
            self.identity_gone(lease);
        }
        lease
    }
}
