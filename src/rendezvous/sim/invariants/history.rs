//! What the keys of the run said, revision by revision.

use std::collections::{BTreeMap, BTreeSet};

use super::Violation;
use crate::rendezvous::keys::{Keys, NodeId, node_of};
use crate::rendezvous::labels::Labels;
use crate::rendezvous::machine::Time;
use crate::rendezvous::records::{self, Control, Final, Member, State, Waiting};
use crate::rendezvous::sim::model::Touched;

/// When something was first true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    pub revision: i64,
    pub at: Time,
}

#[derive(Clone, Debug)]
pub struct MemberKey {
    pub rank: u32,
    pub attempt: String,
    pub revision: i64,
    pub labels: Labels,
}

#[derive(Default)]
pub struct Round {
    pub opened: Option<Since>,
    pub completed: Option<(Since, Final)>,
    /// Every member key that was written, in the order of the writes.
    pub written: BTreeMap<NodeId, Vec<MemberKey>>,
    /// The member keys that are there, by attempt.
    present: BTreeSet<(String, NodeId)>,
    /// The members as of the completion, by rank.
    pub members: BTreeMap<u32, NodeId>,
    /// What each of them says of itself.
    pub labels: BTreeMap<NodeId, Labels>,
    /// When nodes joined.
    pub joined: BTreeMap<NodeId, i64>,
    /// It follows no other round: the run was reopened.
    pub fresh: bool,
    /// A member of the completed round was lost.
    pub lost: Option<Since>,
    /// The last one of them was.
    pub last_lost: Option<Since>,
    /// A node waited for a place.
    pub waited: Option<Since>,
    /// The nodes that wait.
    pub waiting: BTreeMap<NodeId, Since>,
    pub domains: BTreeMap<NodeId, Option<String>>,
}

pub struct History {
    control_key: String,
    /// The control record.
    pub control: Option<Control>,
    /// The prefix of all rounds.
    in_rounds: String,
    pub rounds: BTreeMap<u64, Round>,
    pub closed: Option<Since>,
    /// What is written now is an operator's reopening.
    pub reopening: bool,
    /// The run was reopened: who closed it before may say so late.
    pub reopened: bool,
}

impl History {
    pub fn new(keys: &Keys) -> Self {
        Self {
            control_key: keys.control(),
            control: None,
            in_rounds: keys.round(0).replace("0/", ""),
            rounds: BTreeMap::new(),
            closed: None,
            reopening: false,
            reopened: false,
        }
    }

    /// Gives back the round that this write completes.
    pub fn take(&mut self, now: Time, touched: &Touched) -> Result<Option<u64>, Violation> {
        let kv = &touched.kv;
        let since = Since { revision: kv.mod_revision, at: now };
        let Ok(key) = std::str::from_utf8(&kv.key) else { return Ok(None) };
        if key == self.control_key {
            if touched.deleted {
                // The run's lease has run out: what comes now is another run.
                self.control = None;
                self.rounds.clear();
                (self.closed, self.reopened) = (None, false);
                return Ok(None);
            }
            return self.control_written(since, &kv.value);
        }
        let Some(rest) = key.strip_prefix(&self.in_rounds) else { return Ok(None) };
        let parts: Vec<&str> = rest.split('/').collect();
        if let ([round, kind, rest @ ..], Some(node)) = (&parts[..], node_of(&kv.key))
            && let Ok(round) = round.parse()
        {
            let attempt = rest.first().copied().unwrap_or_default();
            let round: &mut Round = self.rounds.entry(round).or_default();
            match *kind {
                "member" if touched.deleted => round.member_gone(node, attempt, since),
                "member" => round.member_written(node, attempt, since, &kv.value),
                "waiting" if touched.deleted => drop(round.waiting.remove(&node)),
                "join" if !touched.deleted => {
                    round.joined.insert(node, kv.create_revision);
                }
                "waiting" => {
                    let waits: Option<Waiting> = records::decode("waiting", &kv.value).ok();
                    round.domains.insert(node, waits.and_then(|waits| waits.labels.domain));
                    round.waiting.entry(node).or_insert(since);
                    round.waited.get_or_insert(since);
                }
                _ => {}
            }
        }
        Ok(None)
    }

