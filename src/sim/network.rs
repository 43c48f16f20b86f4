//! Between nodes and etcd: requests, answers, renewals; each may be late, lost, repeated or refused.

use std::rc::Rc;
use std::time::Duration;

use super::model::refused;
use super::node::{Call, Health, KeepAlive, NodeIx, Reply, Request};
use super::world::{Event, World};
use crate::etcd::kv::{Op, OpReply, RangeReply, Txn};
use crate::etcd::{EtcdError, Refusal, nth_lease_id};
use crate::rendezvous::{Answer, CallId, Input, Time, Wanted};

/// As the client's.
const STREAM_UP_TO: Duration = Duration::from_secs(120);
/// For so long a driver tries to revoke a lease.
const REVOKE: Duration = Duration::from_secs(2);

impl Call {
    /// Nobody waits for the answer.
    pub fn is_aside(&self) -> bool {
        matches!(*self.request, Request::Revoke(_))
    }
}

impl World {
    pub fn call(&mut self, node: NodeIx, call: CallId, request: Request, deadline: Time) {
        let (request, begun) = (Rc::new(request), self.now);
        let state = Call { request, begun, deadline, attempt: 0, sent: false, ghost: false };
        self.nodes[node].calls.insert(call, state);
        self.send(node, call);
    }

    /// Nobody waits for the answer. The driver repeats the request for a while nevertheless.
    pub fn revoke(&mut self, node: NodeIx, lease: i64) {
        self.nodes[node].keep_alives.remove(&lease);
        self.nodes[node].last_aside += 1;
        let call = self.nodes[node].last_aside;
        self.call(node, call, Request::Revoke(lease), self.now + REVOKE);
    }

    fn send(&mut self, node: NodeIx, id: CallId) {
        let lost = !self.reachable(node) || self.rng.chance(self.link.lost);
        let state = &mut self.nodes[node];
        let left = state.health == Health::Left;
        let Some(call) = state.calls.get_mut(&id) else { return };
        call.attempt += 1;
        call.sent |= !lost;
        call.ghost = left && !call.is_aside();
        let (attempt, request, deadline) = (call.attempt, call.request.clone(), call.deadline);
        let ghost = call.ghost;
        if let Request::Txn(txn) = &*request {
            state.costs.sent += txn_size(txn);
        }
        state.costs.rpcs += 1;
        if !lost {
            let travel = self.travel();
            self.after(travel, Event::Arrive(node, id, attempt, ghost, request));
        }
        let patience = self.rng.time(self.link.patience / 2, self.link.patience);
        self.at(deadline.min(self.now + patience), Event::Retry(node, id, attempt));
    }

    pub fn reachable(&self, node: NodeIx) -> bool {
        !self.etcd_down && !self.nodes[node].partitioned
    }

    fn travel(&mut self) -> Duration {
        if self.rng.chance(self.link.slow) {
            self.rng.time(self.link.latency, self.link.slowest)
        } else {
            self.rng.time(self.link.latency / 4, self.link.latency)
        }
    }

    /// Also of a node that has died since: its request is still on its way.
    pub fn request_arrives(
        &mut self,
        node: NodeIx,
        call: CallId,
        attempt: u32,
        ghost: bool,
        request: &Request,
    ) {
        if self.etcd_down {
            return;
        }
        let current = self.nodes[node].calls.get(&call).is_some_and(|c| c.attempt == attempt);
        if !current {
            self.note(|| format!("n{node} a late copy of call {call} takes effect"));
        }
        let before = self.etcd.revision();
        let reply = self.apply(node, attempt, request);
        self.note(|| format!("etcd: n{node} {} -> {}", call, super::trace::reply(&reply)));
        if ghost {
            let wrote = self.etcd.revision() > before;
            let result = super::invariants::ghosts::writes_nothing(self, node, request, wrote);
            self.require(result);
        }
        self.written(Some(node));
        if current && self.reachable(node) && !self.rng.chance(self.link.lost) {
            let travel = self.travel();
            self.after(travel, Event::Answer(node, call, attempt, Rc::new(reply)));
        }
    }

    fn apply(&mut self, node: NodeIx, attempt: u32, request: &Request) -> Reply {
        if self.nodes[node].forbidden && !matches!(request, Request::Revoke(_)) {
            return Err(refused(Refusal::PermissionDenied, "permission denied"));
        }
        let no_space = || Err(refused(Refusal::NoSpace, "database space exceeded"));
        match request {
            Request::Txn(txn) if self.etcd_full && self.etcd.would_put(txn) => no_space(),
            Request::Grant(..) if self.etcd_full => no_space(),
            Request::Txn(txn) => self.etcd.txn(txn).map(Answer::Txn),
            Request::Grant(wanted, ttl) => {
                let lease = lease_of(*wanted, attempt);
                match self.etcd.grant(self.now, lease, *ttl) {
                    // As the client does: it is the lease that is shared, and the TTL that of the first grant.
                    Err(EtcdError::Refused { kind: Refusal::LeaseExists, .. }) => {
                        Ok(Answer::Granted(lease, self.etcd.granted(lease).unwrap_or(*ttl)))
                    }
                    other => other.map(|()| Answer::Granted(lease, *ttl)),
                }
            }
            Request::TimeToLive(lease) => {
                let left = self.etcd.time_to_live(self.now, *lease);
                Ok(Answer::TimeToLive(left.map(|(left, _)| left)))
            }
            Request::Revoke(lease) => {
                self.etcd.revoke(*lease);
                Ok(Answer::Granted(*lease, Duration::ZERO))
            }
        }
    }

