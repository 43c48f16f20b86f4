//! Completing a round: what the one coordinator does for all. Its work is O(N), everybody else's O(1).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::chronicle::{Former, Past, ROUNDS_KEPT, Roster, RosterEntry};
use super::denied::Denied;
use super::keys::{NodeId, node_of};
use super::machine::{Answer, Machine, Place, Settings, Step, Time, Wanted, WatchId};
use super::ranks::{Candidate, RankOrder, assign};
use super::records::{
    Control, Final, Join, LastCall, Member, Previous, Reader, RoundId, State, Story,
};
use super::roll::Roll;
use super::steps::number;
use super::variants::Variant;
use crate::etcd::WatchMessage;
use crate::etcd::kv::{Compare, Event, Op, Ordering, Range, Target, Txn, TxnReply, prefix_end};
use base64::prelude::{BASE64_STANDARD, Engine as _};

/// How often the coordinator tells how many have joined: growing pauses, since everybody is told.
pub(super) const FIRST_REPORT: Duration = Duration::from_secs(1);
pub(super) const LAST_REPORT: Duration = Duration::from_secs(60);

/// What people should know of these ranks.
fn remark(order: RankOrder, candidates: &[Candidate<'_>], roll: &Roll<Join>) -> Option<String> {
    let own = order.to_string();
    let mut others = roll.admitted().filter(|(.., join)| join.order() != own);
    if let Some((.., join)) = others.next() {
        return Some(format!(
            "ranks are by {own}, which is the rank_order of the coordinator; {} of {} nodes have \
             another one, such as {} by {}",
            others.count() + 1,
            roll.len(),
            join.node,
            join.order()
        ));
    }
    if order != RankOrder::Infra {
        return None;
    }
    let mut seen = BTreeSet::new();
    let twice = candidates.iter().filter_map(|c| c.infra).find(|rank| !seen.insert(*rank))?;
    let named = |join: &Join| join.labels.infra_rank == Some(twice);
    let nodes = roll.admitted().filter(|(.., join)| named(join)).take(3);
    let names: Vec<String> = nodes.map(|(.., join)| join.node.to_string()).collect();
    Some(format!(
        "several nodes have the infra_rank {twice}, and are ranked as they came: {}",
        names.join(", ")
    ))
}

/// What the coordinator's call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeadStep {
    Load,
    AskLastCall,
    GrantLastCall,
    PutLastCall,
    ClearLastCall,
    Report { joined: usize, last_call: bool },
    WriteMembers { to: usize },
    Complete,
}

pub(super) struct Lead {
    previous: Option<Previous>,
    load: Load,
    roll: Roll<Join>,
    /// When it is time to look again.
    wake_at: Option<Time>,
    /// Since when this node has led.
    began: Time,
    /// Others may have led before, and left what they had begun.
    took_over: bool,
    /// Live members of the last world.
    survivors: BTreeMap<NodeId, Member>,
    /// Who its members were, dead or alive.
    former: Former,
    watches: Option<Watches>,
    /// Events that came while what was there before was being read.
    early: Vec<(Kind, Event)>,
    last_call: Clock,
    report_at: Option<Time>,
    report_pause: Duration,
    reported: (usize, bool),
    writing: Option<Attempt>,
}

/// They begin now, and only then is read what is there.
struct Watches {
    joins: WatchId,
    survivors: Option<WatchId>,
    /// How many of them have yet to begin.
    starting: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Join,
    Survivor,
}

/// Reading what is there, page by page at one revision.
#[derive(Default)]
pub(super) struct Load {
    pub done: bool,
    pub revision: i64,
    pub from: Option<Vec<u8>>,
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

/// One attempt to complete the round.
struct Attempt {
    id: String,
    members: Vec<NodeId>,
    written: usize,
    since: i64,
    /// Unix time at which it began.
    at: u64,
}

impl Attempt {
    /// Whether all who were chosen may still take part.
    fn is_of(&self, roll: &Roll<Join>) -> bool {
        roll.all_are_admitted() || self.members.iter().all(|node| roll.admits(*node))
    }
}

impl Lead {
    pub fn new(previous: Option<Previous>, order: RankOrder, now: Time, took_over: bool) -> Self {
        Self {
            previous,
            wake_at: None,
            began: now,
            took_over,
            load: Load::default(),
            roll: Roll::new(order),
            survivors: BTreeMap::new(),
            former: Former::default(),
            watches: None,
            early: Vec::new(),
            last_call: Clock::Stopped,
            report_at: None,
            report_pause: FIRST_REPORT,
            reported: (1, false),
            writing: None,
        }
    }

