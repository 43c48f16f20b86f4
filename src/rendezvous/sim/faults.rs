//! What can happen to a world, as verbs.

use std::time::Duration;

use super::agent::Doing;
use super::node::{Health, NodeIx};
use super::scenario::Link;
use super::world::{Event, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Crash,
    CrashCoordinator,
    Leave,
    Start,
    Pause,
    PauseCoordinator,
    Partition,
    BreakWatches,
    Compact,
    Outage,
    WorkersFail,
    Finish,
    Trap,
    Reopen,
    Deny,
    Allow,
    Restart,
    Double,
}

impl Fault {
    /// What people do from outside; a run without any of it is what there mostly is.
    pub const OF_PEOPLE: [Self; 5] =
        [Self::Reopen, Self::Deny, Self::Allow, Self::Restart, Self::Double];

    pub const ALL: [Self; 18] = [
        Self::Crash,
        Self::CrashCoordinator,
        Self::Leave,
        Self::Start,
        Self::Pause,
        Self::PauseCoordinator,
        Self::Partition,
        Self::BreakWatches,
        Self::Compact,
        Self::Outage,
        Self::WorkersFail,
        Self::Finish,
        Self::Trap,
        Self::Reopen,
        Self::Deny,
        Self::Allow,
        Self::Restart,
        Self::Double,
    ];
}

/// The end of a fault.
#[derive(Clone, Copy, Debug)]
pub enum Recovery {
    Resume(NodeIx),
    Reconnect(NodeIx),
    EtcdIsBack,
}

impl World {
    pub fn next_fault(&mut self) {
        if !self.chaos {
            return;
        }
        if let Some(fault) = self.rng.pick(&self.scenario.faults.clone()) {
            self.inject(fault);
        }
        let pause = self.rng.time(Duration::from_millis(5), self.scenario.fault_pause);
        self.after(pause, Event::Fault);
    }

    fn inject(&mut self, fault: Fault) {
        let up = self.up();
        let live = self.live();
        let ttl = self.scenario.settings.ttl;
        let long = self.rng.time(Duration::from_millis(50), ttl * 2);
        match fault {
            Fault::Crash => self.rng.pick(&live).into_iter().for_each(|node| self.crash(node)),
            Fault::CrashCoordinator => {
                self.coordinator().into_iter().for_each(|node| self.crash(node));
            }
            Fault::Leave => self.rng.pick(&up).into_iter().for_each(|node| self.depart(node)),
            Fault::Start => {
                if live.len() < self.scenario.most_nodes {
                    self.start_node();
                }
            }
            Fault::Pause => {
                self.rng.pick(&up).into_iter().for_each(|node| self.pause(node, long));
            }
            Fault::PauseCoordinator => {
                let coordinator = self.coordinator().filter(|node| up.contains(node));
                coordinator.into_iter().for_each(|node| self.pause(node, long));
            }
            Fault::Partition => {
                self.rng.pick(&live).into_iter().for_each(|node| self.partition(node, long));
            }
            Fault::BreakWatches => {
                self.rng.pick(&live).into_iter().for_each(|node| self.break_watches(node));
            }
            Fault::Compact => self.compact(),
            Fault::Outage => self.stop_etcd(long),
            Fault::WorkersFail => {
                let training = self.training();
                let chosen = self.rng.pick(&training);
                chosen.into_iter().for_each(|node| self.nodes[node].agent.fails = true);
            }
            Fault::Reopen => self.reopen(),
            Fault::Deny => self.rng.pick(&live).into_iter().for_each(|node| self.deny(node)),
            Fault::Allow => self.allow_all(),
            Fault::Restart => {
                self.rng.pick(&live).into_iter().for_each(|node| self.restart(node, true));
            }
            Fault::Double => {
                if live.len() < self.scenario.most_nodes && self.scenario.node_ids {
                    self.rng.pick(&live).into_iter().for_each(|node| self.restart(node, false));
                }
            }
            Fault::Trap => {
                self.trap = super::traps::Trap::any(&mut self.rng, self.scenario.closes);
            }
            Fault::Finish => {
                let training = self.training();
                let chosen = self.rng.pick(&training);
                chosen.into_iter().for_each(|node| self.nodes[node].agent.finishes = true);
            }
        }
    }

