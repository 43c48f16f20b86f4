//! The protocol core of one node: what it knows of etcd, what it is doing, and the door to both.
//!
//! The rules themselves are in `steps.rs` (joining), `lead.rs` (completing a round) and `member.rs`
//! (between rounds). They are level-triggered: after each input [`Machine::advance`] looks at what is
//! known and takes the one next step. One call to etcd is under way at a time, and every transaction is
//! guarded by the control record's revision, so repeating one whose answer was lost is harmless.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::denied::{Denied, DeniedNode};
use super::identity::Identity;
use super::keys::{Keys, NodeId};
use super::labels::Labels;
use super::lead::Lead;
use super::member::Membership;
use super::ranks::RankOrder;
use super::records::{
    self, Closed, Control, Coordinator, Ended, Loss, Master, NodeInfo, Reader, RoundId, State,
    UnreadableRecord, Usher,
};
use super::sweep::Sweep;
use super::usher::Ushering;
use super::variants::Variant;
use crate::etcd::kv::{Compare, Event, KeyValue, Op, Ordering, Target, Txn, TxnReply, prefix_end};
use crate::etcd::{EtcdError, Refusal, WatchMessage, WatchSpec};

/// How many remarks are remembered, so that none is made twice.
const REMARKS: usize = 16;

/// Time since an origin of the driver's choice.
pub type Time = Duration;
pub type CallId = u64;
pub type WatchId = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMemberLoss {
    /// A lost member makes the others' `num_nodes_waiting` positive: their agents rejoin.
    Restart,
    Ignore,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub keys: Keys,
    pub min: usize,
    pub max: usize,
    pub join_timeout: Duration,
    pub last_call: Duration,
    /// How long a round waits, after it was opened, for live members of the last world.
    pub survivor_grace: Duration,
    pub close_timeout: Duration,
    /// TTL of the node's lease.
    pub ttl: Duration,
    /// TTL of the run's lease.
    pub run_ttl: Duration,
    pub on_member_loss: OnMemberLoss,
    /// Who comes to a closed run whose members have all gone opens it again.
    pub reopen_if_closed: bool,
    /// The newest version of the protocol that this node knows, and that of a run that it creates.
    pub version: u32,
    pub node: NodeInfo,
    pub labels: Labels,
    pub order: RankOrder,
    /// The Unix time at [`Time`] zero; the driver sets it.
    pub epoch: Duration,
    /// For lease ids and for pauses that must differ between nodes.
    pub seed: u64,
    pub tuning: Tuning,
}

/// What is the same for all nodes, and other than that only for tests.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// etcd takes 128 operations in a transaction.
    pub members_per_txn: usize,
    /// How many join keys are read at once.
    pub join_page: i64,
    /// The guard that is missing.
    #[cfg(test)]
    pub variant: Option<Variant>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            members_per_txn: 120,
            join_page: 2000,
            #[cfg(test)]
            variant: None,
        }
    }
}

impl Settings {
    /// Whether this node does without a guard of the protocol, for the simulator to see that it notices.
    #[cfg(test)]
    pub fn wrong(&self, variant: Variant) -> bool {
        self.tuning.variant == Some(variant)
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, reason = "tests look")]
    pub const fn wrong(&self, _: Variant) -> bool {
        false
    }

    /// The number alone comes back, when an operator has deleted the run's keys.
    pub fn is_same(&self, a: &RoundId, b: &RoundId) -> bool {
        if self.wrong(Variant::RoundByNumber) { a.round == b.round } else { a == b }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Take part in the next round. The result comes as [`Action::Joined`].
    Join(Master),
    /// Stop joining and give up membership: the lease is revoked, nobody waits for it to run out.
    Leave,
    /// Close the run for good. The result comes as [`Action::Closed`].
    Close(Close),
    /// Learn the run's state without taking part; comes as [`Action::Observed`].
    Observe,
    Answer(CallId, Result<Answer, EtcdError>),
    Watched(WatchId, WatchMessage),
    /// etcd does not have this lease any more: the node's or the run's.
    LeaseLost(i64),
    /// Nothing but the time.
    Tick,
}

/// The wish to close the run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Close {
    pub by: String,
    pub reason: String,
    /// Unix time in seconds.
    pub at: u64,
    pub ended: Option<Ended>,
    /// Only if this node is a live member of the last completed world. Whoever else ends only leaves.
    pub only_member: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Txn(TxnReply),
    /// This lease, for so long by etcd's own word.
    Granted(i64, Duration),
    /// What the lease has left; `None` when it is gone.
    TimeToLive(Option<Duration>),
}

/// Which lease is to be granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// One of the node's own. The first attempt asks for this id, each later one for another
    /// (`etcd::nth_lease_id`).
    New(i64),
    /// One that others may have been granted already, whose id all know.
    Shared(i64),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Run it as often as needed until it is answered: repeating it is harmless.
    Txn(CallId, Txn, Time),
    Grant(CallId, Wanted, Duration, Time),
    TimeToLive(CallId, i64, Time),
    /// Best effort: a lease that cannot be revoked runs out.
    Revoke(i64),
    /// Stop renewing: it stays for as long as others renew it, or until it runs out.
    Abandon(i64),
    /// Renew a lease of this TTL until it is revoked, abandoned or lost, for the first time after so long;
    /// in place of an earlier one of the same lease. The loss is an input.
    KeepAlive(i64, Duration, Duration),
    Watch(WatchId, WatchSpec),
    Unwatch(WatchId),
    /// Nobody waits for this call any more: it must not go on.
    Cancel(CallId),
    Joined(Result<Outcome, RendezvousError>),
    /// `Some` where the run was left as it is, with the reason.
    Closed(Result<Option<String>, RendezvousError>),
    Observed(Result<(), RendezvousError>),
}