    pub fn watches(&self, watch: WatchId) -> bool {
        self.watches.as_ref().is_some_and(|w| w.joins == watch || w.survivors == Some(watch))
    }

    pub fn next_deadline(&self) -> Option<Time> {
        if !self.load.done {
            // An answer or a watch is waited for.
            return None;
        }
        self.wake_at.into_iter().chain(self.report_at).min()
    }

    pub fn abort_attempt(&mut self) {
        self.writing = None;
    }

    /// Who was replaced or is denied is not waited for.
    fn survivors_missing(&self, denied: &Denied) -> bool {
        let missing = |(node, member): (&NodeId, &Member)| {
            !self.roll.has(*node, member.labels.node_id.as_deref())
                && !denied.has(*node, &member.node, &member.labels)
        };
        self.survivors.iter().any(missing)
    }

    fn candidates(&self) -> Vec<Candidate<'_>> {
        let mut candidates = Vec::with_capacity(self.roll.len());
        for (node, arrival, join) in self.roll.admitted() {
            let labels = &join.labels;
            let survivor = self.survivors.get(&node).map(|member| member.rank);
            let seat = || self.former.seats.get(labels.node_id.as_ref()?).copied();
            candidates.push(Candidate {
                node,
                arrival,
                previous: survivor.or_else(seat),
                infra: labels.infra_rank,
                domain: labels.domain.as_deref(),
            });
        }
        candidates
    }

    fn take(&mut self, kind: Kind, event: Event, reader: Reader, denied: &Denied) {
        if !self.load.done {
            return self.early.push((kind, event));
        }
        if event.kv().mod_revision <= self.load.revision {
            // What was read is newer.
            return;
        }
        match kind {
            Kind::Join => self.take_join(&event, reader, denied),
            Kind::Survivor => {
                if let Some(node) = node_of(&event.kv().key) {
                    self.survivors.remove(&node);
                }
            }
        }
    }

    fn take_join(&mut self, event: &Event, reader: Reader, denied: &Denied) {
        match event {
            Event::Put(kv) => {
                if let Some((node, join)) = reader.join(kv) {
                    self.roll.insert(node, kv.create_revision, join, denied);
                }
            }
            Event::Delete(kv) => {
                let Some(node) = node_of(&kv.key) else { return };
                self.roll.remove(node);
                let chosen = |attempt: &Attempt| attempt.members.contains(&node);
                if self.writing.as_ref().is_some_and(chosen) {
                    self.abort_attempt();
                }
            }
        }
    }
}

