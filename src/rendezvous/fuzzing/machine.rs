//! The protocol core, whatever it is told.

use std::collections::BTreeSet;
use std::time::Duration;

use arbitrary::{Result, Unstructured};

use crate::etcd::kv::{Event, KeyValue, Op, OpReply, RangeReply, Txn, TxnReply};
use crate::etcd::{EtcdError, Refusal, WatchMessage};
use crate::rendezvous::api::{
    Action, Answer, CallId, Close, Input, OnMemberLoss, Settings, Time, Tuning, Wanted, WatchId,
};
use crate::rendezvous::core::Machine;
use crate::rendezvous::keys::{Keys, RoundId, node_of};
use crate::rendezvous::records::{
    self, Closed, Control, Coordinator, Denial, Final, Join, Labels, LastCall, Loss, Master,
    Member, NodeInfo, Previous, RankOrder, State, Stay, Story, Usher, Waiting,
};

/// Inputs of one run of a machine.
const INPUTS: usize = 300;

/// A node to which anything may be answered and told.
pub fn run_machine(data: &[u8]) {
    let mut u = Unstructured::new(data);
    // Where the bytes end the run ends.
    let _ = Run::new(&mut u).and_then(|mut run| run.go(&mut u));
}

struct Run {
    machine: Machine,
    now: Time,
    revision: i64,
    call: Option<(CallId, Option<Txn>)>,
    watches: BTreeSet<WatchId>,
    /// Ticks in a row that were due at once.
    spins: u32,
}

impl Run {
    fn new(u: &mut Unstructured<'_>) -> Result<Self> {
        let min = u.int_in_range(1..=3)?;
        let second = Duration::from_secs(1);
        let order = *u.choose(&[
            RankOrder::Stable,
            RankOrder::Join,
            RankOrder::Infra,
            RankOrder::Topology { segment: 2 },
        ])?;
        let settings = Settings {
            keys: Keys::new("/p/run_a"),
            min,
            max: order.smallest(min) + u.int_in_range(0..=2)?,
            join_timeout: second * 60,
            last_call: second * u.int_in_range(0..=9)?,
            close_timeout: second * 10,
            ttl: second * 10,
            run_ttl: second * 100,
            on_member_loss: if u.arbitrary()? {
                OnMemberLoss::Restart
            } else {
                OnMemberLoss::Ignore
            },
            node: NodeInfo { host: "me".into(), pid: 1 },
            labels: Labels {
                node_id: if u.ratio(1, 3)? { Some("me".into()) } else { None },
                ..Labels::default()
            },
            survivor_grace: second * u.int_in_range(0..=9)?,
            reopen_if_closed: u.arbitrary()?,
            version: u.int_in_range(1..=2)?,
            order,
            epoch: Duration::ZERO,
            seed: u.arbitrary()?,
            tuning: Tuning::default(),
        };
        Ok(Self {
            machine: Machine::new(settings),
            now: Duration::ZERO,
            revision: 1,
            call: None,
            watches: BTreeSet::new(),
            spins: 0,
        })
    }

    fn go(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        for _ in 0..INPUTS {
            if u.is_empty() {
                break;
            }
            let input = self.input(u)?;
            let due = self.machine.next_deadline();
            let ticked = input == Input::Tick && due.is_some_and(|due| due <= self.now);
            let actions = self.machine.handle(self.now, input);
            self.check(actions);
            let at_once = self.machine.next_deadline().is_some_and(|due| due <= self.now);
            self.spins = if ticked && at_once { self.spins + 1 } else { 0 };
            assert!(self.spins < 20, "it asks for ticks without end");
        }
        Ok(())
    }

