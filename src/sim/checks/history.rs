//! What the keys of the run said, revision by revision.

use std::collections::{BTreeMap, BTreeSet};

use super::round::{Limits, Nth, Round, Since};
use super::violation::Violation;
use crate::rendezvous::keys::{Keys, NodeId, node_of};
use crate::rendezvous::records::{Control, Final, State, Waiting};
use crate::rendezvous::{Outcome, Time};
use crate::sim::model::Touched;
use crate::sim::reader::READER;

pub struct History {
    pub control_key: String,
    usher_key: String,
    /// The usher, and when it last was another one or nobody.
    usher: Option<i64>,
    pub usher_changed: Time,
    /// The control record.
    pub control: Option<Control>,
    /// The prefix of all rounds.
    in_rounds: String,
    /// How often the run has restarted: its keys were deleted, or ran out, or etcd was wiped.
    pub epoch: u64,
    rounds: BTreeMap<Nth, Round>,
    pub closed: Option<Since>,
    /// What is written now is an operator's reopening.
    pub reopening: bool,
    /// When the run was closed that was reopened last, and when it was reopened.
    pub reopened: Option<(Since, Since)>,
    /// How many rounds were opened and completed so far, in all epochs.
    pub opened: u64,
    pub completed: u64,
}

impl History {
    pub fn new(keys: &Keys) -> Self {
        Self {
            control_key: keys.control(),
            usher_key: keys.usher(),
            usher: None,
            usher_changed: Time::ZERO,
            control: None,
            in_rounds: keys.round(0).replace("0/", ""),
            epoch: 0,
            rounds: BTreeMap::new(),
            closed: None,
            reopening: false,
            reopened: None,
            opened: 0,
            completed: 0,
        }
    }

    /// What comes now is another run of the same name. What was is remembered: its nodes may be there.
    pub fn begin_anew(&mut self) {
        self.epoch += 1;
        self.control = None;
        (self.closed, self.reopened) = (None, None);
    }