    pub fn answer_arrives(&mut self, node: NodeIx, id: CallId, attempt: u32, reply: &Reply) {
        let now = self.now;
        let state = &mut self.nodes[node];
        let Some(call) = state.calls.get(&id).filter(|call| call.attempt == attempt) else {
            return;
        };
        let (aside, begun) = (call.is_aside(), call.begun);
        if let Request::Grant(_, ttl) = *call.request
            && now > begun + ttl * 9 / 10
        {
            // There is no time left to renew it.
            state.disturbed = now;
        }
        state.calls.remove(&id);
        if let Ok(Answer::Txn(reply)) = reply {
            state.answered = reply.revision;
            state.costs.received += reply.replies.iter().map(reply_size).sum::<u64>() + 16;
        }
        if matches!(reply, Ok(Answer::Txn(_))) {
            self.lose_history(node);
        }
        if !aside {
            self.feed(node, Input::Answer(id, reply.clone()));
        }
    }

    pub fn no_answer(&mut self, node: NodeIx, id: CallId, attempt: u32) {
        let Some(call) = self.nodes[node].calls.get(&id).filter(|call| call.attempt == attempt)
        else {
            return;
        };
        if self.now < call.deadline {
            return self.send(node, id);
        }
        let (aside, sent, waited) = (call.is_aside(), call.sent, self.now - call.begun);
        self.nodes[node].calls.remove(&id);
        if !aside {
            let causes = "simulated".to_string();
            let error = if sent {
                EtcdError::Ambiguous { causes }
            } else {
                EtcdError::Unreachable { waited, causes }
            };
            self.feed(node, Input::Answer(id, Err(error)));
        }
    }

    pub fn keep_alive(&mut self, node: NodeIx, lease: i64, ttl: Duration, first: Duration) {
        let since = self.now;
        let state = &mut self.nodes[node];
        state.last_keep_alive += 1;
        let task = state.last_keep_alive;
        state.keep_alives.insert(lease, KeepAlive { ttl, task, since });
        self.after(first, Event::Renew(node, lease, task));
    }

    pub fn renew(&mut self, node: NodeIx, lease: i64, task: u64) {
        let renews = self.nodes[node].keep_alives.get(&lease).filter(|known| known.task == task);
        let Some(KeepAlive { ttl, .. }) = renews.copied() else { return };
        self.nodes[node].costs.renewals += 1;
        if !self.reachable(node) || self.rng.chance(self.link.lost) {
            self.nodes[node].disturbed = self.now;
            let pause = self.rng.time(Duration::from_millis(100), Duration::from_millis(800));
            return self.after(pause, Event::Renew(node, lease, task));
        }
        if self.etcd.renew(self.now, lease) {
            // A renewal by a stream tells the TTL, one by a call does not.
            let told = self.etcd.granted(lease).filter(|_| ttl <= STREAM_UP_TO);
            let period = told.unwrap_or(ttl) / 3;
            let period = self.rng.time(period * 9 / 10, period);
            self.after(period, Event::Renew(node, lease, task));
        } else {
            let travel = self.travel();
            self.after(travel, Event::LeaseLost(node, lease));
        }
    }
}

/// Which lease this attempt asks for, as the client does.
pub fn lease_of(wanted: Wanted, attempt: u32) -> i64 {
    match wanted {
        Wanted::New(first) => nth_lease_id(first, attempt),
        Wanted::Shared(lease) => lease,
    }
}

pub fn txn_size(txn: &Txn) -> u64 {
    let compares: usize = txn.compares.iter().map(|compare| compare.key.len() + 12).sum();
    let ops = txn.success.iter().chain(&txn.failure).map(|op| match op {
        Op::Get(range) => bytes(&range.key) + range.range_end.as_deref().map_or(0, bytes) + 8,
        Op::Put { key, value, .. } => bytes(key) + bytes(value) + 12,
        Op::Delete { key, range_end } => bytes(key) + range_end.as_deref().map_or(0, bytes) + 4,
        Op::Txn(inner) => txn_size(inner) + 4,
    });
    compares as u64 + ops.sum::<u64>()
}

fn bytes(data: &[u8]) -> u64 {
    data.len() as u64
}

fn reply_size(reply: &OpReply) -> u64 {
    match reply {
        OpReply::Get(RangeReply { kvs, .. }) => {
            kvs.iter().map(|kv| bytes(&kv.key) + bytes(&kv.value) + 24).sum::<u64>() + 8
        }
        OpReply::Put | OpReply::Delete(_) => 8,
        OpReply::Txn { replies, .. } => replies.iter().map(reply_size).sum::<u64>() + 4,
    }
}