    fn check(&mut self, actions: Vec<Action>) {
        assert!(actions.len() < 64, "{actions:?}");
        let mut calls = 0;
        for action in actions {
            match action {
                Action::Txn(call, txn, _) => {
                    calls += 1;
                    let ops = txn.success.len().max(txn.failure.len()).max(txn.compares.len());
                    assert!(ops <= 128, "etcd takes 128 operations");
                    self.call = Some((call, Some(txn)));
                }
                Action::Grant(call, Wanted::New(lease) | Wanted::Shared(lease), ..) => {
                    assert!(lease > 0);
                    calls += 1;
                    self.call = Some((call, None));
                }
                Action::TimeToLive(call, ..) => {
                    calls += 1;
                    self.call = Some((call, None));
                }
                Action::Watch(watch, spec) => {
                    assert!(self.watches.insert(watch) && spec.start_revision >= 0);
                }
                Action::Unwatch(watch) => drop(self.watches.remove(&watch)),
                Action::Cancel(call) => drop(self.call.take_if(|(known, _)| *known == call)),
                Action::Joined(Ok(outcome)) => assert!(outcome.rank < outcome.world),
                Action::Joined(Err(error)) => assert!(error.to_string().len() < 20_000),
                _ => {}
            }
        }
        assert!(calls <= 1, "one call at a time");
        assert!(self.watches.len() <= 8, "watches are left open: {:?}", self.watches);
        let status = self.machine.status();
        let reason = status.broken.map_or(0, |broken| broken.reason.len());
        assert!(reason < 3000, "a reason of {reason} bytes");
    }

    fn input(&mut self, u: &mut Unstructured<'_>) -> Result<Input> {
        Ok(match u.int_in_range(0..=15)? {
            0 | 1 => Input::Join(Master { addr: "10.0.0.1".into(), port: 29500 }),
            2 => Input::Leave,
            3 => {
                let (by, reason, at) = ("me".into(), text(u)?, u.arbitrary()?);
                Input::Close(Close { by, reason, at, ended: None, only_member: u.arbitrary()? })
            }
            4 => Input::Observe,
            5 => {
                self.now += Duration::from_millis(u.arbitrary::<u16>()?.into());
                Input::Tick
            }
            6 => {
                self.now = self.machine.next_deadline().unwrap_or(self.now).max(self.now);
                Input::Tick
            }
            7 => Input::LeaseLost(self.lease(u)?),
            8..=11 => match self.call.take() {
                Some((call, txn)) => Input::Answer(call, self.answer(u, txn)?),
                None => Input::Answer(u.arbitrary()?, self.answer(u, None)?),
            },
            _ => {
                let known: Vec<WatchId> = self.watches.iter().copied().collect();
                let watch = if known.is_empty() { u.arbitrary()? } else { *u.choose(&known)? };
                let message = self.message(u)?;
                let ends =
                    matches!(message, WatchMessage::Compacted { .. } | WatchMessage::Failed(_));
                if ends {
                    self.watches.remove(&watch);
                }
                Input::Watched(watch, message)
            }
        })
    }

    fn lease(&self, u: &mut Unstructured<'_>) -> Result<i64> {
        Ok(match u.int_in_range(0..=4)? {
            0 | 1 => self.machine.node().unwrap_or(0),
            2 => self.machine.settings().keys.run_lease(),
            3 => u.int_in_range(1..=4)?,
            _ => u.arbitrary()?,
        })
    }

    fn revision(&mut self, u: &mut Unstructured<'_>) -> Result<i64> {
        self.revision = self.revision.saturating_add(u.int_in_range(0..=3)?);
        if u.ratio(1, 32)? {
            // etcd's own count: any, but not negative.
            return u.int_in_range(0..=i64::MAX);
        }
        Ok(self.revision)
    }

    fn answer(
        &mut self,
        u: &mut Unstructured<'_>,
        txn: Option<Txn>,
    ) -> Result<std::result::Result<Answer, EtcdError>> {
        if u.ratio(1, 8)? {
            return Ok(Err(error(u)?));
        }
        if u.ratio(1, 32)? {
            return Ok(Ok(Answer::TimeToLive(Some(Duration::new(u.arbitrary()?, 0)))));
        }
        let Some(txn) = txn else {
            let left = Some(Duration::from_secs(u.arbitrary()?));
            return Ok(Ok(if u.arbitrary()? {
                Answer::Granted(self.lease(u)?, Duration::from_secs(u.int_in_range(0..=20)?))
            } else {
                Answer::TimeToLive(left.filter(|left| !left.is_zero()))
            }));
        };
        let succeeded = u.ratio(3, 4)?;
        let branch = if succeeded { &txn.success } else { &txn.failure };
        let mut replies = Vec::new();
        for op in branch {
            replies.push(self.reply(u, op)?);
        }
        if u.ratio(1, 16)? {
            replies.truncate(u.arbitrary_len::<u8>()?);
        }
        Ok(Ok(Answer::Txn(TxnReply { revision: self.revision(u)?, succeeded, replies })))
    }