impl Machine {
    /// Called while this node is the coordinator of the open round and no call is under way.
    pub(super) fn step_lead(&mut self, now: Time, deadline: Time) {
        let min = self.settings.min;
        let full = self.settings.order.largest(self.settings.max);
        let Some(lead) = &mut self.lead else { return };
        match &lead.watches {
            None => return self.watch_joins(),
            Some(watches) if watches.starting > 0 => return,
            Some(_) if !lead.load.done => return self.load(deadline),
            Some(_) => {}
        }
        if let Clock::Inherited(lease) = lead.last_call {
            let id = self.new_id();
            self.call = Some((id, Step::Lead(LeadStep::AskLastCall)));
            return self.act(super::machine::Action::TimeToLive(id, lease, deadline));
        }
        lead.roll.look(&self.denied);
        if lead.writing.as_ref().is_some_and(|attempt| !attempt.is_of(&lead.roll)) {
            lead.abort_attempt();
        }
        if lead.writing.is_some() {
            return self.write_on(deadline);
        }
        let (joined, placeable) = (lead.roll.len(), lead.roll.placeable());
        // A live member of the last world is on its way, once it has stopped its workers; one that hangs is
        // not waited for without end.
        let grace = lead.began + self.settings.survivor_grace;
        let survivors = lead.survivors_missing(&self.denied);
        lead.wake_at = None;
        let mut waits = |until: Time| {
            if now < until {
                lead.wake_at = Some(until);
            }
            now < until
        };
        if self.settings.wrong(Variant::LastCallLeavesSurvivors) {
            if placeable >= full && !survivors {
                return self.begin_attempt(deadline);
            }
        } else if placeable >= full && !(survivors && waits(grace)) {
            return self.begin_attempt(deadline);
        }
        if placeable < min {
            if lead.last_call != Clock::Stopped {
                lead.last_call = Clock::Stopped;
                return self.clear_last_call(deadline);
            }
        } else {
            let last_call = self.settings.last_call;
            if lead.last_call == Clock::Stopped {
                lead.last_call = Clock::Running { deadline: now + last_call, saved: Saved::No };
            }
            if let Clock::Running { deadline: ends, saved } = lead.last_call {
                let leaves = self.settings.wrong(Variant::LastCallLeavesSurvivors);
                if !waits(ends) && (leaves || !(survivors && waits(grace))) {
                    return self.begin_attempt(deadline);
                }
                match saved {
                    Saved::No => {
                        let lease = Wanted::New(self.random_lease());
                        let step = Step::Lead(LeadStep::GrantLastCall);
                        return self.grant(step, lease, last_call, deadline);
                    }
                    Saved::Granted(lease) => return self.put_last_call(lease, deadline),
                    Saved::Yes => {}
                }
            }
        }
        self.report_when_due(now, joined, placeable >= min, deadline);
    }

    fn report_when_due(&mut self, now: Time, joined: usize, last_call: bool, deadline: Time) {
        let Some(lead) = &mut self.lead else { return };
        let news = (joined, last_call) != lead.reported;
        if !news {
            lead.report_at = None;
            return;
        }
        let pause = lead.report_pause;
        let due = now >= *lead.report_at.get_or_insert(now + pause);
        if due || (last_call && !lead.reported.1) {
            lead.report_pause = (pause * 2).min(LAST_REPORT);
            lead.report_at = None;
            self.report(joined, last_call, deadline);
        }
    }

    fn report(&mut self, joined: usize, last_call: bool, deadline: Time) {
        let Some(lease) = self.lease else { return };
        let txn = Txn::when(self.still_coordinator())
            .then([self.put_coordinator(joined, last_call, lease)])
            .or_else(self.get_head());
        self.txn(Step::Lead(LeadStep::Report { joined, last_call }), txn, deadline);
    }

    /// The guards of everything a coordinator writes: nothing has changed that it would have to know. Revisions
    /// alone may be the same in an etcd that was wiped, which a late request can reach; leases are not.
    fn still_coordinator(&self) -> Vec<Compare> {
        let coordinator = self.settings.keys.coordinator();
        let unchanged = Compare::mod_revision(coordinator.clone(), self.coordinator.modified);
        let own = |lease| Compare::new(coordinator, Ordering::Equal, Target::Lease(lease));
        [self.control_unchanged(), unchanged].into_iter().chain(self.lease.map(own)).collect()
    }

    /// The last world's roster says who is back by its `node_id`, and where its domains were.
    fn wants_roster(&self) -> bool {
        let Settings { labels, order, .. } = &self.settings;
        labels.node_id.is_some() || matches!(order, RankOrder::Topology { .. })
    }

    fn load(&mut self, deadline: Time) {
        let (Some(lead), Place::Joined(round)) = (&self.lead, self.place) else { return };
        let keys = &self.settings.keys;
        let joins = keys.joins(round);
        let first = lead.load.from.is_none();
        let page = Range {
            key: lead.load.from.clone().unwrap_or_else(|| joins.clone().into()),
            range_end: Some(prefix_end(joins.as_bytes())),
            limit: self.settings.tuning.join_page,
            revision: lead.load.revision,
            ..Range::default()
        };
        let mut reads = vec![Op::Get(page)];
        if first {
            reads.push(Op::get(keys.last_call(round)));
            if let Some(previous) = &lead.previous {
                let members = keys.members(&previous.id);
                reads.push(Op::Get(Range::prefix(members)));
                if self.wants_roster() {
                    let roster = keys.rosters(&previous.id);
                    reads.push(Op::Get(Range::prefix(roster)));
                }
            }
        }
        self.txn(Step::Lead(LeadStep::Load), Txn::when([]).then(reads), deadline);
    }

