//! Faults that strike at the worst moment: just after a certain key was written.

use std::time::Duration;

use super::model::Touched;
use super::node::NodeIx;
use super::rng::Rng;
use super::world::World;
use crate::rendezvous::keys::node_of;

/// What springs the trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Opened,
    Joined,
    LastCall,
    Coordinator,
    Member,
    Completed,
    Waiting,
    Deleted,
}

const MOMENTS: [Moment; 9] = [
    Moment::Opened,
    Moment::Joined,
    Moment::LastCall,
    Moment::Coordinator,
    Moment::Member,
    Moment::Member,
    Moment::Completed,
    Moment::Waiting,
    Moment::Deleted,
];

#[derive(Clone, Copy, Debug)]
enum Victim {
    /// Who sent the write; its answer is on its way.
    Writer,
    /// Whose key it is.
    Owner,
    Anybody,
}

#[derive(Clone, Copy, Debug)]
enum Blow {
    Crash,
    Pause,
    Partition,
    BreakWatches,
    Compact,
    Outage,
}

#[derive(Clone, Copy, Debug)]
pub struct Trap {
    moment: Moment,
    /// How many such writes it lets pass.
    spared: usize,
    victim: Victim,
    blow: Blow,
}

impl Trap {
    pub fn any(rng: &mut Rng) -> Option<Self> {
        let blows = [
            Blow::Crash,
            Blow::Crash,
            Blow::Pause,
            Blow::Pause,
            Blow::Partition,
            Blow::Partition,
            Blow::BreakWatches,
            Blow::Compact,
            Blow::Outage,
        ];
        Some(Self {
            moment: rng.pick(&MOMENTS)?,
            spared: if rng.chance(500) { 0 } else { rng.below(4) },
            victim: rng.pick(&[Victim::Writer, Victim::Owner, Victim::Anybody])?,
            blow: rng.pick(&blows)?,
        })
    }
}

impl World {
    pub fn spring_trap(&mut self, writer: Option<NodeIx>, touched: &Touched) {
        let Some(trap) = &mut self.trap else { return };
        let key = String::from_utf8_lossy(&touched.kv.key);
        let value = String::from_utf8_lossy(&touched.kv.value);
        let moment = match key.rsplit('/').nth(1) {
            _ if touched.deleted => Moment::Deleted,
            _ if value.contains("\"state\":\"open\"") => Moment::Opened,
            _ if value.contains("\"state\":\"final\"") => Moment::Completed,
            _ if key.ends_with("/last_call") => Moment::LastCall,
            Some("member") => Moment::Member,
            Some("join") => Moment::Joined,
            Some("waiting") => Moment::Waiting,
            _ => Moment::Coordinator,
        };
        if trap.moment != moment {
            return;
        }
        if trap.spared > 0 {
            trap.spared -= 1;
            return;
        }
        let Trap { victim, blow, .. } = *trap;
        self.trap = None;
        let owner = node_of(&touched.kv.key).and_then(|lease| self.holder(lease));
        let live = self.live();
        let node = match victim {
            Victim::Writer => writer,
            Victim::Owner => owner,
            Victim::Anybody => self.rng.pick(&live),
        };
        let Some(node) = node.filter(|node| live.contains(node)) else { return };
        let most =
            if self.rng.chance(500) { self.scenario.settings.ttl * 2 } else { self.link.slowest };
        let time = self.rng.time(Duration::from_millis(5), most);
        match blow {
            Blow::Crash => self.crash(node),
            Blow::Pause => self.pause(node, time),
            Blow::Partition => self.partition(node, time),
            Blow::BreakWatches => self.break_watches(node),
            Blow::Compact => self.compact(),
            Blow::Outage => self.stop_etcd(time),
        }
    }
}