/// A place in a completed round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub round: u64,
    pub attempt: String,
    pub rank: u32,
    pub world: u32,
    pub master: Master,
}

impl Outcome {
    pub fn id(&self) -> RoundId {
        RoundId { round: self.round, attempt: self.attempt.clone() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RendezvousError {
    #[error("The run was closed by {by}: {reason}", by = .0.by, reason = .0.reason)]
    Closed(Closed),
    #[error("{0}")]
    Timeout(String),
    #[error("{0}")]
    Etcd(#[from] EtcdError),
    #[error(transparent)]
    Unreadable(#[from] UnreadableRecord),
    #[error(transparent)]
    Denied(#[from] DeniedNode),
    #[error(
        "{node} is not in the run any more: another agent, {by}, has taken its node_id '{node_id}'. \
         Each agent needs a node_id of its own."
    )]
    Replaced { node: NodeInfo, node_id: String, by: NodeInfo },
    #[error("The node has left the rendezvous.")]
    Left,
}

/// Why a member's world is over, or no longer whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// This node's own lease.
    LeaseLost,
    MemberLost,
    /// Somebody opened another round, or the run's state is gone.
    NextRound,
    /// This node was denied or replaced, or the run is led by another version.
    Excluded,
}

impl Cause {
    /// As metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::LeaseLost => "lease_lost",
            Self::MemberLost => "member_lost",
            Self::NextRound => "next_round",
            Self::Excluded => "excluded",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    pub id: RoundId,
    pub cause: Cause,
    /// For people.
    pub reason: String,
}

/// What can be told without asking etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Nodes that could change the world of this member, lost members among them.
    pub waiting: usize,
    pub closed: Option<Closed>,
    /// Seconds: the TTL of the run's lease, as its record has it; 0 where that is not known.
    pub run_ttl: u64,
    pub progress: Progress,
    /// Why nobody should wait any longer for a member of this round.
    pub broken: Option<Broken>,
    /// The state of the run is being watched.
    pub observed: bool,
    /// Why this node is none of the run: it was denied, or replaced.
    pub excluded: Option<String>,
    /// The run was closed while this node waited for a place in it.
    pub parked: bool,
    /// What people should know of the last round's ranks and limits.
    pub remark: Option<String>,
}

/// For the log lines of a node that waits in the barrier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub round: u64,
    /// The completed round that is current.
    pub current: Option<RoundId>,
    /// As the coordinator last told; 0 when it has not told yet.
    pub joined: usize,
    pub last_call: bool,
    /// The round is complete without this node, which waits for the next one.
    pub spare: bool,
    /// This node counts among those who have joined a round that is not complete.
    pub entered: bool,
    pub member: Option<Member>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub rank: u32,
    pub world: u32,
}

/// A value as of a revision: an older observation never replaces a newer one.
#[derive(Clone, Debug)]
pub(super) struct Observed<T> {
    pub value: Option<T>,
    /// The revision at which `value` was last written; 0 when there is none.
    pub modified: i64,
    as_of: i64,
}

impl<T> Default for Observed<T> {
    fn default() -> Self {
        Self { value: None, modified: 0, as_of: 0 }
    }
}

impl<T> Observed<T> {
    pub fn set(&mut self, value: Option<T>, modified: i64, as_of: i64) {
        if as_of >= self.as_of {
            *self = Self { value, modified, as_of };
        }
    }

    /// It is gone, as far as can be known without asking.
    pub fn forget(&mut self) {
        (self.value, self.modified) = (None, 0);
    }

    fn is_newer_than(&self, as_of: i64) -> bool {
        self.as_of > as_of
    }
}

/// The watch of the control record and the coordinator's key. It begins now, and only then is the head
/// read: etcd serves a watch that begins in the past (which any revision is, while others join) late.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub watch: WatchId,
    /// It shows what is written after this revision. Not known before etcd has said so.
    from: Option<i64>,
    /// The revision at which the head was read last; 0 when it was not.
    read: i64,
    /// The watch of this node's `node_id`, if it has one, and from where on it shows what is written. It
    /// begins and ends with that of the head.
    name: Option<(WatchId, Option<i64>)>,
}

impl Head {
    fn is(&self, watch: WatchId) -> bool {
        self.watch == watch || self.name.is_some_and(|(name, _)| name == watch)
    }

    /// The revision that a reading must have; `None` before etcd has said where the watches begin.
    fn wanted(&self) -> Option<i64> {
        let name = self.name.map_or(Some(0), |(_, from)| from)?;
        Some(self.from?.max(name))
    }

    fn is_known(&self) -> bool {
        self.wanted().is_some_and(|wanted| self.read >= wanted)
    }

    fn started(&mut self, watch: WatchId, revision: i64) {
        match &mut self.name {
            Some((name, from)) if *name == watch => *from = Some(revision),
            _ => self.from = Some(revision),
        }
    }
}

/// A node's wish to be in the next round.
#[allow(clippy::struct_excessive_bools, reason = "each is about something else")]
#[derive(Clone, Debug)]
pub(super) struct Joining {
    pub master: Master,
    pub started: Time,
    pub deadline: Time,
    /// What this node knew, as a member of a world, when it was told to join again.
    pub why: Option<String>,
    /// The head was read since, so that nobody is turned away for what was.
    pub confirmed: bool,
    /// It was a member of no world when it was told to join.
    pub newcomer: bool,
    /// It has seen the run open since: a close that comes after is for it, too.
    pub seen_open: bool,
    /// It waits in a full world, or for a segment: the deadline does not run.
    pub parked: bool,
    /// The last call had begun when its time was up.
    pub extended: bool,
}

