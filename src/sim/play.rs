//! How a world goes on: what is in its queue happens, one by one.

use std::cmp::Reverse;
use std::time::Duration;

use super::checks::Violation;
use super::node::{Health, NodeIx, Request};
use super::world::{CHECK, EXPIRY, Event, QUIET, World};
use crate::rendezvous::{Action, Input, Time};

impl World {
    /// Runs until `until`, or until an invariant is violated.
    pub fn run_until(&mut self, until: Time) -> Result<(), Violation> {
        self.run_while(until, |_| true).map(drop)
    }

    /// Runs while `condition` holds, at most until `until`; tells whether it ended before that.
    pub fn run_while(
        &mut self,
        until: Time,
        condition: impl Fn(&World) -> bool,
    ) -> Result<bool, Violation> {
        loop {
            if let Some(violation) = self.failure.take() {
                return Err(violation);
            }
            if !condition(self) {
                return Ok(true);
            }
            match self.queue.peek() {
                Some(Reverse(next)) if next.at <= until => {}
                _ => {
                    self.now = until;
                    return Ok(false);
                }
            }
            if let Some(Reverse(next)) = self.queue.pop() {
                self.now = self.now.max(next.at);
                self.happen(next.event);
            }
        }
    }

    fn happen(&mut self, event: Event) {
        let Some(event) = self.for_a_node_that_runs(event) else { return };
        match event {
            Event::Arrive(node, call, attempt, ghost, request) => {
                self.request_arrives(node, call, attempt, ghost, &request);
            }
            Event::Answer(node, call, attempt, reply) => {
                self.answer_arrives(node, call, attempt, &reply);
            }
            Event::Retry(node, call, attempt) => self.no_answer(node, call, attempt),
            Event::Tick(node, at) => self.tick(node, at),
            Event::OpenWatch(node, watch) => self.open_watch(node, watch),
            Event::Deliver(node, watch) => self.deliver(node, watch),
            Event::Renew(node, lease, order) => self.renew(node, lease, order),
            Event::LeaseLost(node, lease) => {
                self.nodes[node].keep_alives.remove(&lease);
                self.feed(node, Input::LeaseLost(lease));
                self.spring_trap_at(super::trap::Moment::LeaseLost, Some(node), Some(node));
            }
            Event::HistoryLost(node, watch) => {
                let message = crate::etcd::WatchMessage::HistoryLost;
                self.feed(node, Input::Watched(watch, message));
            }
            Event::Agent(node) => {
                let next = self.agent_acts(node);
                let shortest = if self.quiet { QUIET } else { Duration::ZERO };
                if let Some(next) = next {
                    self.after(next.max(shortest), Event::Agent(node));
                }
            }
            Event::Shutdown(node) => self.agent_ends(node),
            Event::Exit(node) => self.exit(node),
            Event::Replace(node) => self.replace(node),
            Event::Expire => self.expire_leases(),
            Event::Check => {
                if !self.ended {
                    self.after(if self.quiet { QUIET } else { CHECK }, Event::Check);
                    self.check();
                }
            }
            Event::Fault => self.next_fault(),
            Event::Recover(recovery) => self.recover(recovery),
            Event::Strike(node, blow) => self.strike(node, blow),
        }
    }

    /// What is for a node that is gone is dropped; what is for a paused one waits for it.
    fn for_a_node_that_runs(&mut self, event: Event) -> Option<Event> {
        let node = match &event {
            Event::Answer(node, ..)
            | Event::Retry(node, ..)
            | Event::Tick(node, _)
            | Event::Deliver(node, _)
            | Event::Renew(node, ..)
            | Event::LeaseLost(node, _)
            | Event::HistoryLost(node, _)
            | Event::Agent(node)
            | Event::Shutdown(node) => *node,
            _ => return Some(event),
        };
        match self.nodes[node].health {
            Health::Up | Health::Left => return Some(event),
            Health::Paused => self.deferred.entry(node).or_default().push(event),
            Health::Gone => {}
        }
        None
    }

