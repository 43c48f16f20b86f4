//! Completing a round: what the one coordinator does for all. Its work is O(N), everybody else's O(1).

mod attempt;
mod last_world;
mod line_up;

use std::time::Duration;

use self::attempt::Attempt;
use self::line_up::LineUp;
use super::cx::Cx;
use super::effect::Effect;
use super::out::{AnyCall as _, Slot};
use super::timers::Timer;
use super::{head, txns};
use crate::etcd::WatchMessage;
use crate::etcd::kv::{Op, Txn, TxnReply};
use crate::rendezvous::api::{Answer, Time, Wanted, WatchId};
use crate::rendezvous::records::{LastCall, Previous};
use crate::rendezvous::variant::Variant;

/// How often the coordinator tells how many have joined: growing pauses, since everybody is told.
const FIRST_REPORT: Duration = Duration::from_secs(1);
const LAST_REPORT: Duration = Duration::from_secs(60);

/// What the call under way is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Load,
    AskLastCall,
    GrantLastCall,
    PutLastCall { joined: usize },
    ClearLastCall { joined: usize },
    Report { joined: usize, last_call: bool },
    WriteMembers { to: usize },
    Complete,
}

pub struct Lead {
    round: u64,
    line_up: LineUp,
    /// Since when this node has led.
    began: Time,
    /// Others may have led before, and left what they had begun.
    took_over: bool,
    last_call: Clock,
    report_pause: Duration,
    reported: (usize, bool),
    writing: Option<Attempt>,
    pub slot: Slot<Purpose>,
}