    fn loaded(&mut self, reply: &TxnReply) {
        let reader = self.reader();
        let denied = &self.denied;
        let Some(lead) = &mut self.lead else { return };
        if lead.load.from.is_none() {
            lead.load.revision = reply.revision;
            if let Some(kv) = reply.range(1).kvs.first()
                && let Ok(LastCall { lease }) = reader.record("", &kv.value)
                && !self.settings.wrong(Variant::ForgetsLastCall)
            {
                lead.last_call = Clock::Inherited(lease);
            }
            for kv in reply.range(2).kvs {
                if let (Some(node), Ok(member)) =
                    (node_of(&kv.key), reader.record::<Member>("", &kv.value))
                {
                    lead.survivors.insert(node, member);
                }
            }
            lead.former = Former::of(reader, &reply.range(3).kvs);
        }
        let page = reply.range(0);
        let next = page.kvs.last().map(|kv| [&kv.key[..], &[0]].concat());
        for kv in page.kvs {
            lead.take_join(&Event::Put(kv), reader, denied);
        }
        if page.more {
            lead.load.from = next;
            return;
        }
        lead.load.done = true;
        lead.load.from = None;
        for (kind, event) in std::mem::take(&mut lead.early) {
            lead.take(kind, event, reader, denied);
        }
    }

    fn watch_joins(&mut self) {
        let (Some(lead), Place::Joined(round)) = (&self.lead, self.place) else { return };
        let keys = self.settings.keys.clone();
        let previous = lead.previous.clone();
        let joins = self.watch_prefix(keys.joins(round), 0, false);
        let survivors = previous.map(|last| self.watch_prefix(keys.members(&last.id), 0, true));
        let starting = 1 + usize::from(survivors.is_some());
        if let Some(lead) = &mut self.lead {
            lead.watches = Some(Watches { joins, survivors, starting });
        }
    }

    pub(super) fn lead_watched(&mut self, now: Time, watch: WatchId, message: WatchMessage) {
        let reader = self.reader();
        let denied = &self.denied;
        let Some(lead) = &mut self.lead else { return };
        let Some(watches) = &mut lead.watches else { return };
        let kind = if watches.joins == watch { Kind::Join } else { Kind::Survivor };
        match message {
            WatchMessage::Started(_) => watches.starting = watches.starting.saturating_sub(1),
            WatchMessage::Events(events) => {
                for event in events {
                    lead.take(kind, event, reader, denied);
                }
            }
            WatchMessage::Compacted { .. } => self.reload(),
            // All watches say it, and the machine begins anew at the first.
            WatchMessage::HistoryLost => {}
            WatchMessage::Failed(_) => {
                self.reload();
                self.pause = Some(now + Duration::from_secs(1));
            }
        }
    }

    /// Events are missing: read everything anew. What the old watches still bring is older than that.
    pub(super) fn reload(&mut self) {
        // What is being read now may be older than what the new watches begin with.
        if let Some((_, Step::Lead(LeadStep::Load))) = self.call {
            self.drop_call();
        }
        let Some(lead) = &mut self.lead else { return };
        lead.abort_attempt();
        lead.load = Load::default();
        lead.roll.clear();
        lead.survivors.clear();
        lead.early.clear();
        let watches = lead.watches.take();
        self.unwatch_lead(watches);
    }

    fn put_last_call(&mut self, lease: i64, deadline: Time) {
        let Place::Joined(round) = self.place else { return };
        let keys = &self.settings.keys;
        let record = self.encode(&LastCall { lease });
        let txn = Txn::when(self.still_coordinator())
            .then([Op::put(keys.last_call(round), record, keys.run_lease())])
            .or_else(self.get_head());
        self.txn(Step::Lead(LeadStep::PutLastCall), txn, deadline);
    }

    fn clear_last_call(&mut self, deadline: Time) {
        let Place::Joined(round) = self.place else { return };
        let txn = Txn::when(self.still_coordinator())
            .then([Op::delete(self.settings.keys.last_call(round))])
            .or_else(self.get_head());
        self.txn(Step::Lead(LeadStep::ClearLastCall), txn, deadline);
    }

