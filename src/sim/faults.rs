//! What can happen to a world, as verbs.

use std::time::Duration;

use super::agent::Doing;
use super::fault::{Fault, Recovery};
use super::node::{Health, NodeIx};
use super::scenario::Link;
use super::world::{Event, World};

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
        let one_of = |world: &mut Self, nodes: &[NodeIx], verb: &dyn Fn(&mut Self, NodeIx)| {
            world.rng.pick(nodes).into_iter().for_each(|node| verb(world, node));
        };
        match fault {
            Fault::Crash => one_of(self, &live, &Self::crash),
            Fault::CrashCoordinator => {
                self.coordinator().into_iter().for_each(|node| self.crash(node));
            }
            Fault::Leave => one_of(self, &up, &Self::depart),
            Fault::Start => {
                if live.len() < self.scenario.most_nodes {
                    self.start_node();
                }
            }
            Fault::Pause => one_of(self, &up, &|world, node| world.pause(node, long)),
            Fault::PauseCoordinator => {
                let coordinator = self.coordinator().filter(|node| up.contains(node));
                coordinator.into_iter().for_each(|node| self.pause(node, long));
            }
            Fault::Partition => one_of(self, &live, &|world, node| world.partition(node, long)),
            Fault::BreakWatches => one_of(self, &live, &Self::break_watches),
            Fault::Compact => self.compact(),
            Fault::Outage => self.stop_etcd(long),
            Fault::LeaderChange => self.change_leader(),
            Fault::Forbid => one_of(self, &live, &|world, node| world.forbid(node, long)),
            Fault::Full => self.fill_etcd(long),
            Fault::Wipe => self.wipe_etcd(long),
            Fault::WorkersFail => {
                let training = self.training();
                one_of(self, &training, &|world, node| world.nodes[node].agent.fails = true);
            }
            Fault::Finish => {
                let training = self.training();
                one_of(self, &training, &|world, node| world.nodes[node].agent.finishes = true);
            }
            Fault::Reopen => self.reopen(),
            Fault::CloseByOperator => self.close_by_operator(),
            Fault::Deny => one_of(self, &live, &Self::deny),
            Fault::Allow => self.allow_all(),
            Fault::Evict => one_of(self, &live, &Self::evict),
            Fault::DeleteAll => self.delete_all(),
            Fault::Restart => one_of(self, &live, &|world, node| world.kill_and_restart(node)),
            Fault::Double => {
                if live.len() < self.scenario.most_nodes && self.scenario.node_ids {
                    one_of(self, &live, &|world, node| world.double(node));
                }
            }
            Fault::Trap => {
                self.trap = super::trap::Trap::any(&mut self.rng, self.scenario.closes);
            }
        }
    }

    /// SIGKILL: nobody releases its lease.
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

    pub fn forbid(&mut self, node: NodeIx, time: Duration) {
        if !self.nodes[node].forbidden {
            self.note(|| format!("n{node} has no rights for {:.3} s", time.as_secs_f64()));
            self.nodes[node].forbidden = true;
            // Its watches go on, unless their stream has to be reopened.
            if self.rng.chance(500) {
                self.break_watches(node);
            }
            self.after(time, Event::Recover(Recovery::Permit(node)));
        }
    }

    pub fn fill_etcd(&mut self, time: Duration) {
        if !self.etcd_full {
            self.note(|| format!("etcd has no space for {:.3} s", time.as_secs_f64()));
            self.etcd_full = true;
            self.after(time, Event::Recover(Recovery::EtcdHasSpace));
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

    /// Its data is gone when it is back.
    pub fn wipe_etcd(&mut self, time: Duration) {
        self.stop_etcd(time);
        self.note(|| "etcd is wiped".into());
        self.etcd = super::model::Etcd::default();
        self.etcd_number += 1;
        self.drop_messages();
        self.denied.clear();
        self.checks.begin_anew();
    }

    /// Nobody notices but the leases, which get their whole time again.
    pub fn change_leader(&mut self) {
        if !self.etcd_down {
            self.note(|| "etcd has a new leader".into());
            self.etcd.extend_leases(self.now);
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
        let now = self.now;
        match recovery {
            Recovery::Resume(node) => {
                if self.nodes[node].health == Health::Paused {
                    self.note(|| format!("n{node} goes on"));
                    self.nodes[node].health = Health::Up;
                    self.nodes[node].disturbed = now;
                    self.catch_up(node);
                }
            }
            Recovery::Reconnect(node) => {
                if self.nodes[node].partitioned {
                    self.note(|| format!("n{node} is connected again"));
                    self.nodes[node].partitioned = false;
                    self.nodes[node].disturbed = now;
                }
            }
            Recovery::Permit(node) => {
                if self.nodes[node].forbidden {
                    self.note(|| format!("n{node} has its rights again"));
                    self.nodes[node].forbidden = false;
                }
            }
            Recovery::EtcdIsBack => {
                if self.etcd_down {
                    self.note(|| "etcd is back".into());
                    self.etcd_down = false;
                    self.etcd.extend_leases(self.now);
                    self.nodes.iter_mut().for_each(|node| node.disturbed = now);
                }
            }
            Recovery::EtcdHasSpace => {
                if self.etcd_full {
                    self.note(|| "etcd has space again".into());
                    self.etcd_full = false;
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
            if let Doing::Finishing(until) = &mut node.agent.doing {
                *until = self.now.min(*until);
            }
        }
        self.link = Link::CALM;
        self.recover(Recovery::EtcdIsBack);
        self.recover(Recovery::EtcdHasSpace);
        for node in 0..self.nodes.len() {
            self.recover(Recovery::Resume(node));
            self.recover(Recovery::Reconnect(node));
            self.recover(Recovery::Permit(node));
        }
        // What travels slowly arrives now. Copies that nobody waits for any more may still be late.
        let calls: Vec<(NodeIx, u64, u32)> = self
            .nodes
            .iter()
            .enumerate()
            .flat_map(|(node, state)| state.calls.iter().map(move |(id, c)| (node, *id, c.attempt)))
            .collect();
        self.hurry(Link::CALM.latency, |event| match event {
            Event::Arrive(node, call, attempt, ..)
            | Event::Answer(node, call, attempt, _)
            | Event::Retry(node, call, attempt) => calls.contains(&(*node, *call, *attempt)),
            Event::OpenWatch(..) | Event::Deliver(..) | Event::LeaseLost(..) => true,
            Event::HistoryLost(..) => true,
            _ => false,
        });
        if self.rng.chance(500) {
            self.allow_all();
        }
        self.healed = Some(self.now);
        self.checks.opened_when_healed = self.checks.history.opened;
        self.checks.live_when_healed = self.live().len() as u64;
    }
}
