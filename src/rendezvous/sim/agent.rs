//! What torchrun's agent does with its rendezvous handler: joins, trains, polls `num_nodes_waiting`,
//! rejoins when it is positive or when its workers fail, closes the run when they are done.

use std::time::Duration;

use super::node::{Health, NodeIx};
use super::rng::Rng;
use super::scenario::Scenario;
use super::world::{Event, World};
use crate::rendezvous::machine::{Input, Outcome, RendezvousError, Time};
use crate::rendezvous::records::Master;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Has not joined yet, or will join again after a pause.
    Nothing,
    Joining,
    Training {
        outcome: Outcome,
        since: Time,
    },
    /// Its workers are being stopped; it rejoins at this time.
    Stopping(Time),
    Closing,
    /// It has left for good.
    Done,
}

pub struct Agent {
    pub doing: Doing,
    /// How often it asks for the number of waiting nodes.
    pub poll: Duration,
    /// How long it takes to stop its workers.
    pub stop: Duration,
    /// Its workers are to fail at the next look: it will want a new round.
    pub fails: bool,
    /// Its workers are done: it will close the run.
    pub finishes: bool,
    /// It asked for a new round of its own accord: its workers had failed.
    pub wanted_restart: bool,
    pub joined_at: Time,
    pub joins: u32,
    pub last_error: Option<RendezvousError>,
}

impl Agent {
    pub fn new(scenario: &Scenario, rng: &mut Rng) -> Self {
        Self {
            doing: Doing::Nothing,
            poll: rng.time(scenario.poll / 4, scenario.poll),
            stop: rng.time(Duration::ZERO, scenario.stop),
            fails: false,
            finishes: false,
            wanted_restart: false,
            joined_at: Duration::ZERO,
            joins: 0,
            last_error: None,
        }
    }
}

impl World {
    pub fn agent_acts(&mut self, node: NodeIx) {
        let agent = &mut self.nodes[node].agent;
        let mut next = agent.poll;
        match agent.doing {
            Doing::Nothing => self.join(node),
            Doing::Training { .. } => {
                let waiting = self.nodes[node].machine.status().waiting;
                let result = super::invariants::waiting::positive_for_a_reason(self, node, waiting);
                self.require(result);
                let agent = &mut self.nodes[node].agent;
                if agent.finishes {
                    self.shut_down(node);
                } else if waiting > 0 || agent.fails {
                    agent.wanted_restart = agent.fails;
                    agent.fails = false;
                    agent.doing = Doing::Stopping(self.now + agent.stop);
                    next = agent.stop;
                    self.note(|| format!("n{node} stops its workers ({waiting} waiting)"));
                }
            }
            Doing::Stopping(until) if self.now >= until => self.join(node),
            Doing::Stopping(until) => next = until - self.now,
            Doing::Joining | Doing::Closing => {}
            Doing::Done => return,
        }
        self.after(next, Event::Agent(node));
    }

    pub fn join(&mut self, node: NodeIx) {
        let agent = &mut self.nodes[node].agent;
        agent.doing = Doing::Joining;
        agent.joins += 1;
        agent.joined_at = self.now;
        let addr = format!("n{node}.{}", agent.joins);
        self.feed(node, Input::Join(Master { addr, port: 29500 }));
    }

    /// Its workers have finished, or it has failed: torch's launcher closes the run then.
    pub fn close(&mut self, node: NodeIx) {
        self.note(|| format!("n{node} closes the run"));
        self.nodes[node].agent.doing = Doing::Closing;
        let (by, at) = (format!("n{node}"), self.now.as_secs());
        self.feed(node, Input::Close { by, reason: "done".into(), at });
    }

    /// As the handler does: who is none of the run does not close it.
    fn shut_down(&mut self, node: NodeIx) {
        if self.nodes[node].machine.status().excluded.is_some() {
            self.depart(node);
        } else {
            self.close(node);
        }
    }

    pub fn agent_joined(&mut self, node: NodeIx, result: Result<Outcome, RendezvousError>) {
        let verdict = super::invariants::returned(self, node, &result);
        self.require(verdict);
        let now = self.now;
        let agent = &mut self.nodes[node].agent;
        match result {
            Ok(outcome) => {
                if agent.doing == Doing::Joining {
                    agent.doing = Doing::Training { outcome, since: now };
                }
            }
            Err(
                RendezvousError::Closed(_)
                | RendezvousError::Denied(_)
                | RendezvousError::Replaced { .. },
            ) => self.depart(node),
            Err(error) => {
                agent.last_error = Some(error);
                if agent.doing == Doing::Joining {
                    agent.doing = Doing::Nothing;
                }
            }
        }
    }

    pub fn agent_closed(&mut self, node: NodeIx, result: &Result<(), RendezvousError>) {
        if result.is_ok() {
            let verdict = super::invariants::closed::closed(self, node);
            self.require(verdict);
            self.depart(node);
        } else if let Err(RendezvousError::Replaced { .. }) = result {
            self.depart(node);
        } else {
            // It tries again.
            self.close(node);
        }
    }

    /// Ends in order: gives its lease back.
    pub fn depart(&mut self, node: NodeIx) {
        if self.nodes[node].agent.doing == Doing::Done {
            return;
        }
        self.note(|| format!("n{node} leaves"));
        self.nodes[node].agent.doing = Doing::Done;
        self.feed(node, Input::Leave);
        self.nodes[node].health = Health::Gone;
        self.forget_watches(node);
    }

    pub fn forget_watches(&mut self, node: NodeIx) {
        let ids: Vec<_> = self.nodes[node].watches.keys().copied().collect();
        ids.into_iter().for_each(|id| self.unwatch(node, id));
        self.nodes[node].keep_alives.clear();
    }
}