    /// Gives the machine an input and does what it asks for.
    pub fn feed(&mut self, node: NodeIx, input: Input) {
        self.note(|| format!("n{node} <- {}", super::trace::input(&input)));
        let state = &mut self.nodes[node];
        let actions = state.machine.handle(self.now, input);
        if let Some(lease) = state.lease()
            && state.leases.insert(lease)
        {
            self.owners.insert(lease, node);
        }
        // A result is acted upon only when all else is done.
        let is_result = |action: &Action| matches!(action, Action::Joined(_) | Action::Closed(_));
        let (results, others): (Vec<_>, Vec<_>) = actions.into_iter().partition(is_result);
        for action in others.into_iter().chain(results) {
            self.note(|| format!("n{node} -> {}", super::trace::action(&action)));
            if let Some(hash) = &mut self.hash {
                hash.add(self.now, node, &action);
            }
            self.perform(node, action);
        }
        self.schedule_tick(node);
    }

    fn perform(&mut self, node: NodeIx, action: Action) {
        match action {
            Action::Txn(call, txn, deadline) => {
                self.call(node, call, Request::Txn(txn), deadline);
            }
            Action::Grant(call, lease, ttl, deadline) => {
                self.call(node, call, Request::Grant(lease, ttl), deadline);
            }
            Action::TimeToLive(call, lease, deadline) => {
                self.call(node, call, Request::TimeToLive(lease), deadline);
            }
            Action::Revoke(lease) => self.revoke(node, lease),
            Action::Abandon(lease) => drop(self.nodes[node].keep_alives.remove(&lease)),
            Action::KeepAlive(lease, ttl, first) => self.keep_alive(node, lease, ttl, first),
            Action::Watch(watch, spec) => self.watch(node, watch, spec),
            Action::Unwatch(watch) => self.unwatch(node, watch),
            Action::Cancel(call) => drop(self.nodes[node].calls.remove(&call)),
            Action::Joined(result) => self.agent_joined(node, result),
            Action::Closed(result) => self.agent_closed(node, &result),
            Action::Observed(_) => {}
        }
    }

    fn schedule_tick(&mut self, node: NodeIx) {
        let due = self.nodes[node].machine.next_deadline();
        if due != self.nodes[node].tick {
            self.nodes[node].tick = due;
            if let Some(at) = due {
                self.at(at, Event::Tick(node, at));
            }
        }
    }

    fn tick(&mut self, node: NodeIx, at: Time) {
        if self.nodes[node].tick != Some(at) {
            return;
        }
        self.nodes[node].tick = None;
        self.feed(node, Input::Tick);
        let spins = self.nodes[node].tick.is_some_and(|due| due <= self.now);
        self.nodes[node].spins = if spins { self.nodes[node].spins + 1 } else { 0 };
        if self.nodes[node].spins > 20 {
            self.fail(Violation::new("spin", format!("n{node} asks for ticks without end")));
        }
    }

    fn expire_leases(&mut self) {
        self.after(EXPIRY, Event::Expire);
        if !self.etcd_down {
            for (lease, granted) in self.etcd.expire(self.now) {
                self.note(|| format!("etcd: lease {lease:016x} ran out"));
                let result = super::invariants::leases::none_is_lost(self, lease, granted);
                self.require(result);
            }
            self.written(None);
        }
    }

    /// Tells the watches, and the invariants, what was written.
    pub fn written(&mut self, writer: Option<NodeIx>) {
        for touched in self.etcd.take_touched() {
            self.note(|| super::trace::touched(&touched));
            self.last_write = self.now;
            self.wake_watchers(&touched);
            self.denial_touched(&touched);
            let result = super::invariants::closers::may_close(self, writer, &touched);
            self.require(result);
            let result = super::invariants::leases::run_goes_on(self, &touched);
            self.require(result);
            let limits = self.limits_of(writer);
            let result = self.checks.key_touched(self.now, &touched, limits, writer);
            self.require(result);
            self.spring_trap(writer, &touched);
        }
    }
}
