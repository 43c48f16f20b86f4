//! Joining a round: the steps of a node that wants to be in the next world.

use std::time::Duration;

use super::lead::Lead;
use super::machine::{Action, Answer, Machine, Outcome, Place, RendezvousError, Step, Time};
use super::records::{self, Control, Coordinator, Final, Join, Previous, State, Stay, Waiting};
use super::variants::{Variant, wrong};
use crate::etcd::kv::{Compare, Op, OpReply, Ordering, Range, Target, Txn, TxnReply, range_of};

/// How many names an error message of a timeout may hold.
const NAMES: i64 = 32;

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
        if now >= deadline {
            self.give_up(now);
            return false;
        }
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
            let lease = self.random_lease();
            self.grant(Step::GrantNode(lease), lease, self.settings.ttl, deadline);
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
            if self.ensure_run_lease(deadline) {
                self.create(lease, deadline);
            }
            return false;
        };
        let round = control.round;
        if !matches!(control.state, State::Closed(_)) {
            // The record is under the run's lease, which a node that failed to join has let go.
            self.hold_run_lease();
        }
        match control.state {
            State::Closed(closed) => {
                self.finish(Err(RendezvousError::Closed(closed)));
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
                    self.read_membership(round, &complete, lease, deadline);
                }
                Place::Waiting(waiting) if waiting == round => {
                    self.wait_for_next(now, round, &complete, deadline);
                }
                _ if self.was_member(round) => self.open(round, complete, lease, deadline),
                _ => self.wait_outside(round, &complete, lease, deadline),
            },
        }
        false
    }

    pub(super) fn answered(&mut self, now: Time, step: Step, answer: Answer) {
        match (step, answer) {
            (Step::GrantNode(lease), Answer::Granted) => {
                if self.joining.is_none() {
                    // The wish to join ended while the lease was being granted.
                    self.act(Action::Revoke(lease));
                } else {
                    self.lease = Some(lease);
                    let ttl = self.settings.ttl;
                    self.act(Action::KeepAlive(lease, ttl, ttl / 3));
                }
            }
            (Step::GrantRun, Answer::Granted) => self.hold_run_lease(),
            (Step::ReadHead, Answer::Txn(reply)) => {
                self.head_was_read(&reply);
                if self.control.value.is_some() {
                    // The record is under the run's lease, so etcd has it.
                    self.hold_run_lease();
                }
            }
            (Step::Open(control), Answer::Txn(reply)) => self.opened(*control, &reply),
            (Step::JoinRound(round), Answer::Txn(reply)) => self.joined_round(round, &reply),
            (Step::Claim, Answer::Txn(reply)) => self.claimed(&reply),
            (Step::ReadMembership(round), Answer::Txn(reply)) => {
                self.read_membership_answered(round, &reply);
            }
            (Step::Wait(round), Answer::Txn(reply)) => self.waits_outside(now, round, &reply),
            (Step::Recount(round), Answer::Txn(reply)) => self.recounted(round, &reply),
            (Step::GiveUp, Answer::Txn(reply)) => self.give_up_with(now, &reply),
            (Step::Close, Answer::Txn(reply)) => {
                if reply.succeeded {
                    self.closed_written(reply.revision);
                } else {
                    self.observe_head(&reply);
                }
            }
            (Step::Confirm(round), Answer::Txn(reply)) => self.confirmed(round, &reply),
            (Step::Announce(loss), Answer::Txn(reply)) => self.announced(loss, &reply),
            (Step::Lead(step), answer) => self.lead_answered(now, step, answer),
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
        ];
        reads.extend(self.get_identity());
        reads
    }

    /// The guard of every write: the control record is the one this node acts upon.
    pub(super) fn control_unchanged(&self) -> Compare {
        Compare::mod_revision(self.settings.keys.control(), self.control.modified)
    }

    /// The guards of what this node puts for itself.
    fn unchanged(&self) -> Vec<Compare> {
        let control = [self.control_unchanged()];
        control.into_iter().chain(self.identity_unchanged()).collect()
    }

    pub(super) fn put_control(&self, control: &Control) -> Op {
        let keys = &self.settings.keys;
        Op::put(keys.control(), records::encode(control), keys.run_lease())
    }

    pub(super) fn put_coordinator(&self, joined: usize, last_call: bool, lease: i64) -> Op {
        let record = self.coordinator_record(joined, last_call, lease);
        Op::put(self.settings.keys.coordinator(), records::encode(&record), lease)
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
        Some(Op::put(self.settings.keys.join(round, lease), records::encode(&record), lease))
    }

    /// From now until its time is up.
    fn stay(&self) -> Stay {
        let until = self.joining.as_ref().map_or(0, |joining| self.unix(joining.deadline));
        Stay { at: self.unix_now(), until }
    }

    /// `false` while the run's lease is being granted.
    pub(super) fn ensure_run_lease(&mut self, deadline: Time) -> bool {
        if !self.run_lease {
            let lease = self.settings.keys.run_lease();
            self.grant(Step::GrantRun, lease, self.settings.run_ttl, deadline);
        }
        self.run_lease
    }

    fn hold_run_lease(&mut self) {
        if !self.run_lease {
            self.run_lease = true;
            // Who coordinates renews it at once, so the others need not, nor all at the same time.
            let ttl = self.settings.run_ttl;
            let first = self.jitter(ttl / 3);
            self.act(Action::KeepAlive(self.settings.keys.run_lease(), ttl, first));
        }
    }

    fn create(&mut self, lease: i64, deadline: Time) {
        self.open_round(1, None, "the first round".into(), lease, deadline);
    }

    /// Opens the round after a completed one.
    fn open(&mut self, round: u64, complete: Final, lease: i64, deadline: Time) {
        let previous = Previous { round, attempt: complete.attempt };
        let why = self.why_open(round);
        self.open_round(round + 1, Some(previous), why, lease, deadline);
    }

    /// What this node knows of the reason to open the round after this one.
    fn why_open(&self, round: u64) -> String {
        if !self.was_member(round) {
            return format!("no member of round {round} was left");
        }
        let known = self.joining.as_ref().and_then(|joining| joining.why.clone());
        let own = || format!("{} asked for a new round", self.settings.node);
        self.why_lost(round).or(known).unwrap_or_else(own)
    }

    /// This node is the first participant of the round it opens, and its coordinator.
    fn open_round(
        &mut self,
        round: u64,
        previous: Option<Previous>,
        why: String,
        lease: i64,
        deadline: Time,
    ) {
        let by = self.settings.node.to_string();
        let fresh = previous.is_none();
        let at = self.unix_now();
        let control = Control::new(round, State::Open { previous, by, at, why });
        let mut writes = vec![
            self.put_control(&control),
            self.put_coordinator(1, false, lease),
            Op::delete(self.settings.keys.loss()),
        ];
        if fresh {
            // A record that an operator removed leaves its round's data behind, which would be taken for
            // that of the new round of this number.
            let keys = &self.settings.keys;
            writes.push(Op::delete_prefix(keys.round_data(round)));
            writes.push(Op::delete(keys.last_call(round)));
            writes.push(Op::delete_prefix(keys.histories()));
        }
        writes.extend(self.put_join(round, lease));
        if let Place::Waiting(waited) = self.place {
            writes.push(Op::delete(self.settings.keys.waiting(waited, lease)));
        }
        writes.extend(self.take_identity(lease));
        let txn = Txn::when(self.unchanged()).then(writes).or_else(self.get_head());
        self.txn(Step::Open(Box::new(control)), txn, deadline);
    }

    fn opened(&mut self, control: Control, reply: &TxnReply) {
        if !reply.succeeded {
            return self.observe_head(reply);
        }
        self.identity_written(reply.revision);
        let round = control.round;
        self.control_written(control, reply.revision);
        self.set_place(Place::Joined(round));
        self.coordinates(round, reply.revision);
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
        self.txn(Step::JoinRound(round), txn, deadline);
    }

    fn joined_round(&mut self, round: u64, reply: &TxnReply) {
        if !reply.succeeded {
            self.observe_head(reply);
            if self.is_final(round) {
                // An earlier copy of this request, whose answer was lost, may have come in time.
                self.set_place(Place::Joined(round));
            }
            return;
        }
        self.identity_written(reply.revision);
        self.set_place(Place::Joined(round));
        match reply.replies.get(1) {
            Some(OpReply::Txn { succeeded: false, replies }) => {
                let range = range_of(replies, 0);
                self.observe_coordinator(range.kvs.first(), reply.revision);
            }
            _ => self.coordinates(round, reply.revision),
        }
    }

    /// Waits for the round to complete, as its coordinator or as one of the others.
    fn take_part(&mut self, now: Time, lease: i64, deadline: Time) {
        match self.coordinator.value.as_ref().map(|(_, holder)| *holder) {
            Some(holder) if holder == lease => {
                if self.lead.is_none() {
                    self.begin_to_lead();
                }
                self.step_lead(now, deadline);
            }
            Some(_) => self.stop_leading(),
            None => {
                self.stop_leading();
                // Everybody misses the coordinator at the same moment: not all claim its place at once.
                let pause = self.jitter(Duration::from_millis(300));
                if now >= *self.look_at.get_or_insert(now + pause) {
                    self.look_at = None;
                    self.claim(lease, deadline);
                }
            }
        }
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
            return self.coordinates(round, reply.revision);
        }
        self.observe_head(reply);
        // A round that is complete by now is another matter: this node may be a member of it.
        let joined = reply.range(self.get_head().len()).kvs.first().map(|kv| kv.lease);
        if !self.is_final(round) && (joined.is_none() || joined != self.lease) {
            // Our join key is gone or another program's (an operator removed or wrote it).
            self.set_place(Place::Outside);
        }
    }

    fn is_final(&self, round: u64) -> bool {
        matches!(
            &self.control.value,
            Some(Control { round: current, state: State::Final(_), .. }) if *current == round
        )
    }

    /// This node wrote the coordinator's key of this round at `revision`.
    fn coordinates(&mut self, round: u64, revision: i64) {
        if let (Place::Joined(joined), Some(lease)) = (self.place, self.lease)
            && joined == round
        {
            self.coordinator_written(1, false, lease, revision);
            if self.coordinator.value.as_ref().is_some_and(|(_, holder)| *holder == lease) {
                self.begin_to_lead();
            }
        }
    }

    fn begin_to_lead(&mut self) {
        if let Some(Control { state: State::Open { previous, .. }, .. }) = &self.control.value {
            self.lead = Some(Lead::new(previous.clone(), self.settings.order));
            if self.run_lease {
                // Nobody may have been there for long. Without this, nodes that live for less than a third
                // of its TTL, one after another, would let it run out in the middle of a world.
                let (run_lease, ttl) = (self.settings.keys.run_lease(), self.settings.run_ttl);
                self.act(Action::KeepAlive(run_lease, ttl, Duration::ZERO));
            }
        }
    }

    fn read_membership(&mut self, round: u64, complete: &Final, lease: i64, deadline: Time) {
        let keys = &self.settings.keys;
        let member = keys.member(round, &complete.attempt, lease);
        let reads = [Op::get(keys.control()), Op::get(member)];
        self.txn(Step::ReadMembership(round), Txn::when([]).then(reads), deadline);
    }

    fn read_membership_answered(&mut self, round: u64, reply: &TxnReply) {
        if !wrong(Variant::UncheckedMembership) {
            self.observe_control(reply.range(0).kvs.first(), reply.revision);
        }
        let Some(Control { round: current, state: State::Final(complete), .. }) =
            self.control.value.clone()
        else {
            return;
        };
        if current != round {
            return;
        }
        let member = reply.range(1).kvs.into_iter().next().map(|kv| {
            let key = String::from_utf8_lossy(&kv.key);
            records::decode_member(&key, &kv.value, complete.world)
        });
        let record = match member.transpose() {
            Ok(record) => record,
            Err(error) => return self.finish(Err(error.into())),
        };
        match (record, self.lease) {
            (Some(record), Some(lease)) => {
                let outcome = Outcome {
                    round,
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
            // Not admitted: more nodes than places.
            _ => self.set_place(Place::Outside),
        }
    }

    /// The round is complete without this node: say so, which makes the members open the next one when
    /// they have room.
    fn wait_outside(&mut self, round: u64, complete: &Final, lease: i64, deadline: Time) {
        let keys = &self.settings.keys;
        let record = Waiting {
            node: self.settings.node.clone(),
            stay: self.stay(),
            labels: self.settings.labels.clone(),
        };
        let record = records::encode(&record);
        let writes = [
            Op::Get(Range::prefix(keys.members(round, &complete.attempt)).count_only()),
            Op::put(keys.waiting(round, lease), record, lease),
            Op::delete(keys.join(round, lease)),
        ];
        let mut writes = writes.to_vec();
        writes.extend(self.take_identity(lease));
        let txn = Txn::when(self.unchanged()).then(writes).or_else(self.get_head());
        self.txn(Step::Wait(round), txn, deadline);
    }

    fn waits_outside(&mut self, now: Time, round: u64, reply: &TxnReply) {
        if !reply.succeeded {
            return self.observe_head(reply);
        }
        self.identity_written(reply.revision);
        self.set_place(Place::Waiting(round));
        self.watch_members_go(reply.revision);
        if reply.range(0).count == 0 {
            let pause = self.jitter(Duration::from_millis(200));
            self.look_at = Some(now + pause);
        }
    }

    fn watch_members_go(&mut self, seen: i64) {
        let Some(Control { round, state: State::Final(complete), .. }) = &self.control.value else {
            return;
        };
        let members = self.settings.keys.members(*round, &complete.attempt);
        self.waiting_watch = Some(self.watch_prefix(members, seen.saturating_add(1), true));
    }

    /// A waiting node opens the next round only when no member is left who would.
    fn wait_for_next(&mut self, now: Time, round: u64, complete: &Final, deadline: Time) {
        if self.look_at.is_some_and(|at| now >= at) {
            self.look_at = None;
            let members = self.settings.keys.members(round, &complete.attempt);
            let members = Range::prefix(members).count_only();
            let reads = [Op::get(self.settings.keys.control()), Op::Get(members)];
            self.txn(Step::Recount(round), Txn::when([]).then(reads), deadline);
        }
    }

    fn recounted(&mut self, round: u64, reply: &TxnReply) {
        self.observe_control(reply.range(0).kvs.first(), reply.revision);
        let (Some(Control { round: current, state: State::Final(complete), .. }), Some(lease)) =
            (self.control.value.clone(), self.lease)
        else {
            return;
        };
        let Some(deadline) = self.joining.as_ref().map(|joining| joining.deadline) else { return };
        if current != round || self.place != Place::Waiting(round) {
            return;
        }
        if reply.range(1).count == 0 {
            self.open(round, complete, lease, deadline);
        } else if self.waiting_watch.is_none() {
            self.watch_members_go(reply.revision);
        }
    }

    fn give_up(&mut self, now: Time) {
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
            .filter_map(records::join_of)
            .map(|(_, join)| join.node.to_string())
            .collect();
        let mut foreign = joined.kvs.iter().filter(|kv| records::join_of(kv).is_none());
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
            let watch = self.waiting_watch.take();
            self.unwatch(watch);
            self.stop_leading();
        }
    }

    pub(super) fn finish(&mut self, result: Result<Outcome, RendezvousError>) {
        self.joining = None;
        self.set_place(Place::Outside);
        if let Err(error) = &result {
            self.exclude(error);
            self.give_back_lease();
        }
        self.act(Action::Joined(result));
    }

    pub(super) fn leave(&mut self) {
        // Whatever is under way now is for a node that is gone.
        self.call = None;
        if self.joining.is_some() {
            self.finish(Err(RendezvousError::Left));
        } else {
            self.give_back_lease();
        }
    }

    fn give_back_lease(&mut self) {
        self.stop_watching_members();
        self.membership = None;
        if let Some(lease) = self.lease.take() {
            self.identity_gone(lease);
            self.act(Action::Revoke(lease));
        }
        if std::mem::take(&mut self.run_lease) {
            // Who is not there does not keep the run's keys there.
            self.act(Action::Abandon(self.settings.keys.run_lease()));
        }
    }

    /// The lease is gone, and with it every key of this node: it starts anew as another node. Gives back
    /// the lease it had.
    pub(super) fn drop_lease(&mut self) -> Option<i64> {
        // An answer that is on its way is about the node that was: a join that it reports is undone.
        self.call = None;
        self.set_place(Place::Outside);
        if let Some(membership) = &mut self.membership {
            membership.expelled = true;
        }
        let lease = self.lease.take();
        if let Some(lease) = lease {
            self.identity_gone(lease);
        }
        lease
    }
}