/// Where this node has put itself for the round that the control record names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Outside,
    Joined(u64),
    Waiting(u64),
}

/// What the call under way is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Asked at this time.
    GrantNode(Time),
    GrantRun,
    ReadHead,
    JoinRound(u64),
    /// With the record that opens the round.
    Open(Box<Control>),
    ReadMembership(RoundId),
    /// With the count that this node tells if it is the usher.
    Wait(u64, u32),
    Claim,
    GiveUp,
    Close,
    Confirm(RoundId),
    /// With the record of the loss.
    Announce(Loss),
    Lead(super::lead::LeadStep),
    Usher(super::usher::UsherStep),
    Sweep(super::sweep::SweepStep),
}

/// What is under way to close the run.
#[derive(Clone, Debug)]
struct Closing {
    wish: Close,
    deadline: Time,
    /// The revision as of which this node knew of the run when this began.
    known: i64,
    /// How often the run had been reopened then, or by the first that is known of it. What was to be closed was
    /// closed where it is more often now.
    reopened: Option<u32>,
}

pub struct Machine {
    pub(super) settings: Settings,
    rng: u64,
    actions: Vec<Action>,
    last_id: u64,
    /// When the last input came.
    now: Time,

    pub(super) lease: Option<i64>,
    /// The TTL of the run's lease, while this node renews that.
    pub(super) run_lease: Option<Duration>,
    pub(super) control: Observed<Control>,
    pub(super) coordinator: Observed<(Coordinator, NodeId)>,
    pub(super) loss: Observed<Loss>,
    pub(super) usher: Observed<(Usher, NodeId)>,
    /// The revision at which the control record was created: another one is another run of the same name.
    incarnation: i64,
    pub(super) denied: Denied,
    pub(super) identity: Identity,
    /// The last leases that this node had: it was another node then, by the same names.
    pub(super) formers: VecDeque<NodeId>,
    /// What this node cannot read of the head, by key, and can't do without.
    unreadable: BTreeMap<&'static str, UnreadableRecord>,
    pub(super) head: Option<Head>,
    /// The watch of the head has ended and there is no new one yet.
    pub(super) deaf: bool,

    pub(super) call: Option<(CallId, Step)>,
    /// The highest revision that etcd has told, and what it was when the call under way began.
    revision: i64,
    known: i64,
    /// No step before this time: the last one failed in a way that time heals.
    pub(super) pause: Option<Time>,
    pub(super) joining: Option<Joining>,
    closing: Option<Closing>,
    observing: Option<Time>,

    pub(super) place: Place,
    /// The round that this node has asked to join: a copy of the request whose answer was lost may have come
    /// in time.
    pub(super) asked_for: Option<u64>,
    /// When to look after something: the missing coordinator or usher, the members of a closed world.
    pub(super) look_at: Option<Time>,
    pub(super) lead: Option<Lead>,
    pub(super) ushering: Option<Ushering>,
    pub(super) sweep: Option<Sweep>,
    /// The last attempt of this node to complete a round: if it did, others have left something before it.
    pub(super) leaves: Option<String>,
    /// How many nodes share the wish for a key that is missing, as was told last.
    pub(super) crowd: usize,
    pub(super) attempts: u64,
    pub(super) membership: Option<Membership>,
    excluded: Option<String>,
    /// The run was closed while this node waited for a place in it.
    pub(super) parked: bool,
    remark: Option<String>,
    said: VecDeque<String>,
}

impl Machine {
    pub fn new(settings: Settings) -> Self {
        Self {
            rng: settings.seed,
            settings,
            actions: Vec::new(),
            last_id: 0,
            now: Time::ZERO,
            lease: None,
            run_lease: None,
            control: Observed::default(),
            coordinator: Observed::default(),
            loss: Observed::default(),
            usher: Observed::default(),
            incarnation: 0,
            denied: Denied::default(),
            identity: Identity::default(),
            formers: VecDeque::new(),
            unreadable: BTreeMap::new(),
            head: None,
            deaf: false,
            call: None,
            revision: 0,
            known: 0,
            pause: None,
            joining: None,
            closing: None,
            observing: None,
            place: Place::Outside,
            asked_for: None,
            look_at: None,
            lead: None,
            ushering: None,
            sweep: None,
            leaves: None,
            crowd: 0,
            attempts: 0,
            membership: None,
            excluded: None,
            parked: false,
            remark: None,
            said: VecDeque::new(),
        }
    }

    /// Takes one input and gives back what is to be done.
    pub fn handle(&mut self, now: Time, input: Input) -> Vec<Action> {
        self.now = now;
        match input {
            Input::Join(master) => {
                (self.excluded, self.parked, self.remark) = (None, false, None);
                let why = self.why_again();
                self.stop_watching_members();
                self.joining = Some(Joining {
                    master,
                    started: now,
                    deadline: now + self.settings.join_timeout,
                    why,
                    confirmed: false,
                    newcomer: self.membership.is_none(),
                    seen_open: false,
                    parked: false,
                    extended: false,
                });
            }
            Input::Leave => self.leave(),
            Input::Close(wish) => {
                let deadline = now + self.settings.close_timeout;
                let known = self.control.as_of;
                let reopened = (known > 0).then(|| self.reopened());
                self.closing = Some(Closing { wish, deadline, known, reopened });
            }
            Input::Observe => self.observing = Some(now + self.settings.close_timeout),
            Input::Answer(id, answer) => {
                if let Some((_, step)) = self.call.take_if(|(call, _)| *call == id) {
                    if let Ok(Answer::Txn(reply)) = &answer {
                        self.has_reached(reply.revision);
                    }
                    match answer {
                        // etcd cannot be behind what was known when it was asked. Watches say it, too, but
                        // there may be none: the head's ends where rights are taken away, and who then asks
                        // again would never believe the answer.
                        Ok(Answer::Txn(reply)) if reply.revision < self.known => self.begin_anew(),
                        Ok(answer) => self.answered(now, step, answer),
                        Err(error) => self.failed(now, &step, error),
                    }
                }
            }
            Input::Watched(watch, message) => self.watched(now, watch, message),
            Input::LeaseLost(lease) => {
                if self.lease == Some(lease) {
                    if let Some(lease) = self.drop_lease() {
                        self.act(Action::Abandon(lease));
                    }
                } else if lease == self.settings.keys.run_lease() {
                    self.run_lease = None;
                }
            }
            Input::Tick => {}
        }
        self.advance(now);
        std::mem::take(&mut self.actions)
    }