    fn reply(&mut self, u: &mut Unstructured<'_>, op: &Op) -> Result<OpReply> {
        Ok(match op {
            Op::Get(range) => {
                let mut kvs = Vec::new();
                for _ in 0..u.int_in_range(0..=3)? {
                    let mut key = range.key.clone();
                    if range.range_end.is_some() {
                        key.extend(self.name(u)?);
                    }
                    kvs.push(self.key_value(u, key)?);
                }
                OpReply::Get(RangeReply { kvs, count: u.arbitrary()?, more: u.ratio(1, 8)? })
            }
            Op::Put { .. } => OpReply::Put,
            Op::Delete { .. } => OpReply::Delete(u.arbitrary()?),
            Op::Txn(inner) => {
                let succeeded = u.arbitrary()?;
                let branch = if succeeded { &inner.success } else { &inner.failure };
                let replies = branch.iter().map(|op| self.reply(u, op)).collect::<Result<_>>()?;
                OpReply::Txn { succeeded, replies }
            }
        })
    }

    /// What a key of a node ends with.
    fn name(&self, u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
        if u.ratio(1, 8)? {
            return u.arbitrary();
        }
        Ok(format!("{:016x}", self.lease(u)?).into_bytes())
    }

    fn key_value(&mut self, u: &mut Unstructured<'_>, key: Vec<u8>) -> Result<KeyValue> {
        let lease = match node_of(&key) {
            Some(node) if u.ratio(3, 4)? => node,
            _ => self.lease(u)?,
        };
        let value = self.value(u, &key)?;
        let mod_revision = self.revision(u)?;
        let create_revision = if u.arbitrary()? { mod_revision } else { self.revision(u)? };
        Ok(KeyValue { key, value, create_revision, mod_revision, version: 1, lease })
    }

    fn value(&self, u: &mut Unstructured<'_>, key: &[u8]) -> Result<Vec<u8>> {
        if u.ratio(1, 8)? {
            return u.arbitrary();
        }
        let key = String::from_utf8_lossy(key);
        let node = NodeInfo { host: text(u)?, pid: u.arbitrary()? };
        let label =
            |u: &mut Unstructured<'_>| Ok(if u.ratio(1, 4)? { Some(text(u)?) } else { None });
        let labels = Labels { node_id: label(u)?, infra_rank: u.arbitrary()?, domain: label(u)? };
        let version = if u.ratio(1, 16)? { u.arbitrary()? } else { 1 };
        let mut value = if key.ends_with("/control") {
            records::encode(&self.control(u)?, version)
        } else if key.ends_with("/coordinator") {
            let (joined, last_call) = u.arbitrary()?;
            records::encode(
                &Coordinator { node, joined, last_call, min: 1, max: 2, at: 0 },
                version,
            )
        } else if key.ends_with("/loss") {
            let id = round_id(u)?;
            records::encode(&Loss::of(&id, text(u)?), version)
        } else if key.ends_with("/head/waiting") {
            let id = round_id(u)?;
            records::encode(&Usher { node, id, count: u.arbitrary()?, at: 0 }, version)
        } else if key.ends_with("/last_call") {
            records::encode(&LastCall { lease: u.arbitrary()? }, version)
        } else if key.contains("/join/") {
            let master = Master { addr: text(u)?, port: u.arbitrary()? };
            records::encode(&Join::new(node, master, Stay::default(), labels), version)
        } else if key.contains("/denied/") {
            let denial = Denial { by: text(u)?, reason: text(u)?, at: u.arbitrary()? };
            records::encode(&denial, version)
        } else if key.contains("/member/") {
            let rank = if u.ratio(1, 8)? { u.arbitrary()? } else { u.int_in_range(0..=4)? };
            let next = self.lease(u)?;
            let member = Member { rank, next, node, addr: String::new(), labels };
            records::encode(&member, version)
        } else {
            records::encode(&Waiting { node, stay: Stay::default(), labels }, version)
        };
        if u.ratio(1, 8)? && !value.is_empty() {
            let at = u.choose_index(value.len())?;
            value[at] = u.arbitrary()?;
        }
        Ok(value)
    }