    /// Returns the round that this write completes. `limits` are those of the node that wrote.
    pub fn take(
        &mut self,
        now: Time,
        touched: &Touched,
        limits: Limits,
    ) -> Result<Option<Nth>, Violation> {
        let kv = &touched.kv;
        let since = Since { revision: kv.mod_revision, at: now };
        let Ok(key) = std::str::from_utf8(&kv.key) else { return Ok(None) };
        if key == self.control_key {
            if touched.deleted {
                self.begin_anew();
                return Ok(None);
            }
            return self.control_written(since, &kv.value, limits);
        }
        if key == self.usher_key {
            let usher = Some(kv.lease).filter(|_| !touched.deleted);
            if usher != self.usher {
                (self.usher, self.usher_changed) = (usher, now);
            }
        }
        let Some(rest) = key.strip_prefix(&self.in_rounds) else { return Ok(None) };
        let parts: Vec<&str> = rest.split('/').collect();
        if let ([round, kind, rest @ ..], Some(node)) = (&parts[..], node_of(&kv.key))
            && let Ok(round) = round.parse()
        {
            let attempt = rest.first().copied().unwrap_or_default();
            if *kind == "member" && touched.deleted {
                self.member_gone(round, node, attempt, since);
                return Ok(None);
            }
            let round = self.rounds.entry(Nth { epoch: self.epoch, round }).or_default();
            match *kind {
                "member" => round.member_written(node, attempt, since, &kv.value),
                "waiting" if touched.deleted => drop(round.waiting.remove(&node)),
                "join" if touched.deleted => drop(round.joining.remove(&node)),
                "join" => {
                    round.joined.insert(node, kv.create_revision);
                    round.joining.insert(node);
                }
                "waiting" => {
                    let waits: Option<Waiting> = READER.record("waiting", &kv.value).ok();
                    round.domains.insert(node, waits.and_then(|waits| waits.labels.domain));
                    round.waiting.entry(node).or_insert(since);
                    round.waited.get_or_insert(since);
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// The round of that number that has the key: the keys of an epoch are deleted after its record.
    fn member_gone(&mut self, round: u64, node: NodeId, attempt: &str, since: Since) {
        let of_number = self.rounds.iter_mut().rev().filter(|(nth, _)| nth.round == round);
        for (_, round) in of_number {
            if round.member_gone(node, attempt, since) {
                return;
            }
        }
    }

    fn control_written(
        &mut self,
        since: Since,
        value: &[u8],
        limits: Limits,
    ) -> Result<Option<Nth>, Violation> {
        let control = READER
            .control("control", value)
            .map_err(|error| Violation::new("record", error.to_string()))?;
        let nth = Nth { epoch: self.epoch, round: control.round };
        let out_of_order = |text: &str| {
            let text = format!("{text}: {control:?} at {}", since.revision);
            Err(Violation::new("I2", text))
        };
        let reopening = std::mem::take(&mut self.reopening);
        if let Some(closed) = self.closed {
            if !reopening {
                let text = format!(
                    "the control record was closed at {} and is {control:?} at {}",
                    closed.revision, since.revision
                );
                return Err(Violation::new("I4", text));
            }
            (self.closed, self.reopened) = (None, Some((closed, since)));
        }
        self.control = Some(control.clone());
        let newest = self.current().map(|(newest, _)| newest.round);
        match &control.state {
            State::Open { previous, .. } => {
                let after = previous.as_ref().map_or(0, |previous| previous.id.round);
                let next = newest.unwrap_or(0) + 1 == control.round;
                if !reopening && (!next || after + 1 != control.round) {
                    return out_of_order("a round opened out of order");
                }
                let known = self.last_completed().and_then(|(_, round)| round.final_());
                let named =
                    previous.as_ref().map(|previous| (&previous.id.attempt, previous.world));
                if named != known.map(|(_, complete)| (&complete.attempt, complete.world)) {
                    let text = format!("{control:?} follows {known:?}");
                    return Err(Violation::new("previous", text));
                }
                let round = self.rounds.entry(nth).or_default();
                round.opened = Some(since);
                round.previous = previous.as_ref().map(|previous| previous.id.round);
                self.opened += 1;
                Ok(None)
            }
            State::Final(complete) => {
                let round = self.rounds.entry(nth).or_default();
                if newest != Some(control.round) || round.completed.is_some() {
                    return out_of_order("a round completed that was not open");
                }
                round.complete(since, complete, limits);
                self.completed += 1;
                Ok(Some(nth))
            }
            State::Closed(_) => {
                self.closed = Some(since);
                Ok(None)
            }
        }
    }

    /// The round of this number in the present epoch.
    pub fn round(&self, round: u64) -> Option<&Round> {
        self.get(Nth { epoch: self.epoch, round })
    }

    pub fn get(&self, nth: Nth) -> Option<&Round> {
        self.rounds.get(&nth)
    }

    fn of_epoch(&self) -> impl DoubleEndedIterator<Item = (Nth, &Round)> {
        let first = Nth { epoch: self.epoch, round: 0 };
        self.rounds.range(first..).map(|(nth, round)| (*nth, round))
    }

    /// The round that the record names, and it.
    pub fn current(&self) -> Option<(Nth, &Round)> {
        self.of_epoch().rev().find(|(_, round)| round.opened.is_some())
    }

    pub fn last_completed(&self) -> Option<(Nth, &Round)> {
        self.of_epoch().rev().find(|(_, round)| round.completed.is_some())
    }

    /// The round from which the holder of these leases returns with this outcome.
    pub fn returned(&self, leases: &BTreeSet<NodeId>, outcome: &Outcome) -> Option<Nth> {
        let of_number = self.rounds.iter().rev().filter(|(nth, _)| nth.round == outcome.round);
        let member = |round: &Round| round.members.get(&outcome.rank).copied();
        let own = |round: &Round| member(round).is_some_and(|lease| leases.contains(&lease));
        of_number.filter(|(_, round)| own(round)).map(|(nth, _)| *nth).next()
    }

    /// The completed record that is current.
    pub fn complete(&self) -> Option<(&Round, &Final)> {
        match &self.control.as_ref()?.state {
            State::Final(complete) => Some((self.round(self.control.as_ref()?.round)?, complete)),
            _ => None,
        }
    }
}