    fn control_written(&mut self, since: Since, value: &[u8]) -> Result<Option<u64>, Violation> {
        let control = records::decode_control("control", value)
            .map_err(|error| Violation::new("record", error.to_string()))?;
        if std::mem::take(&mut self.reopening) {
            self.closed = None;
            self.reopened = true;
            return self.reopened_as(since, value);
        }
        if let Some(closed) = &self.closed {
            let text = format!(
                "the control record was closed at {} and is {control:?} at {}",
                closed.revision, since.revision
            );
            return Err(Violation::new("I4", text));
        }
        self.control = Some(control.clone());
        let newest = self.rounds.iter().filter(|(_, r)| r.opened.is_some()).map(|(n, _)| *n).max();
        let round = self.rounds.entry(control.round).or_default();
        let out_of_order = |text: &str| {
            let text = format!("{text}: {control:?} at {}", since.revision);
            Err(Violation::new("I2", text))
        };
        match &control.state {
            State::Open { previous, .. } => {
                let after = previous.as_ref().map_or(0, |previous| previous.round);
                if newest.unwrap_or(0) + 1 != control.round || after + 1 != control.round {
                    return out_of_order("a round opened out of order");
                }
                round.opened = Some(since);
                Ok(None)
            }
            State::Final(complete) => {
                if newest != Some(control.round) || round.completed.is_some() {
                    return out_of_order("a round completed that was not open");
                }
                round.complete(since, complete);
                Ok(Some(control.round))
            }
            State::Closed(_) => {
                self.closed = Some(since);
                Ok(None)
            }
        }
    }

    /// The round after the one that was closed, complete or not.
    fn reopened_as(&mut self, since: Since, value: &[u8]) -> Result<Option<u64>, Violation> {
        let control = records::decode_control("control", value)
            .map_err(|error| Violation::new("record", error.to_string()))?;
        let round = self.rounds.entry(control.round).or_default();
        round.opened = Some(since);
        round.fresh = true;
        self.control = Some(control);
        Ok(None)
    }

    pub fn round(&self, round: u64) -> Option<&Round> {
        self.rounds.get(&round)
    }

    /// The round that the record names, and it.
    pub fn current(&self) -> Option<(u64, &Round)> {
        let newest = self.rounds.iter().rev().find(|(_, round)| round.opened.is_some());
        newest.map(|(number, round)| (*number, round))
    }
}

impl Round {
    fn member_written(&mut self, node: NodeId, attempt: &str, since: Since, value: &[u8]) {
        if let Ok(Member { rank, labels, .. }) = records::decode("member", value) {
            let (attempt_, revision) = (attempt.into(), since.revision);
            let key = MemberKey { rank, attempt: attempt_, revision, labels };
            self.written.entry(node).or_default().push(key);
            self.present.insert((attempt.into(), node));
        }
    }

    fn member_gone(&mut self, node: NodeId, attempt: &str, since: Since) {
        self.present.remove(&(attempt.to_string(), node));
        if self.completed.as_ref().is_some_and(|(_, complete)| complete.attempt == attempt) {
            self.lost.get_or_insert(since);
            self.last_lost = Some(since);
        }
    }

    /// The members of the completed round that etcd still has.
    pub fn live(&self) -> impl Iterator<Item = NodeId> {
        let attempt = self.completed.as_ref().map(|(_, complete)| complete.attempt.clone());
        let of_attempt = self.present.iter().filter(move |(a, _)| Some(a) == attempt.as_ref());
        of_attempt.map(|(_, node)| *node)
    }

    fn complete(&mut self, since: Since, complete: &Final) {
        let listed = self.written.iter().filter_map(|(node, keys)| {
            let key = keys.iter().rfind(|key| key.attempt == complete.attempt)?;
            Some((key.rank, *node))
        });
        self.members = listed.collect();
        for node in self.members.values() {
            let key = self.written.get(node).and_then(|keys| keys.last());
            self.labels.insert(*node, key.map(|key| key.labels.clone()).unwrap_or_default());
        }
        self.completed = Some((since, complete.clone()));
        if self.live().count() < self.members.len() {
            (self.lost, self.last_lost) = (Some(since), Some(since));
        }
    }
}
