//! What torchrun's agent does with its rendezvous handler: joins, trains, polls `num_nodes_waiting`, rejoins
//! when it is positive or when its workers fail, and shuts the handler down in the end.
//!
//! As torch 2.15 has it (`launcher/api.py`, `elastic/agent/server/api.py`): whatever error a barrier ends
//! with ends the agent, which shuts the handler down then, once, and ends whatever comes of it; so does an
//! agent whose workers are done, after its exit barrier, or have failed too often. Only a signal ends it
//! without a shutdown.

use std::time::Duration;

use super::agent::{Doing, Wish};
use super::node::{Health, NodeIx};
use super::world::{Event, World};
use crate::rendezvous::records::Master;
use crate::rendezvous::{Close, Input, Outcome, RendezvousError, Time};

/// How often a scheduler starts an agent again that has failed (`backoffLimitPerIndex` and its like).
const REPLACEMENTS: u32 = 3;

impl World {
    /// Tells when it acts next.
    pub fn agent_acts(&mut self, node: NodeIx) -> Option<Duration> {
        let next = match self.nodes[node].agent.doing {
            Doing::Nothing => {
                self.join(node);
                self.nodes[node].agent.poll
            }
            Doing::Training { .. } => self.monitor(node),
            Doing::NotClosed => {
                self.close(node);
                self.nodes[node].agent.poll
            }
            Doing::Stopping(until) if self.now >= until => {
                self.join(node);
                self.nodes[node].agent.poll
            }
            Doing::Finishing(until) if self.nodes[node].status().broken.is_none() => {
                self.shut_down_at(node, until)
            }
            // The store ends the exit barrier of a world that is over.
            Doing::Finishing(_) => self.shut_down_at(node, self.now),
            Doing::Failing(until) => self.shut_down_at(node, until),
            Doing::Stopping(until) => until - self.now,
            Doing::Joining | Doing::Closing | Doing::Ending | Doing::ShuttingDown => {
                self.nodes[node].agent.poll
            }
            Doing::Done => return None,
        };
        Some(next)
    }

    /// Its look at the workers and at the rendezvous; tells when it looks again.
    fn monitor(&mut self, node: NodeIx) -> Duration {
        let waiting = self.nodes[node].status().waiting;
        let result = super::invariants::waiting::positive_for_a_reason(self, node, waiting);
        self.require(result);
        let longest = self.scenario.exit_barrier;
        let agent = &mut self.nodes[node].agent;
        if agent.finishes {
            agent.doing = Doing::Finishing(self.now + self.rng.time(Duration::ZERO, longest));
            self.note(|| format!("n{node} is done with its work"));
        } else if agent.fails || waiting > 0 {
            let stopped = self.now + agent.stop;
            let failed = std::mem::take(&mut agent.fails);
            if failed && agent.restarts == Some(0) {
                agent.doing = Doing::Failing(stopped);
                self.note(|| format!("n{node} stops its workers, which have failed too often"));
                return Duration::ZERO;
            }
            if failed {
                agent.restarts = agent.restarts.map(|left| left - 1);
            }
            agent.doing = Doing::Stopping(stopped);
            self.note(|| format!("n{node} stops its workers ({waiting} waiting)"));
            return self.nodes[node].agent.stop;
        }
        self.nodes[node].agent.poll
    }

    /// Tells when to look again.
    fn shut_down_at(&mut self, node: NodeIx, until: Time) -> Duration {
        if self.now >= until {
            self.shut_down(node);
        }
        self.nodes[node]
            .agent
            .poll
            .min(until.saturating_sub(self.now))
            .max(Duration::from_millis(1))
    }

    pub fn join(&mut self, node: NodeIx) {
        let agent = &mut self.nodes[node].agent;
        agent.doing = Doing::Joining;
        agent.joins += 1;
        agent.joined_at = self.now;
        let addr = format!("n{node}.{}", agent.joins);
        self.feed(node, Input::Join(Master { addr, port: 29500 }));
    }

    /// `set_closed()`.
    pub fn close(&mut self, node: NodeIx) {
        self.note(|| format!("n{node} closes the run"));
        self.nodes[node].agent.doing = Doing::Closing;
        self.wish(node, true);
    }

    /// `shutdown()`, as torch's launcher calls it.
    pub fn shut_down(&mut self, node: NodeIx) {
        self.note(|| format!("n{node} shuts down"));
        self.nodes[node].agent.doing = Doing::ShuttingDown;
        self.wish(node, false);
    }