    fn begin_attempt(&mut self, deadline: Time) {
        let at = self.unix_now();
        let Some(lead) = &mut self.lead else { return };
        let candidates = lead.candidates();
        let (max, order) = (self.settings.max, self.settings.order);
        let members = assign(&candidates, max, order, &lead.former.places);
        let remark = remark(order, &candidates, &lead.roll);
        self.attempts += 1;
        let mut id = format!("{:x}.{}", self.lease.unwrap_or(0), self.attempts);
        if self.settings.wrong(Variant::AnyAttempt) {
            id = "all".into();
        }
        // The first round, at the first attempt of who opened it, has left nothing.
        let first = self.attempts == 1 && !lead.took_over && lead.previous.is_none();
        self.leaves = Some(id.clone()).filter(|_| !first);
        lead.writing = Some(Attempt { id, members, written: 0, since: 0, at });
        if let Some(remark) = remark {
            self.say(remark);
        }
        self.write_on(deadline);
    }

    fn write_on(&mut self, deadline: Time) {
        let (Some(lead), Place::Joined(round)) = (&self.lead, self.place) else { return };
        let Some(attempt) = &lead.writing else { return };
        if attempt.written == attempt.members.len() {
            return self.complete(deadline);
        }
        let id = RoundId { round, attempt: attempt.id.clone() };
        let to = attempt.members.len().min(attempt.written + self.settings.tuning.members_per_txn);
        let mut writes = Vec::with_capacity(to - attempt.written + 1);
        let mut roster = Roster::default();
        for (rank, node) in attempt.members.iter().enumerate().take(to).skip(attempt.written) {
            let Some(join) = lead.roll.get(*node) else {
                // Without it there would be a hole in the ranks.
                if let Some(lead) = &mut self.lead {
                    lead.abort_attempt();
                }
                return;
            };
            let mut next = attempt.members[(rank + 1) % attempt.members.len()];
            if self.settings.wrong(Variant::LastWatchesNobody) && rank + 1 == attempt.members.len()
            {
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
            let key = self.settings.keys.member(&id, *node);
            writes.push(Op::put(key, self.encode(&member), *node));
        }
        let part = attempt.written / self.settings.tuning.members_per_txn;
        let key = self.settings.keys.roster(&id, part);
        writes.push(Op::put(key, self.encode(&roster), self.settings.keys.run_lease()));
        let txn = Txn::when(self.still_coordinator()).then(writes).or_else(self.get_head());
        self.txn(Step::Lead(LeadStep::WriteMembers { to }), txn, deadline);
    }

    fn complete(&mut self, deadline: Time) {
        let Some(control) = self.completion() else { return };
        let State::Final(complete) = &control.state else { return };
        let keys = &self.settings.keys;
        let round = control.round;
        let kv = keys.round_store(&complete.id(round), "kv");
        let store = |key: &str, value: &str| {
            let key = format!("{kv}{}", BASE64_STANDARD.encode(key));
            Op::put(key, BASE64_STANDARD.encode(value), keys.run_lease())
        };
        let mut writes = vec![
            self.put_control(&control),
            Op::delete(keys.coordinator()),
            Op::delete(keys.last_call(round)),
            // The names of torch's RendezvousStoreInfo (torch api.py), for who looks there.
            store("MASTER_ADDR", &complete.master_addr),
            store("MASTER_PORT", &complete.master_port.to_string()),
        ];
        let story = complete.story.clone();
        let past = self.encode(&Past { round, world: complete.world, story });
        writes.push(Op::put(keys.history(round), past, keys.run_lease()));
        if let Some(old) = round.checked_sub(ROUNDS_KEPT) {
            writes.push(Op::delete(keys.history(old)));
        }
        let mut guards = self.still_coordinator();
        if self.settings.wrong(Variant::UnguardedCompletion) {
            guards.remove(0);
        }
        let txn = Txn::when(guards).then(writes).or_else(self.get_head());
        self.txn(Step::Lead(LeadStep::Complete), txn, deadline);
    }

    /// The control record of the round as the present attempt completes it.
    fn completion(&self) -> Option<Control> {
        let (Some(lead), Place::Joined(round)) = (&self.lead, self.place) else { return None };
        let attempt = lead.writing.as_ref()?;
        let first = lead.roll.get(*attempt.members.first()?)?;
        let open = self.control.value.as_ref()?;
        let State::Open { by, at, why, .. } = &open.state else { return None };
        let story = Story {
            by: self.settings.node.to_string(),
            at: attempt.at,
            opened_at: *at,
            opened_by: by.clone(),
            why: why.clone(),
            min: number(self.settings.min),
            max: number(self.settings.max),
        };
        let complete = Final {
            world: number(attempt.members.len()),
            attempt: attempt.id.clone(),
            since: attempt.since,
            master_addr: first.master_addr.clone(),
            master_port: first.master_port,
            order: self.settings.order,
            story,
        };
        Some(open.then(round, State::Final(complete)))
    }

    pub(super) fn lead_answered(&mut self, now: Time, step: LeadStep, answer: Answer) {
        match (step, answer) {
            (LeadStep::Load, Answer::Txn(reply)) => self.loaded(&reply),
            (LeadStep::AskLastCall, Answer::TimeToLive(left)) => {
                if let Some(lead) = &mut self.lead {
                    // It may be any lease: no last call takes longer than a whole one.
                    let left = left.unwrap_or(Duration::ZERO).min(self.settings.last_call);
                    let deadline = now + left;
                    lead.last_call = Clock::Running { deadline, saved: Saved::Yes };
                }
            }
            (LeadStep::GrantLastCall, Answer::Granted(lease, _)) => {
                if let Some(Clock::Running { saved, .. }) = self.last_call() {
                    *saved = Saved::Granted(lease);
                }
            }
            (step, Answer::Txn(reply)) if reply.succeeded => self.lead_wrote(step, &reply),
            (_, Answer::Txn(reply)) => {
                // No longer coordinator, or the record changed: the attempt is void.
                if let Some(lead) = &mut self.lead {
                    lead.abort_attempt();
                }
                self.observe_head(&reply);
            }
            _ => {}
        }
    }

    fn lead_wrote(&mut self, step: LeadStep, reply: &TxnReply) {
        match step {
            LeadStep::PutLastCall => {
                if let Some(Clock::Running { saved, .. }) = self.last_call() {
                    *saved = Saved::Yes;
                }
            }
            LeadStep::Report { joined, last_call } => {
                if let Some(lease) = self.lease {
                    self.coordinator_written(joined, last_call, lease, reply.revision);
                }
                if let Some(lead) = &mut self.lead {
                    lead.reported = (joined, last_call);
                }
            }
            LeadStep::WriteMembers { to } => {
                if let Some(attempt) = self.lead.as_mut().and_then(|lead| lead.writing.as_mut()) {
                    // Nothing was written in between, so nobody was lost: all are there now.
                    if attempt.written == 0 || reply.revision == attempt.since.saturating_add(1) {
                        attempt.since = reply.revision;
                    }
                    attempt.written = to;
                }
            }
            LeadStep::Complete => {
                // The watch may have told it already.
                if let Some(control) = self.completion() {
                    self.control_written(control, reply.revision);
                }
                self.stop_leading();
            }
            _ => {}
        }
    }

    fn last_call(&mut self) -> Option<&mut Clock> {
        self.lead.as_mut().map(|lead| &mut lead.last_call)
    }

    pub(super) fn stop_leading(&mut self) {
        if let Some(lead) = self.lead.take() {
            if let Some((_, Step::Lead(_))) = self.call {
                self.drop_call();
            }
            self.unwatch_lead(lead.watches);
        }
    }

    fn unwatch_lead(&mut self, watches: Option<Watches>) {
        if let Some(watches) = watches {
            self.unwatch(Some(watches.joins));
            self.unwatch(watches.survivors);
        }
    }

    pub(super) fn coordinator_written(
        &mut self,
        joined: usize,
        last_call: bool,
        lease: i64,
        revision: i64,
    ) {
        let record = self.coordinator_record(joined, last_call, lease);
        self.coordinator.set(Some((record, lease)), revision, revision);
    }

    pub(super) fn control_written(&mut self, control: Control, revision: i64) {
        if self.control.value.is_none() {
            self.created_at(revision);
        }
        self.control.set(Some(control), revision, revision);
    }
}