/// The last call: from the moment that enough nodes are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    Stopped,
    /// A former coordinator started it: its lease knows how much is left.
    Inherited(i64),
    Running {
        deadline: Time,
        saved: Saved,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saved {
    No,
    Granted(i64),
    Yes,
}

impl Lead {
    pub fn new(cx: &Cx, round: u64, previous: Option<Previous>, took_over: bool) -> Self {
        Self {
            round,
            line_up: LineUp::new(round, previous, cx.settings.order),
            began: cx.now,
            took_over,
            last_call: Clock::Stopped,
            report_pause: FIRST_REPORT,
            reported: (1, false),
            writing: None,
            slot: Slot::default(),
        }
    }

    pub fn end(mut self, cx: &mut Cx) {
        cx.timers.clear(Timer::LastCall);
        cx.timers.clear(Timer::Report);
        self.slot.give_up(&mut cx.out);
        self.line_up.unwatch(&mut cx.out);
    }

    pub fn watches(&self, watch: WatchId) -> bool {
        self.line_up.watches(watch)
    }

    /// It knows which nodes are there; before that it waits for an answer or a watch.
    pub fn has_counted(&self) -> bool {
        self.line_up.is_loaded()
    }

    /// Called while this node is the coordinator of the open round.
    pub fn step(&mut self, cx: &mut Cx, deadline: Time) {
        if !self.line_up.is_loaded() {
            if self.line_up.watch(cx) {
                let txn = Txn::when([]).then(self.line_up.reads(cx));
                cx.out.txn(&mut self.slot, Purpose::Load, txn, deadline);
            }
            return;
        }
        if let Clock::Inherited(lease) = self.last_call {
            return cx.out.time_to_live(&mut self.slot, Purpose::AskLastCall, lease, deadline);
        }
        self.line_up.look(&cx.view.denied);
        if self.writing.as_ref().is_some_and(|attempt| !self.line_up.has_all(attempt.members())) {
            self.writing = None;
        }
        if self.writing.is_some() {
            return self.write_on(cx, deadline);
        }
        self.call_for_more(cx, deadline);
    }

    /// Whether the world is complete, or for how long to wait for more.
    fn call_for_more(&mut self, cx: &mut Cx, deadline: Time) {
        let (joined, placeable) = (self.line_up.joined(), self.line_up.placeable());
        let (min, full) = (cx.settings.min, cx.settings.order.largest(cx.settings.max));
        // A live member of the last world is on its way, once it has stopped its workers; one that hangs is
        // not waited for without end.
        let grace = self.began + cx.settings.survivor_grace;
        let survivors = self.line_up.is_missing_survivors(&cx.view.denied);
        let leaves = cx.settings.wrong(Variant::LastCallLeavesSurvivors);
        cx.timers.clear(Timer::LastCall);
        if placeable >= full {
            let waits = survivors && (leaves || waits_until(cx, grace));
            if !waits {
                return self.begin_attempt(cx, deadline);
            }
        }
        if placeable < min {
            if self.last_call != Clock::Stopped {
                self.last_call = Clock::Stopped;
                return self.clear_last_call(cx, joined, deadline);
            }
        } else {
            let last_call = cx.settings.last_call;
            if self.last_call == Clock::Stopped {
                self.last_call = Clock::Running { deadline: cx.now + last_call, saved: Saved::No };
            }
            if let Clock::Running { deadline: ends, saved } = self.last_call {
                if !waits_until(cx, ends) && (leaves || !(survivors && waits_until(cx, grace))) {
                    return self.begin_attempt(cx, deadline);
                }
                match saved {
                    Saved::No => {
                        let lease = Wanted::New(cx.out.random_lease());
                        let purpose = Purpose::GrantLastCall;
                        return cx.out.grant(&mut self.slot, purpose, lease, last_call, deadline);
                    }
                    Saved::Granted(lease) => {
                        return self.put_last_call(cx, lease, joined, deadline);
                    }
                    Saved::Yes => {}
                }
            }
        }
        self.report_when_due(cx, joined, placeable >= min, deadline);
    }

    fn report_when_due(&mut self, cx: &mut Cx, joined: usize, last_call: bool, deadline: Time) {
        if (joined, last_call) == self.reported {
            return cx.timers.clear(Timer::Report);
        }
        let due = cx.now >= cx.timers.start(Timer::Report, cx.now + self.report_pause);
        if due || (last_call && !self.reported.1) {
            self.report_pause = (self.report_pause * 2).min(LAST_REPORT);
            cx.timers.clear(Timer::Report);
            self.report(cx, joined, last_call, deadline);
        }
    }

    fn report(&mut self, cx: &mut Cx, joined: usize, last_call: bool, deadline: Time) {
        if let Some(lease) = cx.leases.own() {
            let put = txns::put_coordinator(cx, joined, last_call, lease);
            self.write(cx, Purpose::Report { joined, last_call }, vec![put], deadline);
        }
    }

    fn put_last_call(&mut self, cx: &mut Cx, lease: i64, joined: usize, deadline: Time) {
        let keys = &cx.settings.keys;
        let record = cx.encode(&LastCall { lease });
        let put = Op::put(keys.last_call(self.round), record, keys.run_lease());
        self.change_last_call(cx, Purpose::PutLastCall { joined }, put, (joined, true), deadline);
    }

    fn clear_last_call(&mut self, cx: &mut Cx, joined: usize, deadline: Time) {
        let delete = Op::delete(cx.settings.keys.last_call(self.round));
        let purpose = Purpose::ClearLastCall { joined };
        self.change_last_call(cx, purpose, delete, (joined, false), deadline);
    }

    /// Writes the coordinator's key as well, whose revision guards the next change: a late copy of this one would
    /// undo it otherwise.
    fn change_last_call(
        &mut self,
        cx: &mut Cx,
        purpose: Purpose,
        change: Op,
        (joined, last_call): (usize, bool),
        deadline: Time,
    ) {
        let own = cx.leases.own().filter(|_| !cx.settings.wrong(Variant::LastCallAlone));
        let told = own.map(|lease| txns::put_coordinator(cx, joined, last_call, lease));
        self.write(cx, purpose, [change].into_iter().chain(told).collect(), deadline);
    }

    fn write(&mut self, cx: &mut Cx, purpose: Purpose, writes: Vec<Op>, deadline: Time) {
        let mut guards = txns::still_coordinator(cx);
        if purpose == Purpose::Complete && cx.settings.wrong(Variant::UnguardedCompletion) {
            guards.remove(0);
        }
        let txn = Txn::when(guards).then(writes).or_else(head::reads(&cx.settings));
        cx.out.txn(&mut self.slot, purpose, txn, deadline);
    }

    fn begin_attempt(&mut self, cx: &mut Cx, deadline: Time) {
        let (members, remark) = self.line_up.assign(&cx.settings);
        cx.attempts.count += 1;
        let mut id = format!("{:x}.{}", cx.leases.own().unwrap_or(0), cx.attempts.count);
        if cx.settings.wrong(Variant::AnyAttempt) {
            id = "all".into();
        }
        // The first round, at the first attempt of the node that opened it, has left nothing.
        let first = cx.attempts.count == 1 && !self.took_over && self.line_up.is_of_first_round();
        cx.attempts.sweeps = Some(id.clone()).filter(|_| !first);
        self.writing = Some(Attempt::new(self.round, id, members, cx.unix_now()));
        if let Some(remark) = remark {
            cx.remarks.say(remark);
        }
        self.write_on(cx, deadline);
    }

    fn write_on(&mut self, cx: &mut Cx, deadline: Time) {
        let Some(attempt) = &self.writing else { return };
        if attempt.is_written() {
            let Some(writes) = attempt.complete(cx, self.line_up.roll()) else { return };
            return self.write(cx, Purpose::Complete, writes, deadline);
        }
        match attempt.next_members(cx, self.line_up.roll()) {
            Some((to, writes)) => {
                self.write(cx, Purpose::WriteMembers { to }, writes, deadline);
            }
            // Somebody is not there any more. Without it there would be a hole in the ranks.
            None => self.writing = None,
        }
    }

    /// Events are missing: reread everything. What the old watches still bring is older than that.
    pub fn reload(&mut self, cx: &mut Cx) {
        // What is being read now may be older than what the new watches begin with.
        if let Some(Purpose::Load) = self.slot.purpose() {
            self.slot.give_up(&mut cx.out);
        }
        self.writing = None;
        self.line_up.forget(&mut cx.out);
    }

    pub fn watched(&mut self, cx: &mut Cx, watch: WatchId, message: WatchMessage) {
        match message {
            WatchMessage::Started(_) => self.line_up.started(),
            WatchMessage::Events(events) => {
                let gone = self.line_up.take(cx, watch, events);
                let chosen = |attempt: &Attempt| gone.iter().any(|node| attempt.has(*node));
                if self.writing.as_ref().is_some_and(chosen) {
                    self.writing = None;
                }
            }
            WatchMessage::Compacted { .. } => self.reload(cx),
            // All watches say it, and the machine restarts at the first.
            WatchMessage::HistoryLost => {}
            WatchMessage::Failed(_) => {
                self.reload(cx);
                cx.timers.set(Timer::Pause, cx.now + Duration::from_secs(1));
            }
        }
    }

    /// Whether the reply reads the head.
    pub fn reads_head(purpose: Purpose, reply: &TxnReply) -> bool {
        purpose != Purpose::Load && !reply.succeeded
    }

    /// What the reply says of the head is known already.
    pub fn answered(&mut self, cx: &mut Cx, purpose: Purpose, answer: Answer) -> Vec<Effect> {
        match (purpose, answer) {
            (Purpose::Load, Answer::Txn(reply)) => {
                if let Some(lease) = self.line_up.loaded(cx, &reply)
                    && !cx.settings.wrong(Variant::ForgetsLastCall)
                {
                    self.last_call = Clock::Inherited(lease);
                }
            }
            (Purpose::AskLastCall, Answer::TimeToLive(left)) => {
                // It may be any lease: no last call takes longer than a whole one.
                let left = left.unwrap_or(Duration::ZERO).min(cx.settings.last_call);
                self.last_call = Clock::Running { deadline: cx.now + left, saved: Saved::Yes };
            }
            (Purpose::GrantLastCall, Answer::Granted(lease, _)) => {
                if let Clock::Running { saved, .. } = &mut self.last_call {
                    *saved = Saved::Granted(lease);
                }
            }
            (purpose, Answer::Txn(reply)) if reply.succeeded => {
                return self.wrote(cx, purpose, &reply);
            }
            // No longer coordinator, or the record changed: the attempt is void.
            (_, Answer::Txn(_)) => self.writing = None,
            // The driver answers a call with what it asked for.
            _ => {}
        }
        Vec::new()
    }

    fn wrote(&mut self, cx: &mut Cx, purpose: Purpose, reply: &TxnReply) -> Vec<Effect> {
        match purpose {
            Purpose::PutLastCall { joined } => {
                if let Clock::Running { saved, .. } = &mut self.last_call {
                    *saved = Saved::Yes;
                }
                self.told_with_last_call(cx, joined, true, reply.revision);
            }
            Purpose::ClearLastCall { joined } => {
                self.told_with_last_call(cx, joined, false, reply.revision);
            }
            Purpose::Report { joined, last_call } => {
                self.told(cx, joined, last_call, reply.revision);
            }
            Purpose::WriteMembers { to } => {
                if let Some(attempt) = &mut self.writing {
                    attempt.wrote(to, reply.revision);
                }
            }
            Purpose::Complete => {
                // The watch may have told it already.
                let attempt = self.writing.as_ref();
                if let Some(control) = attempt.and_then(|a| a.record(cx, self.line_up.roll())) {
                    cx.view.control_written(control, reply.revision);
                }
                return vec![Effect::StepDown];
            }
            _ => {}
        }
        Vec::new()
    }

    fn told(&mut self, cx: &mut Cx, joined: usize, last_call: bool, revision: i64) {
        if let Some(lease) = cx.leases.own() {
            txns::coordinator_written(cx, joined, last_call, lease, revision);
        }
        self.reported = (joined, last_call);
    }

    fn told_with_last_call(&mut self, cx: &mut Cx, joined: usize, last_call: bool, revision: i64) {
        if !cx.settings.wrong(Variant::LastCallAlone) {
            self.told(cx, joined, last_call, revision);
        }
    }
}

fn waits_until(cx: &mut Cx, until: Time) -> bool {
    if cx.now < until {
        cx.timers.set(Timer::LastCall, until);
    }
    cx.now < until
}

#[cfg(test)]
mod tests {
    use super::super::testing::{OTHER, OWN, coordinator, cx, open, puts, sees, sent};
    use super::*;
    use crate::etcd::kv::{Event, KeyValue, OpReply, RangeReply};
    use crate::rendezvous::api::Action;
    use crate::rendezvous::records::{Join, Labels, Master, NodeInfo, Stay, encode};

    const DEADLINE: Duration = Duration::from_secs(60);

    fn join(cx: &Cx, node: i64) -> KeyValue {
        let master = Master { addr: format!("n{node}"), port: 1 };
        let record = Join::new(NodeInfo::default(), master, Stay::default(), Labels::default());
        KeyValue {
            key: cx.settings.keys.join(1, node).into(),
            value: encode(&record, 1),
            create_revision: 10 + node,
            mod_revision: 10 + node,
            version: 1,
            lease: node,
        }
    }

    /// The coordinator of the first round, and the watch of the joins, when these have joined.
    fn leading(cx: &mut Cx, nodes: &[i64]) -> (Lead, WatchId) {
        sees(cx, 1, open(None), 3);
        coordinator(cx, OWN, 3);
        let mut lead = Lead::new(cx, 1, None, false);
        lead.step(cx, DEADLINE);
        let [Action::Watch(joins, _)] = cx.out.take()[..] else { panic!("one watch") };
        lead.watched(cx, joins, WatchMessage::Started(3));
        lead.step(cx, DEADLINE);
        assert!(sent(cx).is_read_only());
        let kvs = nodes.iter().map(|node| join(cx, *node)).collect();
        let page = RangeReply { kvs, count: 0, more: false };
        let reply = TxnReply { revision: 17, succeeded: true, replies: vec![OpReply::Get(page)] };
        assert!(lead.answered(cx, Purpose::Load, Answer::Txn(reply)).is_empty());
        (lead, joins)
    }

    fn done(revision: i64) -> Answer {
        Answer::Txn(TxnReply { revision, succeeded: true, replies: Vec::new() })
    }

    #[test]
    fn a_full_round_is_completed_with_a_record_that_says_since_when_all_are_there() {
        let mut cx = cx();
        let (mut lead, _) = leading(&mut cx, &[OWN, OTHER]);
        lead.step(&mut cx, DEADLINE);
        let members = puts(&sent(&mut cx));
        assert_eq!(members.len(), 3, "two members and a part of the roster: {members:?}");
        let effects = lead.answered(&mut cx, Purpose::WriteMembers { to: 2 }, done(20));
        assert!(effects.is_empty());
        lead.step(&mut cx, DEADLINE);
        let txn = sent(&mut cx);
        assert_eq!(puts(&txn)[0], "head/control");
        assert_eq!(txn.compares.len(), 3, "the record, the coordinator's key and its lease");
        assert_eq!(lead.answered(&mut cx, Purpose::Complete, done(21)), [Effect::StepDown]);
        let complete = cx.view.complete(1).expect("a completed round");
        assert_eq!((complete.world, complete.since), (2, 20));
    }

    #[test]
    fn the_attempt_ends_when_one_of_its_members_goes() {
        let mut cx = cx();
        let (mut lead, joins) = leading(&mut cx, &[OWN, OTHER]);
        lead.step(&mut cx, DEADLINE);
        assert!(lead.writing.is_some());
        let key = cx.settings.keys.join(1, OTHER).into();
        let gone = KeyValue { key, mod_revision: 20, ..KeyValue::default() };
        lead.watched(&mut cx, joins, WatchMessage::Events(vec![Event::Delete(gone)]));
        assert!(lead.writing.is_none());
        let refused = TxnReply { revision: 21, succeeded: false, replies: Vec::new() };
        lead.answered(&mut cx, Purpose::WriteMembers { to: 2 }, Answer::Txn(refused));
        cx.out.take();
        lead.step(&mut cx, DEADLINE);
        assert!(cx.out.take().is_empty(), "it waits for more");
    }

    #[test]
    fn with_the_minimum_the_last_call_begins_and_is_saved() {
        let mut cx = cx();
        cx.settings.max = 3;
        let (mut lead, _) = leading(&mut cx, &[OWN, OTHER]);
        lead.step(&mut cx, DEADLINE);
        assert_eq!(lead.slot.purpose(), Some(&Purpose::GrantLastCall));
        let granted = Answer::Granted(99, cx.settings.last_call);
        lead.answered(&mut cx, Purpose::GrantLastCall, granted);
        cx.out.take();
        lead.step(&mut cx, DEADLINE);
        // It is told in the same transaction, and then the round is completed with those who are there.
        assert_eq!(puts(&sent(&mut cx)), ["round/1/last_call", "head/coordinator"]);
        lead.answered(&mut cx, Purpose::PutLastCall { joined: 2 }, done(22));
        assert_eq!(cx.view.coordinator.modified, 22, "what guards the next write");
        cx.now = cx.timers.get(Timer::LastCall).expect("an end");
        lead.step(&mut cx, DEADLINE);
        assert_eq!(lead.slot.purpose(), Some(&Purpose::WriteMembers { to: 2 }));
    }
}