    /// SIGKILL: nobody gives its lease back.
    pub fn crash(&mut self, node: NodeIx) {
        self.note(|| format!("n{node} crashes"));
        self.nodes[node].health = Health::Gone;
        self.nodes[node].agent.doing = Doing::Done;
        self.nodes[node].calls.clear();
        self.forget_watches(node);
    }

    pub fn pause(&mut self, node: NodeIx, time: Duration) {
        if self.nodes[node].is_up() {
            self.note(|| format!("n{node} is paused for {:.3} s", time.as_secs_f64()));
            self.nodes[node].health = Health::Paused;
            self.after(time, Event::Recover(Recovery::Resume(node)));
        }
    }

    pub fn partition(&mut self, node: NodeIx, time: Duration) {
        if !self.nodes[node].partitioned {
            self.note(|| format!("n{node} is cut off for {:.3} s", time.as_secs_f64()));
            self.nodes[node].partitioned = true;
            self.break_watches(node);
            self.after(time, Event::Recover(Recovery::Reconnect(node)));
        }
    }

    pub fn stop_etcd(&mut self, time: Duration) {
        if !self.etcd_down {
            self.note(|| format!("etcd is down for {:.3} s", time.as_secs_f64()));
            self.etcd_down = true;
            (0..self.nodes.len()).for_each(|node| self.break_watches(node));
            self.after(time, Event::Recover(Recovery::EtcdIsBack));
        }
    }

    pub fn compact(&mut self) {
        let (oldest, newest) = (self.etcd.compacted(), self.etcd.revision());
        if newest > oldest {
            let back = self.rng.below(4) as i64;
            let revision = (newest - back).max(oldest + 1);
            self.note(|| format!("etcd compacts up to {revision}"));
            // Only a revision that is too old is refused.
            let _ = self.etcd.compact(revision);
        }
    }

    pub fn recover(&mut self, recovery: Recovery) {
        match recovery {
            Recovery::Resume(node) => {
                if self.nodes[node].health == Health::Paused {
                    self.note(|| format!("n{node} goes on"));
                    self.nodes[node].health = Health::Up;
                    self.catch_up(node);
                }
            }
            Recovery::Reconnect(node) => {
                if self.nodes[node].partitioned {
                    self.note(|| format!("n{node} is connected again"));
                    self.nodes[node].partitioned = false;
                }
            }
            Recovery::EtcdIsBack => {
                if self.etcd_down {
                    self.note(|| "etcd is back".into());
                    self.etcd_down = false;
                    self.etcd.extend_leases(self.now);
                }
            }
        }
    }

    /// No faults from now on: who is stopped goes on, who is cut off is connected, the network is quick.
    pub fn heal(&mut self) {
        self.note(|| "--- all faults end".into());
        self.chaos = false;
        self.trap = None;
        for node in &mut self.nodes {
            node.agent.fails = false;
            node.agent.finishes = false;
        }
        self.link = Link::CALM;
        self.recover(Recovery::EtcdIsBack);
        for node in 0..self.nodes.len() {
            self.recover(Recovery::Resume(node));
            self.recover(Recovery::Reconnect(node));
        }
        // What travels slowly arrives now. Copies that nobody waits for any more may still be late.
        let calls: Vec<(NodeIx, u64, u32)> = self
            .nodes
            .iter()
            .enumerate()
            .flat_map(|(node, state)| state.calls.iter().map(move |(id, c)| (node, *id, c.attempt)))
            .collect();
        self.hurry(Link::CALM.latency, |event| match event {
            Event::Arrive(node, call, attempt, _)
            | Event::Answer(node, call, attempt, _)
            | Event::Retry(node, call, attempt) => calls.contains(&(*node, *call, *attempt)),
            Event::OpenWatch(..) | Event::Deliver(..) | Event::LeaseLost(..) => true,
            _ => false,
        });
        if self.rng.chance(500) {
            self.allow_all();
        }
        self.healed = Some(self.now);
    }
}