    fn wish(&mut self, node: NodeIx, explicit: bool) {
        let revision = self.etcd.revision();
        self.nodes[node].agent.wish = Some(Wish { explicit, revision });
        let (by, at) = (format!("n{node}"), self.now.as_secs());
        let only_member = !explicit;
        let close = Close { by, reason: "done".into(), at, ended: None, only_member };
        self.feed(node, Input::Close(close));
    }

    pub fn agent_joined(&mut self, node: NodeIx, result: Result<Outcome, RendezvousError>) {
        let verdict = super::invariants::returned(self, node, &result);
        self.require(verdict);
        let now = self.now;
        let joining = self.nodes[node].agent.doing == Doing::Joining;
        match result {
            Ok(outcome) if joining => {
                let leases = self.nodes[node].all_leases();
                let nth = self.checks.history.returned(leases, &outcome).unwrap_or_default();
                self.nodes[node].agent.doing = Doing::Training { outcome, nth, since: now };
            }
            Ok(_) => {}
            Err(error) => {
                let of_the_run = matches!(
                    error,
                    RendezvousError::Closed(_)
                        | RendezvousError::Denied(_)
                        | RendezvousError::Replaced { .. }
                );
                self.nodes[node].agent.last_error = Some(error);
                if joining && self.scenario.persistent && !of_the_run {
                    // No agent of torch's: one that calls the barrier again.
                    self.nodes[node].agent.doing = Doing::Nothing;
                } else if joining {
                    self.nodes[node].agent.doing = Doing::Ending;
                    self.after(Duration::ZERO, Event::Shutdown(node));
                }
            }
        }
    }

    pub fn agent_ends(&mut self, node: NodeIx) {
        if self.nodes[node].agent.doing == Doing::Ending {
            self.shut_down(node);
        }
    }

    pub fn agent_closed(&mut self, node: NodeIx, result: &Result<Option<String>, RendezvousError>) {
        if let Err(error) = result {
            let wish = self.nodes[node].agent.wish.is_some_and(|wish| wish.explicit);
            if wish && matches!(error, RendezvousError::Etcd(_) | RendezvousError::Timeout(_)) {
                self.nodes[node].agent.doing = Doing::NotClosed;
                return;
            }
        } else if let Ok(None) = result {
            let verdict = super::invariants::closed::closed(self, node);
            self.require(verdict);
        }
        self.depart(node);
        self.schedule_replacement(node);
    }

    /// The scheduler starts an agent again that has failed.
    fn schedule_replacement(&mut self, node: NodeIx) {
        let agent = &self.nodes[node].agent;
        // One whose `node_id` another agent has would take it again, and so on in turn.
        let replaced = matches!(agent.last_error, Some(RendezvousError::Replaced { .. }));
        let failed = agent.last_error.is_some() && !replaced;
        let failed = failed && agent.replacements < REPLACEMENTS;
        if failed && self.scenario.replaces {
            let pause = self.rng.time(Duration::from_millis(200), Duration::from_secs(5));
            self.replacements += 1;
            self.after(pause, Event::Replace(node));
        }
    }

    pub fn replace(&mut self, node: NodeIx) {
        self.replacements -= 1;
        if !self.scenario.replaces || self.live().len() >= self.scenario.most_nodes {
            return;
        }
        let again = self.restart(node);
        self.nodes[again].agent.replacements = self.nodes[node].agent.replacements + 1;
    }

    /// Ends in order: releases its lease.
    pub fn depart(&mut self, node: NodeIx) {
        if self.nodes[node].agent.doing == Doing::Done {
            return;
        }
        self.note(|| format!("n{node} leaves"));
        self.nodes[node].agent.doing = Doing::Done;
        self.nodes[node].health = Health::Left;
        self.feed(node, Input::Leave);
        // The process ends when its lease is released, or has other things to do.
        let most = if self.rng.chance(700) { 2 } else { 60 };
        let pause = self.rng.time(Duration::ZERO, Duration::from_secs(most));
        self.after(pause, Event::Exit(node));
    }

    /// The process ends.
    pub fn exit(&mut self, node: NodeIx) {
        if self.nodes[node].health == Health::Left {
            self.nodes[node].health = Health::Gone;
            self.nodes[node].calls.clear();
            self.forget_watches(node);
        }
    }

    pub fn forget_watches(&mut self, node: NodeIx) {
        let ids: Vec<_> = self.nodes[node].watches.keys().copied().collect();
        ids.into_iter().for_each(|id| self.unwatch(node, id));
        self.nodes[node].keep_alives.clear();
    }
}
