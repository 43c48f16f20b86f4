//! The protocol core of one node: what it knows of etcd, what it is doing, and the door to both.
//!
//! The rules themselves are in `steps.rs` (joining), `lead.rs` (completing a round) and `member.rs`
//! (between rounds). They are level-triggered: after each input [`Machine::advance`] looks at what is
//! known and takes the one next step. One call to etcd is under way at a time, and every transaction is
//! guarded by the control record's revision, so repeating one whose answer was lost is harmless.

use std::collections::VecDeque;
use std::time::Duration;

use super::denied::{Denied, DeniedNode};
use super::identity::Identity;
use super::keys::{Keys, NodeId};
use super::labels::Labels;
use super::lead::Lead;
use super::member::Membership;
use super::ranks::RankOrder;
use super::records::{
    self, Closed, Control, Coordinator, CorruptRecord, Loss, Master, NodeInfo, State,
};
use crate::etcd::kv::{Event, KeyValue, Txn, TxnReply, prefix_end};
use crate::etcd::{EtcdError, Refusal, WatchMessage, WatchSpec};

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
    pub close_timeout: Duration,
    /// TTL of the node's lease.
    pub ttl: Duration,
    /// TTL of the run's lease.
    pub run_ttl: Duration,
    pub on_member_loss: OnMemberLoss,
    pub node: NodeInfo,
    pub labels: Labels,
    pub order: RankOrder,
    /// The Unix time at [`Time`] zero; the driver sets it.
    pub epoch: Duration,
    /// For lease ids and for pauses that must differ between nodes.
    pub seed: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Take part in the next round. The result comes as [`Action::Joined`].
    Join(Master),
    /// Stop joining and give up membership: the lease is revoked, nobody waits for it to run out.
    Leave,
    /// Close the run for good. The result comes as [`Action::Closed`].
    Close {
        by: String,
        reason: String,
        at: u64,
    },
    /// Learn the run's state without taking part; comes as [`Action::Observed`].
    Observe,
    Answer(CallId, Result<Answer, EtcdError>),
    Watched(WatchId, WatchMessage),
    /// etcd does not have this lease any more: the node's or the run's.
    LeaseLost(i64),
    /// Nothing but the time.
    Tick,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Txn(TxnReply),
    Granted,
    /// What the lease has left; `None` when it is gone.
    TimeToLive(Option<Duration>),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Run it as often as needed until it is answered: repeating it is harmless.
    Txn(CallId, Txn, Time),
    Grant(CallId, i64, Duration, Time),
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
    Joined(Result<Outcome, RendezvousError>),
    Closed(Result<(), RendezvousError>),
    Observed(Result<(), RendezvousError>),
}

/// A place in a completed round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub round: u64,
    pub rank: u32,
    pub world: u32,
    pub master: Master,
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
    Corrupt(#[from] CorruptRecord),
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

/// What can be told without asking etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Nodes that could change the world of this member, lost members among them.
    pub waiting: usize,
    pub closed: Option<Closed>,
    pub progress: Progress,
    /// Why nobody should wait any longer for a member of this round.
    pub broken: Option<(u64, String)>,
    /// The state of the run is being watched.
    pub observed: bool,
    /// Why this node is none of the run: it was denied, or replaced. It must not close the run then.
    pub excluded: Option<String>,
    /// What was odd about the ranks that this node gave as coordinator.
    pub remark: Option<String>,
}

/// For the log lines of a node that waits in the barrier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub round: u64,
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
}

/// A node's wish to be in the next round.
#[derive(Clone, Debug)]
pub(super) struct Joining {
    pub master: Master,
    pub started: Time,
    pub deadline: Time,
    /// What this node knew, as a member of a world, when it was told to join again.
    pub why: Option<String>,
    /// The head was read since, so that nobody is turned away for what was.
    pub confirmed: bool,
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
    GrantNode(i64),
    GrantRun,
    ReadHead,
    JoinRound(u64),
    /// With the record that opens the round.
    Open(Box<Control>),
    ReadMembership(u64),
    Wait(u64),
    Recount(u64),
    Claim,
    GiveUp,
    Close,
    Confirm(u64),
    /// With the record of the loss.
    Announce(Loss),
    Lead(super::lead::LeadStep),
}