    /// Unix time in seconds, for records.
    pub(super) fn unix(&self, time: Time) -> u64 {
        self.settings.epoch.saturating_add(time).as_secs()
    }

    pub(super) fn unix_now(&self) -> u64 {
        self.unix(self.now)
    }

    /// When to send [`Input::Tick`], if nothing comes before.
    pub fn next_deadline(&self) -> Option<Time> {
        // Who asks for these waits no longer, whatever the call under way is for.
        let asked = self.asked_until().min();
        if self.call.is_some() {
            return asked;
        }
        if self.pause.is_some() {
            // Whatever is due, the next step is taken when the pause ends.
            return self.pause.into_iter().chain(asked).min();
        }
        let lead = self.lead.as_ref().and_then(Lead::next_deadline);
        let ushering = self.ushering.as_ref().and_then(Ushering::next_deadline);
        let own = [self.look_at, lead, ushering].into_iter().flatten().min();
        // Without the head nothing of that can be done, and while the run is being closed nothing else is.
        let closes = self.closing.is_some();
        let own = own.filter(|_| self.head_is_known() && !closes);
        let joining = self.joining.as_ref().filter(|joining| !closes && !joining.parked);
        let joining = joining.map(|joining| joining.deadline);
        own.into_iter().chain(joining).chain(asked).min()
    }

    /// When those who have asked to close the run, or for its state, are to be answered at the latest.
    fn asked_until(&self) -> impl Iterator<Item = Time> {
        let slack = self.slack();
        let closing = self.closing.as_ref().map(|closing| closing.deadline);
        closing.into_iter().chain(self.observing).map(move |deadline| deadline + slack)
    }

