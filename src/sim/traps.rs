//! How a trap springs.

use std::time::Duration;

use super::model::Touched;
use super::node::NodeIx;
use super::trap::{Blow, Moment, Trap, Victim};
use super::world::{Event, World};
use crate::rendezvous::keys::node_of;

impl World {
    /// A key was written.
    pub fn spring_trap(&mut self, writer: Option<NodeIx>, touched: &Touched) {
        if self.trap.is_none() {
            return;
        }
        let owner = node_of(&touched.kv.key).and_then(|lease| self.holder(lease));
        let key = String::from_utf8_lossy(&touched.kv.key);
        let value = String::from_utf8_lossy(&touched.kv.value);
        let moment = match key.strip_prefix("/sim/run_a/rdzv/").unwrap_or_default() {
            _ if touched.deleted => Moment::Deleted,
            "head/control" if value.contains("\"state\":\"open\"") => Moment::Opened,
            "head/control" => Moment::Completed,
            "head/coordinator" => Moment::Coordinator,
            rest if rest.ends_with("/last_call") => Moment::LastCall,
            rest if rest.contains("/member/") => Moment::Member,
            rest if rest.contains("/join/") => Moment::Joined,
            rest if rest.contains("/waiting/") => Moment::Waiting,
            _ => return,
        };
        self.spring_trap_at(moment, writer, owner);
    }

    pub fn spring_trap_at(
        &mut self,
        moment: Moment,
        writer: Option<NodeIx>,
        owner: Option<NodeIx>,
    ) {
        let Some(trap) = self.trap.as_mut().filter(|trap| trap.moment == moment) else { return };
        if trap.spared > 0 {
            trap.spared -= 1;
            return;
        }
        let Trap { victim, blow, .. } = *trap;
        self.trap = None;
        let live = self.live();
        let node = match victim {
            Victim::Writer => writer,
            Victim::Owner => owner,
            Victim::Anybody => self.rng.pick(&live),
        };
        let Some(node) = node.filter(|node| live.contains(node)) else { return };
        let pause = self.rng.time(Duration::ZERO, self.link.latency * 3);
        if self.rng.chance(500) {
            self.strike(node, blow);
        } else {
            self.after(pause, Event::Strike(node, blow));
        }
    }

    pub fn strike(&mut self, node: NodeIx, blow: Blow) {
        if !self.chaos || !self.nodes[node].is_live() {
            return;
        }
        let long = self.rng.chance(500);
        let most = if long { self.scenario.settings.ttl * 2 } else { self.link.slowest };
        let time = self.rng.time(Duration::from_millis(5), most);
        match blow {
            Blow::Crash => self.crash(node),
            Blow::Leave if self.nodes[node].is_up() => self.depart(node),
            Blow::Close if self.nodes[node].is_up() => self.close(node),
            Blow::Leave | Blow::Close => {}
            Blow::Pause => self.pause(node, time),
            Blow::Partition => self.partition(node, time),
            Blow::BreakWatches => self.break_watches(node),
            Blow::Compact => self.compact(),
            Blow::Outage => self.stop_etcd(time),
            Blow::Forbid => self.forbid(node, time.min(self.link.slowest)),
        }
    }
}