pub struct Machine {
    pub(super) settings: Settings,
    rng: u64,
    actions: Vec<Action>,
    last_id: u64,
    /// When the last input came.
    now: Time,

    pub(super) lease: Option<i64>,
    pub(super) run_lease: bool,
    pub(super) control: Observed<Control>,
    pub(super) coordinator: Observed<(Coordinator, NodeId)>,
    pub(super) loss: Observed<Loss>,
    pub(super) denied: Denied,
    pub(super) identity: Identity,
    /// The last leases that this node had: it was another node then, by the same names.
    pub(super) formers: VecDeque<NodeId>,
    corrupt: Option<CorruptRecord>,
    pub(super) head: Option<Head>,
    /// The watch of the head has ended and there is no new one yet.
    pub(super) deaf: bool,

    pub(super) call: Option<(CallId, Step)>,
    /// No step before this time: the last one failed in a way that time heals.
    pub(super) pause: Option<Time>,
    pub(super) joining: Option<Joining>,
    closing: Option<(Closed, Time)>,
    /// Since this node was told to close the run, somebody has; it may have been reopened since.
    seen_closed: bool,
    observing: Option<Time>,

    pub(super) place: Place,
    pub(super) waiting_watch: Option<WatchId>,
    /// When to look after something: the missing coordinator, the members of a world we wait for.
    pub(super) look_at: Option<Time>,
    pub(super) lead: Option<Lead>,
    pub(super) attempts: u64,
    pub(super) membership: Option<Membership>,
    excluded: Option<String>,
    pub(super) remark: Option<String>,
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
            run_lease: false,
            control: Observed::default(),
            coordinator: Observed::default(),
            loss: Observed::default(),
            denied: Denied::default(),
            identity: Identity::default(),
            formers: VecDeque::new(),
            corrupt: None,
            head: None,
            deaf: false,
            call: None,
            pause: None,
            joining: None,
            closing: None,
            seen_closed: false,
            observing: None,
            place: Place::Outside,
            waiting_watch: None,
            look_at: None,
            lead: None,
            attempts: 0,
            membership: None,
            excluded: None,
            remark: None,
        }
    }

    /// Takes one input and gives back what is to be done.
    pub fn handle(&mut self, now: Time, input: Input) -> Vec<Action> {
        self.now = now;
        match input {
            Input::Join(master) => {
                (self.excluded, self.remark) = (None, None);
                let why = self.why_again();
                self.stop_watching_members();
                let deadline = now + self.settings.join_timeout;
                self.joining =
                    Some(Joining { master, started: now, deadline, why, confirmed: false });
            }
            Input::Leave => self.leave(),
            Input::Close { by, reason, at } => {
                self.seen_closed = false;
                self.closing = Some((Closed { by, reason, at }, now + self.settings.close_timeout));
            }
            Input::Observe => self.observing = Some(now + self.settings.close_timeout),
            Input::Answer(id, answer) => {
                if let Some((_, step)) = self.call.take_if(|(call, _)| *call == id) {
                    match answer {
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
                    self.run_lease = false;
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
        if self.call.is_some() {
            return None;
        }
        if self.pause.is_some() {
            // Whatever is due, the next step is taken when the pause ends.
            return self.pause;
        }
        let lead = self.lead.as_ref().and_then(Lead::next_deadline);
        let own = [self.look_at, lead].into_iter().flatten().min();
        // Without the head nothing of that can be done, and while the run is being closed nothing else is.
        let closes = self.closing.is_some();
        let own = own.filter(|_| self.head_is_known() && !closes);
        let joining = self.joining.as_ref().filter(|_| !closes).map(|joining| joining.deadline);
        let closing = self.closing.as_ref().map(|(_, deadline)| *deadline);
        [own, joining, closing, self.observing].into_iter().flatten().min()
    }

    pub fn status(&self) -> Status {
        let closed = match self.control.value.as_ref().map(|control| &control.state) {
            Some(State::Closed(closed)) => Some(closed.clone()),
            _ => None,
        };
        let told = self.coordinator.value.as_ref().map(|(told, _)| told);
        let member = self.membership.as_ref().filter(|_| self.joining.is_none());
        Status {
            waiting: if closed.is_some() { 0 } else { self.nodes_waiting() },
            closed,
            progress: Progress {
                round: self.control.value.as_ref().map_or(0, |control| control.round),
                joined: told.map_or(0, |told| told.joined as usize),
                last_call: told.is_some_and(|told| told.last_call),
                spare: matches!(self.place, Place::Waiting(_)),
                entered: matches!(self.place, Place::Joined(_)),
                member: member.map(|m| Member { rank: m.rank, world: m.world }),
            },
            broken: self.broken_round(),
            observed: self.head_is_known(),
            excluded: self.excluded.clone().or_else(|| self.exclusion().map(|e| e.to_string())),
            remark: self.remark.clone(),
        }
    }

    /// Takes the next step, if none is under way.
    fn advance(&mut self, now: Time) {
        // A step that is settled without a call leaves room for the next one.
        while self.call.is_none() && self.pause.is_none_or(|until| now >= until) {
            self.pause = None;
            let settled = self.step(now);
            if !settled {
                break;
            }
        }
    }

    /// `true` when something was settled without a call to etcd, so that another step may follow.
    fn step(&mut self, now: Time) -> bool {
        if let Some(error) = self.corrupt.clone() {
            self.fail_all(&error.into());
            return false;
        }
        // Whatever else is going on, who only asks is answered in time.
        let known = self.head_is_known();
        if self.observing.is_some_and(|deadline| known || now >= deadline) {
            self.observing = None;
            let late = || RendezvousError::Timeout("etcd began no watch in time.".into());
            self.act(Action::Observed(if known { Ok(()) } else { Err(late()) }));
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
        let Some((closed, deadline)) = self.closing.clone() else { return true };
        if !self.know_head(deadline) && (self.call.is_some() || now < deadline) {
            return false;
        }
        if now >= deadline {
            self.closing = None;
            let text = "The run could not be closed in time.".to_string();
            self.act(Action::Closed(Err(RendezvousError::Timeout(text))));
            return true;
        }
        if self.seen_closed || self.is_closed() {
            self.closing = None;
            self.act(Action::Closed(Ok(())));
            return true;
        }
        if let Some(error) = self.replaced() {
            self.closing = None;
            self.exclude(&error);
            self.act(Action::Closed(Err(error)));
            return true;
        }
        let round = self.control.value.as_ref().map_or(0, |control| control.round);
        if self.ensure_run_lease(deadline) {
            let control = Control::new(round, State::Closed(closed));
            let mut guards = vec![self.control_unchanged()];
            if self.has_held_identity() {
                guards.extend(self.identity_unchanged());
            }
            let txn = Txn::when(guards).then([self.put_control(&control)]).or_else(self.get_head());
            self.txn(Step::Close, txn, deadline);
        }
        false
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.control.value, Some(Control { state: State::Closed(_), .. }))
    }

    /// This node is none of the run, until it is told to join again.
    pub(super) fn exclude(&mut self, error: &RendezvousError) {
        if let RendezvousError::Denied(_) | RendezvousError::Replaced { .. } = error {
            self.excluded = Some(error.to_string());
        }
    }

    pub(super) fn closed_written(&mut self, revision: i64) {
        if let Some((closed, _)) = &self.closing {
            let round = self.control.value.as_ref().map_or(0, |control| control.round);
            self.control_written(Control::new(round, State::Closed(closed.clone())), revision);
        }
    }

    fn failed(&mut self, now: Time, step: &Step, error: EtcdError) {
        if let Step::GiveUp = step {
            // The time is up all the same; etcd only could not say who was there.
            return self.give_up_with(now, &TxnReply::default());
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
            self.run_lease = false;
            return;
        }
        if let EtcdError::Compacted { .. } = &error {
            return self.reload();
        }
        if let Step::Confirm(_) | Step::Announce(_) | Step::ReadHead = step {
            let silence =
                matches!(error, EtcdError::Unreachable { .. } | EtcdError::Ambiguous { .. });
            let asked = [
                self.joining.as_ref().map(|joining| joining.deadline),
                self.closing.as_ref().map(|(_, deadline)| *deadline),
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
        let is_ours = self.head.is_some_and(|head| head.watch == watch)
            || self.lead.as_ref().is_some_and(|lead| lead.watches(watch))
            || self.waiting_watch == Some(watch)
            || self.watches_as_member(watch);
        if is_ours && message == WatchMessage::HistoryLost {
            self.begin_anew();
        } else if let Some(head) = self.head.as_mut().filter(|head| head.watch == watch) {
            match message {
                WatchMessage::Started(revision) => head.from = Some(revision),
                WatchMessage::Events(events) => {
                    for event in &events {
                        self.head_event(event);
                    }
                }
                // Read it anew; what was missed is in what is there now.
                WatchMessage::Compacted { .. } => {
                    self.head = None;
                    self.deaf = true;
                }
                WatchMessage::Failed(error) => {
                    self.head = None;
                    self.deaf = true;
                    self.failed(now, &Step::ReadHead, error);
                }
                // Above.
                WatchMessage::HistoryLost => {}
            }
        } else if self.lead.as_ref().is_some_and(|lead| lead.watches(watch)) {
            self.lead_watched(now, watch, message);
        } else if self.waiting_watch == Some(watch) {
            // A member of the world we wait for is gone: look whether anybody is left, not all at once.
            if let WatchMessage::Compacted { .. } = message {
                self.waiting_watch = None;
            }
            if self.look_at.is_none() {
                let pause = self.jitter(Duration::from_millis(500));
                self.look_at = Some(now + Duration::from_millis(100) + pause);
            }
        } else {
            self.member_watched(watch, message);
        }
    }

    /// etcd was wiped, restored or replaced: what is known is of a history that is no more, revisions of
    /// now may be lower, and a lease that is there is one of the past. This node is another one from now
    /// on, and a member learns that its world is over.
    fn begin_anew(&mut self) {
        if let Some(lease) = self.drop_lease() {
            self.act(Action::Revoke(lease));
        }
        if std::mem::take(&mut self.run_lease) {
            self.act(Action::Abandon(self.settings.keys.run_lease()));
        }
        self.stop_watching_members();
        let head = self.head.take();
        self.unwatch(head.map(|head| head.watch));
        self.deaf = true;
        self.control = Observed::default();
        self.coordinator = Observed::default();
        self.loss = Observed::default();
        self.denied = Denied::default();
        self.identity_anew();
        self.corrupt = None;
    }

    pub(super) fn head_is_known(&self) -> bool {
        let known = |head: Head| head.from.is_some_and(|from| head.read >= from);
        self.head.is_some_and(known)
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
        let early = i64::from(self.joining.is_none());
        if self.head.is_some_and(|head| head.read < head.from.unwrap_or(early)) {
            let txn = Txn::when([]).then(self.get_head());
            self.txn(Step::ReadHead, txn, deadline);
        }
        false
    }

    pub(super) fn watch_head(&mut self) {
        if self.head.is_none() {
            let watch = self.watch_prefix(self.settings.keys.head(), 0, false);
            self.head = Some(Head { watch, from: None, read: 0 });
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
        if self.denied_event(event) || self.replaced_event(event) {
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
        }
    }

    /// Takes over what `get_head` answered.
    pub(super) fn observe_head(&mut self, reply: &TxnReply) {
        self.observe_control(reply.range(0).kvs.first(), reply.revision);
        self.observe_coordinator(reply.range(1).kvs.first(), reply.revision);
        self.observe_loss(reply.range(2).kvs.first(), reply.revision);
        self.observe_denied(&reply.range(3).kvs, reply.revision);
        if self.settings.labels.node_id.is_some() {
            self.observe_holder(reply.range(4).kvs.first(), reply.revision);
            self.observe_replaced(&reply.range(5).kvs, reply.revision);
        }
    }

    pub(super) fn observe_control(&mut self, kv: Option<&KeyValue>, as_of: i64) {
        if self.control.is_newer_than(as_of) {
            return;
        }
        let modified = kv.map_or(0, |kv| kv.mod_revision);
        let decoded = kv
            .map(|kv| records::decode_control(&self.settings.keys.control(), &kv.value))
            .transpose();
        match decoded {
            Ok(control) => {
                self.corrupt = None;
                self.seen_closed |= control.as_ref().is_some_and(Control::was_closed);
                self.control.set(control, modified, as_of);
            }
            Err(error) => self.corrupt = Some(error),
        }
    }

    pub(super) fn observe_coordinator(&mut self, kv: Option<&KeyValue>, as_of: i64) {
        let key = self.settings.keys.coordinator();
        // A record that cannot be read, or that no lease will remove, is no coordinator's: see `claim`.
        let held = kv.filter(|kv| kv.lease != 0);
        let value = held.and_then(|kv| Some((records::decode(&key, &kv.value).ok()?, kv.lease)));
        self.coordinator.set(value, kv.map_or(0, |kv| kv.mod_revision), as_of);
        if self.coordinator.value.is_some() {
            self.look_at = None;
        }
    }

    fn observe_loss(&mut self, kv: Option<&KeyValue>, as_of: i64) {
        // A record that cannot be read is none, and is replaced by the next.
        let value = kv.and_then(|kv| records::decode("", &kv.value).ok());
        self.loss.set(value, kv.map_or(0, |kv| kv.mod_revision), as_of);
    }

    pub(super) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub(super) fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn txn(&mut self, step: Step, txn: Txn, deadline: Time) {
        let id = self.new_id();
        self.call = Some((id, step));
        self.act(Action::Txn(id, txn, deadline));
    }

    pub(super) fn grant(&mut self, step: Step, lease: i64, ttl: Duration, deadline: Time) {
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
        self.watch(WatchSpec { key: prefix.into(), range_end, start_revision, deletes_only })
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
            node: NodeInfo::default(),
            labels: Labels::default(),
            order: RankOrder::Stable,
            epoch: Duration::ZERO,
            seed: 1,
        })
    }

    /// Found by fuzzing: it was not answered before the barrier was over, and the node asked for ticks
    /// without end meanwhile.
    #[test]
    fn who_asks_during_a_barrier_is_answered_in_time() {
        let mut node = machine();
        let actions = node.handle(Time::ZERO, Input::Join(Master { addr: "a".into(), port: 1 }));
        let Some(Action::Grant(call, ..)) = actions.last() else { panic!("{actions:?}") };
        node.handle(Time::ZERO, Input::Answer(*call, Ok(Answer::Granted)));
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
        node.handle(Time::ZERO, Input::Answer(*call, Ok(Answer::Granted)));
        let close = Input::Close { by: String::new(), reason: String::new(), at: 0 };
        node.handle(Duration::from_secs(55), close);
        assert_eq!(node.next_deadline(), Some(Duration::from_secs(65)));
    }
}