    /// A call that is under way for them ends by their deadline, and says more.
    fn slack(&self) -> Duration {
        let own = matches!(self.call, Some((_, Step::Close | Step::ReadHead | Step::GrantRun)));
        if own { Duration::from_secs(1) } else { Duration::ZERO }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Who this node is at present: the id of its lease.
    pub fn node(&self) -> Option<NodeId> {
        self.lease
    }

    pub fn status(&self) -> Status {
        // Where a newer version has begun the run anew, what was closed is no more.
        let is_newer =
            self.unreadable.get("control").is_some_and(UnreadableRecord::is_of_another_version);
        let closed = self.closed().filter(|_| !is_newer).cloned();
        let told = self.coordinator.value.as_ref().map(|(told, _)| told);
        let member = self.membership.as_ref().filter(|_| self.joining.is_none());
        Status {
            waiting: if closed.is_some() { 0 } else { self.nodes_waiting() },
            closed,
            run_ttl: self.control.value.as_ref().map_or(0, |control| control.run_ttl),
            progress: Progress {
                round: self.control.value.as_ref().map_or(0, |control| control.round),
                current: self.control.value.as_ref().and_then(Control::current),
                joined: told.map_or(0, |told| told.joined as usize),
                last_call: told.is_some_and(|told| told.last_call),
                spare: matches!(self.place, Place::Waiting(_)),
                entered: matches!(self.place, Place::Joined(_)),
                member: member.map(|m| Member { rank: m.rank, world: m.world }),
            },
            broken: self.broken_round(),
            observed: self.head_is_known(),
            excluded: self.excluded(),
            parked: self.parked,
            remark: self.remark.clone(),
        }
    }

    /// Takes the next step, if none is under way.
    fn advance(&mut self, now: Time) {
        self.answer_the_late(now);
        // A step that is settled without a call leaves room for the next one.
        while self.call.is_none() && self.pause.is_none_or(|until| now >= until) {
            self.pause = None;
            let settled = self.step(now);
            if !settled {
                break;
            }
        }
    }

    /// Whatever is under way, who asked to close the run, or for its state, is answered in time.
    fn answer_the_late(&mut self, now: Time) {
        let slack = self.slack();
        let late = |deadline: Time| now >= deadline + slack;
        if self.closing.as_ref().is_some_and(|closing| late(closing.deadline)) {
            self.closing = None;
            if let Some((_, Step::Close)) = self.call {
                self.drop_call();
            }
            let text = "The run could not be closed in time.".to_string();
            self.act(Action::Closed(Err(RendezvousError::Timeout(text))));
        }
        if self.observing.is_some_and(late) {
            self.observing = None;
            let text = "etcd began no watch in time.".to_string();
            self.act(Action::Observed(Err(RendezvousError::Timeout(text))));
        }
    }

    /// `true` when something was settled without a call to etcd, so that another step may follow.
    fn step(&mut self, now: Time) -> bool {
        // What was read before the watch ended may be gone by now: then it is read again first.
        if self.head_is_known()
            && let Some(error) = self.unreadable.values().next().cloned()
        {
            self.fail_all(&error.into());
            return false;
        }
        if self.observing.is_some() && self.head_is_known() {
            self.observing = None;
            self.act(Action::Observed(Ok(())));
            return true;
        }
        if self.closing.is_some() {
            return self.step_close(now);
        }
        if self.joining.is_some() {
            return self.step_join(now);
        }
        if let Some(deadline) = self.observing {
            self.know_head(deadline);
            return false;
        }
        // Nobody asks for it now, but a member must learn of the next round whenever that may be.
        if self.deaf && !self.know_head(now + self.settings.close_timeout) {
            return false;
        }
        self.step_member(now);
        false
    }

    fn step_close(&mut self, now: Time) -> bool {
        let Some(Closing { wish, deadline, .. }) = self.closing.clone() else { return true };
        if !self.was_closed_meanwhile() {
            if !self.know_head(deadline.max(now)) {
                return false;
            }
            self.closing_knows();
        }
        if self.was_closed_meanwhile() {
            self.closing = None;
            self.act(Action::Closed(Ok(None)));
            return true;
        }
        if wish.only_member {
            if let Some(reason) = self.why_not_close() {
                self.closing = None;
                self.act(Action::Closed(Ok(Some(reason))));
                return true;
            }
        } else if let Some(error) = self.replaced() {
            self.closing = None;
            self.exclude(&error);
            self.act(Action::Closed(Err(error)));
            return true;
        }
        if self.ensure_run_lease(deadline) {
            let txn = self.close_txn(wish);
            self.txn(Step::Close, txn, deadline);
        }
        false
    }

    /// Somebody else has closed the run since this node was to do it; it may have been reopened since.
    fn was_closed_meanwhile(&self) -> bool {
        let Some(Closing { known, reopened: Some(before), .. }) = self.closing else {
            return false;
        };
        let is_news = self.control.as_of > known || self.head_is_known();
        is_news
            && (self.is_closed()
                || (self.reopened() > before && !self.settings.wrong(Variant::MissesReopening)))
    }

    /// The first that is known of the run after this node was to close it.
    fn closing_knows(&mut self) {
        let reopened = self.reopened();
        if let Some(closing) = &mut self.closing {
            closing.reopened.get_or_insert(reopened);
        }
    }

    /// How often the run has been reopened, as far as is known.
    fn reopened(&self) -> u32 {
        self.control.value.as_ref().map_or(0, |control| control.reopened)
    }

    fn close_txn(&self, wish: Close) -> Txn {
        let only_member = wish.only_member;
        let control = self.closed_record(wish);
        let mut guards = vec![self.control_unchanged()];
        if self.has_held_identity() {
            guards.extend(self.identity_unchanged());
        }
        let mut reads = self.get_head();
        if only_member && let Some((key, lease)) = self.own_member_key() {
            // Its lease may have run out, and this node not have been told yet.
            guards.push(Compare::new(key.clone(), Ordering::Equal, Target::Lease(lease)));
            reads.push(Op::get(key));
        }
        Txn::when(guards).then([self.put_control(&control)]).or_else(reads)
    }

    /// The record of a close keeps which world was the last one.
    fn closed_record(&self, wish: Close) -> Control {
        let Close { by, reason, at, ended, .. } = wish;
        let known = self.control.value.as_ref();
        let last = known
            .and_then(Control::last)
            .filter(|_| !self.settings.wrong(Variant::ForgetsPrevious));
        let state = State::Closed(Closed { by, reason, at, last, ended });
        match known {
            Some(control) => control.then(control.round, state),
            None => Control::first(self.settings.version, self.run_ttl_s(), 0, state),
        }
    }

    pub(super) fn close_answered(&mut self, reply: &TxnReply) {
        if reply.succeeded {
            if let Some(Closing { wish, .. }) = self.closing.clone() {
                let control = self.closed_record(wish);
                self.control_written(control, reply.revision);
            }
            return;
        }
        let unchanged = self.control.modified;
        self.observe_head(reply);
        let only_member = self.closing.as_ref().is_some_and(|closing| closing.wish.only_member);
        let own = reply.range(self.get_head().len()).kvs;
        if only_member && self.control.modified == unchanged && own.is_empty() {
            self.expel();
        }
    }

    pub(super) fn closed(&self) -> Option<&Closed> {
        match &self.control.value {
            Some(Control { state: State::Closed(closed), .. }) => Some(closed),
            _ => None,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed().is_some()
    }

    /// This node is none of the run, until it is told to join again.
    pub(super) fn exclude(&mut self, error: &RendezvousError) {
        if let RendezvousError::Denied(_) | RendezvousError::Replaced { .. } = error {
            self.excluded = Some(error.to_string());
        }
    }

    /// The text of an exclusion that is in force, or was when the barrier ended by it.
    pub(super) fn excluded(&self) -> Option<String> {
        self.excluded.clone().or_else(|| self.exclusion().map(|error| error.to_string()))
    }

    fn failed(&mut self, now: Time, step: &Step, error: EtcdError) {
        if let Step::GiveUp = step {
            // The time is up all the same; etcd only could not say who was there.
            return self.give_up_with(now, &TxnReply::default());
        }
        if let Step::Sweep(_) = step {
            // Whoever completes the next round sees to it.
            self.sweep = None;
            return;
        }
        if let EtcdError::Refused { kind: Refusal::LeaseNotFound, .. } = &error {
            self.pause = Some(now + Duration::from_millis(100));
            if let Step::Lead(_) = step {
                // A member died while its rank was written, and the watch has not said it yet: look.
                return self.reload();
            }
            if let Some(lease) = self.drop_lease() {
                // It may be the other lease that is not there.
                self.act(Action::Revoke(lease));
            }
            self.run_lease = None;
            return;
        }
        if let EtcdError::Compacted { .. } = &error {
            self.usher_anew();
            return self.reload();
        }
        if let Step::Confirm(_) | Step::Announce(_) | Step::ReadHead = step {
            let silence =
                matches!(error, EtcdError::Unreachable { .. } | EtcdError::Ambiguous { .. });
            let asked = [
                self.joining.as_ref().map(|joining| joining.deadline),
                self.closing.as_ref().map(|closing| closing.deadline),
                self.observing,
            ];
            // Silence of etcd is no news of the run: unless somebody's time is up, ask again.
            let time_is_up = asked.into_iter().flatten().any(|deadline| now >= deadline);
            if !(silence && time_is_up) {
                self.pause = Some(now + Duration::from_secs(1));
            }
            if silence && !time_is_up {
                return;
            }
        }
        self.fail_all(&RendezvousError::Etcd(error));
    }

    fn fail_all(&mut self, error: &RendezvousError) {
        if self.closing.take().is_some() {
            if let Some((_, Step::Close)) = self.call {
                self.drop_call();
            }
            self.act(Action::Closed(Err(error.clone())));
        }
        if self.observing.take().is_some() {
            self.act(Action::Observed(Err(error.clone())));
        }
        if self.joining.is_some() {
            self.finish(Err(error.clone()));
        }
    }

    fn watched(&mut self, now: Time, watch: WatchId, message: WatchMessage) {
        let of_head = self.head.is_some_and(|head| head.is(watch));
        let of_lead = self.lead.as_ref().is_some_and(|lead| lead.watches(watch));
        let of_usher = self.ushering.as_ref().is_some_and(|ushering| ushering.watches(watch));
        let is_ours = of_head || of_lead || of_usher || self.watches_as_member(watch);
        if is_ours && message == WatchMessage::HistoryLost {
            self.begin_anew();
        } else if of_head {
            self.head_watched(now, watch, message);
        } else if of_lead {
            self.lead_watched(now, watch, message);
        } else if of_usher {
            self.usher_watched(now, watch, message);
        } else {
            self.member_watched(watch, message);
        }
    }

    fn head_watched(&mut self, now: Time, watch: WatchId, message: WatchMessage) {
        let Some(head) = &mut self.head else { return };
        let of_name = head.watch != watch;
        match message {
            WatchMessage::Started(revision) => head.started(watch, revision),
            WatchMessage::Events(events) => {
                for event in &events {
                    self.has_reached(event.kv().mod_revision);
                    if of_name {
                        self.holder_event(event);
                    } else {
                        self.head_event(event);
                    }
                }
            }
            // Read it anew; what was missed is in what is there now.
            WatchMessage::Compacted { .. } => self.forget_head(),
            WatchMessage::Failed(error) => {
                self.forget_head();
                self.failed(now, &Step::ReadHead, error);
            }
            // The machine begins anew.
            WatchMessage::HistoryLost => {}
        }
    }

    fn forget_head(&mut self) {
        let head = self.head.take();
        self.unwatch(head.map(|head| head.watch));
        self.unwatch(head.and_then(|head| head.name).map(|(name, _)| name));
        self.deaf = true;
    }

    /// etcd was wiped, restored or replaced: what is known is of a history that is no more, revisions of
    /// now may be lower, and a lease that is there is one of the past. This node is another one from now
    /// on, and a member learns that its world is over.
    fn begin_anew(&mut self) {
        if let Some(lease) = self.drop_lease() {
            self.act(Action::Revoke(lease));
        }
        self.abandon_run_lease();
        self.stop_watching_members();
        self.forget_head();
        self.control = Observed::default();
        self.coordinator = Observed::default();
        self.loss = Observed::default();
        self.usher = Observed::default();
        self.denied = Denied::default();
        self.identity_anew();
        self.incarnation = 0;
        self.revision = 0;
        self.sweep = None;
        self.unreadable.clear();
    }

    fn has_reached(&mut self, revision: i64) {
        self.revision = self.revision.max(revision);
    }

    pub(super) fn head_is_known(&self) -> bool {
        self.head.is_some_and(|head| head.is_known())
    }

    /// Whether the head was read after its watch had begun; if not, sees to it.
    pub(super) fn know_head(&mut self, deadline: Time) -> bool {
        if self.head_is_known() {
            self.deaf = false;
            return true;
        }
        self.watch_head();
        // At once where this is the first call, which finds out if etcd is there at all: mostly nothing is
        // written in between. Who joins has just got a lease, and can wait.
        let early = self.joining.is_none();
        let is_due = |head: Head| match head.wanted() {
            Some(wanted) => head.read < wanted,
            None => early && head.read == 0,
        };
        if self.head.is_some_and(is_due) {
            let txn = Txn::when([]).then(self.get_head());
            self.txn(Step::ReadHead, txn, deadline);
        }
        false
    }

    pub(super) fn watch_head(&mut self) {
        if self.head.is_none() {
            let watch = self.watch_prefix(self.settings.keys.head(), 0, false);
            let name = self.holder_key().map(|key| {
                (self.watch(WatchSpec { key: key.into(), ..WatchSpec::default() }), None)
            });
            self.head = Some(Head { watch, from: None, read: 0, name });
        }
    }

    pub(super) fn head_was_read(&mut self, reply: &TxnReply) {
        self.observe_head(reply);
        if let Some(joining) = &mut self.joining {
            joining.confirmed = true;
        }
        if let Some(head) = &mut self.head {
            head.read = reply.revision;
        }
    }

    fn head_event(&mut self, event: &Event) {
        if self.denied_event(event) {
            return;
        }
        let kv = event.kv();
        let present = matches!(event, Event::Put(_));
        if kv.key == self.settings.keys.control().as_bytes() {
            self.observe_control(present.then_some(kv), kv.mod_revision);
        } else if kv.key == self.settings.keys.coordinator().as_bytes() {
            self.observe_coordinator(present.then_some(kv), kv.mod_revision);
        } else if kv.key == self.settings.keys.loss().as_bytes() {
            self.observe_loss(present.then_some(kv), kv.mod_revision);
        } else if kv.key == self.settings.keys.usher().as_bytes() {
            self.observe_usher(present.then_some(kv), kv.mod_revision);
        }
    }

    /// Takes over what `get_head` answered.
    pub(super) fn observe_head(&mut self, reply: &TxnReply) {
        self.observe_control(reply.range(0).kvs.first(), reply.revision);
        self.observe_coordinator(reply.range(1).kvs.first(), reply.revision);
        self.observe_loss(reply.range(2).kvs.first(), reply.revision);
        self.observe_denied(&reply.range(3).kvs, reply.revision);
        self.observe_usher(reply.range(4).kvs.first(), reply.revision);
        if self.settings.labels.node_id.is_some() {
            self.observe_holder(reply.range(5).kvs.first(), reply.revision);
        }
    }

    pub(super) fn observe_control(&mut self, kv: Option<&KeyValue>, as_of: i64) {
        if self.control.is_newer_than(as_of) {
            return;
        }
        let (created, modified) = kv.map_or((0, 0), |kv| (kv.create_revision, kv.mod_revision));
        let key = self.settings.keys.control();
        let decoded = kv.map(|kv| self.reader().control(&key, &kv.value)).transpose();
        match decoded {
            Ok(control) => {
                self.unreadable.remove("control");
                if created != self.incarnation {
                    // Another run of this name, or none: where this node was in the last one is nowhere now.
                    self.incarnation = created;
                    self.set_place(Place::Outside);
                    self.renew_run_lease_as(control.as_ref());
                }
                let is_news = self.control.modified != modified;
                self.control.set(control, modified, as_of);
                self.closing_knows();
                if is_news && matches!(self.call, Some((_, Step::Usher(_) | Step::Sweep(_)))) {
                    // That is about a round which is current no more, and this node may have to join the next.
                    self.drop_call();
                }
            }
            Err(error) => drop(self.unreadable.insert("control", error)),
        }
    }

    /// This node has created the run's record.
    pub(super) fn created_at(&mut self, revision: i64) {
        self.incarnation = revision;
    }

    pub(super) fn incarnation(&self) -> i64 {
        self.incarnation
    }

    /// What people should know of a round. Once: it is mostly the same in the next one.
    pub(super) fn say(&mut self, remark: String) {
        if !self.said.contains(&remark) {
            self.remark = Some(remark.clone());
            self.said.push_back(remark);
            if self.said.len() > REMARKS {
                self.said.pop_front();
            }
        }
    }

    pub(super) fn now(&self) -> Time {
        self.now
    }

    /// What a record of the head that cannot be read means: that of a version that this node does not know
    /// must not be passed over, garbage is.
    fn readable<T>(
        &mut self,
        name: &'static str,
        record: Option<Result<T, UnreadableRecord>>,
    ) -> Option<T> {
        self.unreadable.remove(name);
        match record? {
            Ok(record) => Some(record),
            Err(error) => {
                if error.is_of_another_version() && !self.settings.wrong(Variant::TakesNewerRecords)
                {
                    self.unreadable.insert(name, error);
                }
                None
            }
        }
    }

    pub(super) fn observe_coordinator(&mut self, kv: Option<&KeyValue>, as_of: i64) {
        if self.coordinator.is_newer_than(as_of) {
            return;
        }
        let key = self.settings.keys.coordinator();
        // A record that cannot be read, or that no lease will remove, is no coordinator's: see `claim`.
        let held = kv.filter(|kv| kv.lease != 0);
        let record = held.map(|kv| self.reader().record(&key, &kv.value));
        let value = self.readable("coordinator", record);
        let value: Option<(Coordinator, NodeId)> = value.zip(held.map(|kv| kv.lease));
        self.coordinator.set(value, kv.map_or(0, |kv| kv.mod_revision), as_of);
        if let Some((told, _)) = &self.coordinator.value {
            self.crowd = told.joined as usize;
            self.look_at = None;
        }
    }

    fn observe_loss(&mut self, kv: Option<&KeyValue>, as_of: i64) {
        if self.loss.is_newer_than(as_of) {
            return;
        }
        let key = self.settings.keys.loss();
        // A record that cannot be read is none, and is replaced by the next.
        let record = kv.map(|kv| self.reader().record(&key, &kv.value));
        let value = self.readable("loss", record);
        self.loss.set(value, kv.map_or(0, |kv| kv.mod_revision), as_of);
    }

    pub(super) fn observe_usher(&mut self, kv: Option<&KeyValue>, as_of: i64) {
        if self.usher.is_newer_than(as_of) {
            return;
        }
        let key = self.settings.keys.usher();
        let held = kv.filter(|kv| kv.lease != 0);
        let record = held.map(|kv| self.reader().record(&key, &kv.value));
        let value = self.readable("usher", record);
        let value: Option<(Usher, NodeId)> = value.zip(held.map(|kv| kv.lease));
        self.usher.set(value, kv.map_or(0, |kv| kv.mod_revision), as_of);
        if let (Place::Waiting(_), Some(_)) = (self.place, &self.usher.value) {
            self.look_at = None;
        }
    }

    /// A record that this node cannot read because it is of a version that it does not know.
    pub(super) fn another_version(&self) -> Option<&UnreadableRecord> {
        self.unreadable.values().find(|error| error.is_of_another_version())
    }

    pub(super) fn reader(&self) -> Reader {
        Reader { newest: self.settings.version }
    }

    /// A record of this run.
    pub(super) fn encode<T: serde::Serialize>(&self, record: &T) -> Vec<u8> {
        let version = self.control.value.as_ref().map(|control| control.version);
        records::encode(record, version.unwrap_or(self.settings.version))
    }

    pub(super) fn run_ttl_s(&self) -> u64 {
        let known = self.run_lease.filter(|_| !self.settings.wrong(Variant::KnowsLeaseOfLastRun));
        known.unwrap_or(self.settings.run_ttl).as_secs()
    }

    /// The TTL of the run's lease, as the run's record has it.
    pub(super) fn run_ttl(&self) -> Duration {
        let known = self.control.value.as_ref().map_or(0, |control| control.run_ttl);
        if known == 0 || self.settings.wrong(Variant::OwnTtl) {
            self.run_lease.unwrap_or(self.settings.run_ttl)
        } else {
            Duration::from_secs(known)
        }
    }

    pub(super) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub(super) fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// The answer of the call under way is not wanted any more.
    pub(super) fn drop_call(&mut self) {
        // A lease that has been granted all the same holds no key, and runs out.
        let Some((call, _)) = self.call.take() else { return };
        self.act(Action::Cancel(call));
    }

    pub(super) fn txn(&mut self, step: Step, txn: Txn, deadline: Time) {
        let id = self.new_id();
        self.call = Some((id, step));
        self.known = self.revision;
        self.act(Action::Txn(id, txn, deadline));
    }

    pub(super) fn grant(&mut self, step: Step, lease: Wanted, ttl: Duration, deadline: Time) {
        let id = self.new_id();
        self.call = Some((id, step));
        self.act(Action::Grant(id, lease, ttl, deadline));
    }

    pub(super) fn watch(&mut self, spec: WatchSpec) -> WatchId {
        let id = self.new_id();
        self.act(Action::Watch(id, spec));
        id
    }

    /// From now on where `start_revision` is 0.
    pub(super) fn watch_prefix(
        &mut self,
        prefix: String,
        start_revision: i64,
        deletes_only: bool,
    ) -> WatchId {
        let range_end = Some(prefix_end(prefix.as_bytes()));
        let key = prefix.into();
        let with_previous = false;
        self.watch(WatchSpec { key, range_end, start_revision, deletes_only, with_previous })
    }

    pub(super) fn unwatch(&mut self, watch: Option<WatchId>) {
        if let Some(watch) = watch {
            self.act(Action::Unwatch(watch));
        }
    }

    /// Up to `most`, different for each node and each time.
    pub(super) fn jitter(&mut self, most: Duration) -> Duration {
        let share = self.random() >> 11;
        // 53 bits fit a float exactly.
        #[allow(clippy::cast_precision_loss, reason = "the value has 53 bits")]
        most.mul_f64(share as f64 / (1_u64 << 53) as f64)
    }

    pub(super) fn random_lease(&mut self) -> i64 {
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

/// What the simulator looks at, and a driver has no use for.
#[cfg(test)]
impl Machine {
    /// Who it was, as far as it remembers.
    pub fn former_nodes(&self) -> impl Iterator<Item = NodeId> {
        self.formers.iter().copied()
    }

    /// Wants to be in the next round.
    pub fn is_joining(&self) -> bool {
        self.joining.is_some()
    }

    /// The watch of the head, where all that is there has been read.
    pub fn known_head(&self) -> Option<WatchId> {
        self.head.filter(|head| head.is_known()).map(|head| head.watch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        let second = Duration::from_secs(1);
        Machine::new(Settings {
            keys: Keys::new("/p/run_a"),
            min: 1,
            max: 1,
            join_timeout: second * 60,
            last_call: second,
            close_timeout: second * 10,
            ttl: second * 10,
            run_ttl: second * 100,
            on_member_loss: OnMemberLoss::Restart,
            survivor_grace: second,
            reopen_if_closed: false,
            version: 1,
            node: NodeInfo::default(),
            labels: Labels::default(),
            order: RankOrder::Stable,
            epoch: Duration::ZERO,
            seed: 1,
            tuning: Tuning::default(),
        })
    }

    /// Found by fuzzing: it was not answered before the barrier was over, and the node asked for ticks
    /// without end meanwhile.
    #[test]
    fn who_asks_during_a_barrier_is_answered_in_time() {
        let mut node = machine();
        let actions = node.handle(Time::ZERO, Input::Join(Master { addr: "a".into(), port: 1 }));
        let Some(Action::Grant(call, ..)) = actions.last() else { panic!("{actions:?}") };
        node.handle(
            Time::ZERO,
            Input::Answer(*call, Ok(Answer::Granted(7, Duration::from_secs(10)))),
        );
        // etcd does not say where the watch of the head begins, so nothing else can be done.
        node.handle(Time::ZERO, Input::Observe);
        let due = node.next_deadline().expect("a deadline");
        assert_eq!(due, Duration::from_secs(10));
        let actions = node.handle(due, Input::Tick);
        let expected = "Observed(Err(Timeout(\"etcd began no watch in time.\")))";
        assert_eq!(format!("{actions:?}"), format!("[{expected}]"));
        assert_eq!(node.next_deadline(), Some(Duration::from_secs(60)));
    }

    /// The same of a barrier whose time is up while the run is being closed.
    #[test]
    fn nothing_else_is_due_while_the_run_is_being_closed() {
        let mut node = machine();
        let actions = node.handle(Time::ZERO, Input::Join(Master { addr: "a".into(), port: 1 }));
        let Some(Action::Grant(call, ..)) = actions.last() else { panic!("{actions:?}") };
        node.handle(
            Time::ZERO,
            Input::Answer(*call, Ok(Answer::Granted(7, Duration::from_secs(10)))),
        );
        node.handle(Duration::from_secs(55), Input::Close(Close::default()));
        assert_eq!(node.next_deadline(), Some(Duration::from_secs(65)));
    }
}