    fn control(&self, u: &mut Unstructured<'_>) -> Result<Control> {
        let attempt = match u.int_in_range(0..=2)? {
            0 => text(u)?,
            _ => "1.1".into(),
        };
        let state = match u.int_in_range(0..=4)? {
            0 | 1 => State::Open {
                previous: if u.arbitrary()? {
                    let id = RoundId { round: round(u)?, attempt };
                    Some(Previous { id, world: u.arbitrary()? })
                } else {
                    None
                },
                by: text(u)?,
                at: u.arbitrary()?,
                why: text(u)?,
            },
            2 | 3 => State::Final(Final {
                world: if u.ratio(1, 8)? { u.arbitrary()? } else { u.int_in_range(0..=4)? },
                attempt,
                since: if u.ratio(1, 4)? { u.arbitrary()? } else { self.revision },
                master_addr: text(u)?,
                master_port: u.arbitrary()?,
                order: RankOrder::default(),
                story: Story { by: text(u)?, opened_at: u.arbitrary()?, ..Story::default() },
            }),
            _ => {
                let (by, reason, at) = (text(u)?, text(u)?, u.arbitrary()?);
                let last = if u.arbitrary()? { Some(round_id(u)?) } else { None };
                let last = last.map(|id| Previous { id, world: 1 });
                State::Closed(Closed { by, reason, at, last, ended: None })
            }
        };
        Ok(Control {
            reopened: u.arbitrary()?,
            ..Control::first(1, u.arbitrary()?, round(u)?, state)
        })
    }

    fn message(&mut self, u: &mut Unstructured<'_>) -> Result<WatchMessage> {
        Ok(match u.int_in_range(0..=11)? {
            0..=3 => WatchMessage::Started(self.revision(u)?),
            4 => WatchMessage::Compacted { oldest: u.arbitrary()? },
            5 => WatchMessage::Failed(error(u)?),
            _ => {
                let mut events = Vec::new();
                for _ in 0..u.int_in_range(1..=3)? {
                    let key = self.any_key(u)?;
                    let kv = self.key_value(u, key)?;
                    events.push(if u.arbitrary()? { Event::Put(kv) } else { Event::Delete(kv) });
                }
                WatchMessage::Events(events)
            }
        })
    }

    fn any_key(&self, u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
        let keys = &self.machine.settings().keys;
        let (round, node) = (round(u)?, self.lease(u)?);
        Ok(match u.int_in_range(0..=11)? {
            9 => format!("{}{}", keys.denials(), text(u)?),
            10 => format!("{}me", keys.denials()),
            0 | 1 => keys.control(),
            2 => keys.coordinator(),
            3 => keys.loss(),
            4 => keys.join(round, node),
            5 => keys.member(&RoundId { round, attempt: "1.1".into() }, node),
            6 => keys.waiting(round, node),
            7 => keys.last_call(round),
            11 => keys.usher(),
            _ => return u.arbitrary(),
        }
        .into_bytes())
    }
}

fn round(u: &mut Unstructured<'_>) -> Result<u64> {
    if u.ratio(1, 16)? { u.arbitrary() } else { u.int_in_range(0..=3) }
}

fn round_id(u: &mut Unstructured<'_>) -> Result<RoundId> {
    let attempt = if u.ratio(1, 8)? { text(u)? } else { "1.1".into() };
    Ok(RoundId { round: round(u)?, attempt })
}

fn text(u: &mut Unstructured<'_>) -> Result<String> {
    Ok(match u.int_in_range(0..=15)? {
        0 => "x".repeat(5000),
        1 => u.arbitrary()?,
        _ => "host".into(),
    })
}

fn error(u: &mut Unstructured<'_>) -> Result<EtcdError> {
    let kinds = [Refusal::LeaseNotFound, Refusal::PermissionDenied, Refusal::TooLarge];
    Ok(match u.int_in_range(0..=5)? {
        0 => EtcdError::Unreachable { waited: Duration::ZERO, causes: "silence".into() },
        1 => EtcdError::Ambiguous { causes: "silence".into() },
        2 => EtcdError::Compacted { requested: u.arbitrary()?, oldest: u.arbitrary()? },
        3 => EtcdError::Closed,
        _ => EtcdError::Refused {
            endpoint: "http://e".into(),
            kind: *u.choose(&kinds)?,
            message: "refused".into(),
        },
    })
}
