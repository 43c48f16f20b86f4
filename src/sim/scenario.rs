//! What a seed stands for: the size of the world, its times, and which faults it knows.

use std::time::Duration;

use super::fault::Fault;
use super::rng::Rng;
use super::unequal::Unequal;
use crate::rendezvous::keys::Keys;
use crate::rendezvous::records::Labels;
use crate::rendezvous::records::NodeInfo;
use crate::rendezvous::records::RankOrder;
use crate::rendezvous::{OnMemberLoss, Settings, Tuning};

/// How messages travel. The shares are in thousandths.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub latency: Duration,
    pub slow: u64,
    pub slowest: Duration,
    pub lost: u64,
    pub split: u64,
    /// How long a driver waits for an answer before it asks again.
    pub patience: Duration,
    /// How many revisions a member of etcd that a watch is opened at may be behind.
    pub lag: u64,
}

impl Link {
    pub const CALM: Self = Self {
        latency: Duration::from_millis(4),
        slow: 0,
        slowest: Duration::from_millis(4),
        lost: 0,
        split: 0,
        patience: Duration::from_secs(4),
        lag: 0,
    };
}

#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is about something else")]
pub struct Scenario {
    pub settings: Settings,
    /// In what nodes differ from those settings.
    pub unequal: Unequal,
    pub nodes: usize,
    /// The nodes start within this time.
    pub arrivals: Duration,
    pub poll: Duration,
    pub stop: Duration,
    /// How long an agent whose workers are done waits for the others, at most.
    pub exit_barrier: Duration,
    pub link: Link,
    pub chaos: Duration,
    pub fault_pause: Duration,
    /// The faults of this scenario, each as often as it is listed.
    pub faults: Vec<Fault>,
    /// How many nodes may be alive at once.
    pub most_nodes: usize,
    /// Faults stop, and after that one coordinator dies.
    pub last_crash: bool,
    /// Faults have stopped, and after that a member dies.
    pub late_loss: bool,
    /// The run may be closed while faults happen, which ends most of what there is to see.
    pub closes: bool,
    /// Agents call the barrier again after an error, as torch's do not.
    pub persistent: bool,
    /// A scheduler starts agents again that have failed.
    pub replaces: bool,
    /// Nodes have a `node_id` each.
    pub node_ids: bool,
    /// In how many domains nodes are, for an order by topology.
    pub domains: usize,
}

impl Scenario {
    /// No faults, no surprises: for stories and for measuring.
    pub fn calm(nodes: usize, min: usize, max: usize) -> Self {
        Self {
            settings: Settings {
                keys: Keys::new("/sim/run_a"),
                min,
                max,
                join_timeout: Duration::from_secs(600),
                last_call: Duration::from_secs(5),
                close_timeout: Duration::from_secs(30),
                ttl: Duration::from_secs(10),
                run_ttl: Duration::from_secs(7200),
                on_member_loss: OnMemberLoss::Restart,
                survivor_grace: Duration::from_secs(60),
                reopen_if_closed: false,
                version: 1,
                node: NodeInfo::default(),
                labels: Labels::default(),
                order: RankOrder::Stable,
                epoch: Duration::from_secs(1_700_000_000),
                seed: 0,
                tuning: Tuning::default(),
            },
            unequal: Unequal::default(),
            nodes,
            arrivals: Duration::ZERO,
            poll: Duration::from_millis(100),
            stop: Duration::from_millis(100),
            exit_barrier: Duration::ZERO,
            link: Link::CALM,
            chaos: Duration::ZERO,
            fault_pause: Duration::from_secs(1),
            faults: Vec::new(),
            most_nodes: nodes,
            last_crash: false,
            late_loss: false,
            closes: false,
            persistent: false,
            replaces: false,
            node_ids: false,
            domains: 1,
        }
    }

    pub fn of(seed: u64) -> Self {
        let rng = &mut Rng::new(seed ^ 0x5ce0_a210);
        let seconds = Duration::from_secs;
        let millis = Duration::from_millis;
        let min = 1 + rng.below(4);
        let max = min + rng.below(4);
        let nodes = 1 + rng.below(max + 2);
        let mut scenario = Self::calm(nodes, min, max);
        scenario.times(rng);
        let settings = &mut scenario.settings;
        if rng.chance(250) {
            settings.on_member_loss = OnMemberLoss::Ignore;
        }
        scenario.node_ids = rng.chance(350);
        scenario.domains = 1 + rng.below(3);
        let segment = 1 + rng.below(3);
        let orders = [RankOrder::Join, RankOrder::Infra, RankOrder::Topology { segment }];
        if rng.chance(600) {
            let order = rng.pick(&orders).unwrap_or_default();
            scenario.settings.order = order;
            scenario.settings.max = max.max(order.smallest(min));
        }
        scenario.most_nodes = scenario.settings.max + 3;
        scenario.unequal = Unequal::any(rng);
        scenario.arrivals = rng.time(Duration::ZERO, seconds(5));
        scenario.chaos = rng.time(seconds(10), seconds(60));
        scenario.fault_pause = rng.time(millis(100), seconds(4));
        scenario.last_crash = rng.chance(400);
        scenario.late_loss = rng.chance(500);
        scenario.persistent = rng.chance(250);
        scenario.replaces = rng.chance(500);
        scenario.link = Link {
            latency: rng.time(millis(1), millis(40)),
            slow: rng.between(0, 100),
            slowest: rng.time(millis(50), seconds(3)),
            lost: rng.between(0, 60),
            split: rng.between(0, 500),
            patience: rng.time(millis(300), seconds(4)),
            lag: if rng.chance(300) { rng.between(1, 6) } else { 0 },
        };
        if rng.chance(500) {
            // Small worlds have several of them, too.
            let tuning = &mut scenario.settings.tuning;
            tuning.members_per_txn = 1 + rng.below(3);
            tuning.join_page = 1 + rng.between(0, 2) as i64;
        }
        let traps = rng.chance(400);
        scenario.closes = rng.chance(if traps { 500 } else { 250 });
        scenario.faults = if traps { scenario.traps(rng) } else { scenario.some_faults(rng) };
        scenario
    }

    fn times(&mut self, rng: &mut Rng) {
        let seconds = Duration::from_secs;
        let millis = Duration::from_millis;
        let slowest = if rng.chance(200) { 9000 } else { 1500 };
        self.poll = rng.time(millis(20), millis(slowest));
        // torch gives workers 30 s to stop, and as long again once they are killed.
        let slowest = if rng.chance(650) { 1 } else { [10, 60][rng.below(2)] };
        self.stop = rng.time(Duration::ZERO, seconds(slowest));
        self.exit_barrier = rng.time(Duration::ZERO, seconds(60));
        let slow = self.poll + self.stop;
        let settings = &mut self.settings;
        settings.run_ttl = seconds(rng.between(45, 90));
        settings.ttl = seconds(rng.between(2, 10));
        settings.last_call = millis(rng.between(300, 8000));
        settings.close_timeout = seconds(rng.between(1, 30));
        // A node that waits for no longer than others need would give up each time.
        let shortest = slow * 2 + settings.last_call + settings.ttl * 3;
        settings.join_timeout = seconds(rng.between(20, 600)).max(shortest);
    }

    fn traps(&mut self, rng: &mut Rng) -> Vec<Fault> {
        let mut faults = vec![Fault::Trap, Fault::Trap, Fault::Trap, Fault::Start];
        self.fault_pause = rng.time(Duration::from_millis(50), Duration::from_millis(800));
        if rng.chance(500) {
            faults.push(Fault::WorkersFail);
        }
        if rng.chance(300) {
            faults.extend([Fault::Reopen, Fault::Restart, Fault::Double]);
        }
        if rng.chance(200) {
            faults.extend([Fault::Deny, Fault::Allow]);
        }
        if rng.chance(200) {
            faults.extend([Fault::DeleteAll, Fault::Forbid]);
        }
        faults
    }

    /// Each seed knows a few kinds of faults only: together they would hide each other.
    fn some_faults(&self, rng: &mut Rng) -> Vec<Fault> {
        let mut faults = Vec::new();
        for fault in Fault::ALL {
            let ends_it = matches!(fault, Fault::Finish | Fault::CloseByOperator);
            if rng.chance(fault.share()) && (!ends_it || self.closes) {
                let often = rng.between(1, 4);
                faults.extend((0..often).map(|_| fault));
            }
        }
        faults
    }

    /// What a node says of itself.
    pub fn labels(&self, index: usize, rng: &mut Rng) -> Labels {
        let order = self.settings.order;
        let topology = self.unequal.order || matches!(order, RankOrder::Topology { .. });
        let domain = topology.then(|| rng.below(self.domains));
        Labels {
            node_id: self.node_ids.then(|| format!("id{index}")),
            // Some have none, and some the same.
            infra_rank: (order == RankOrder::Infra || self.unequal.order)
                .then(|| rng.between(0, 9))
                .filter(|r| *r > 0),
            domain: domain.map(|domain| format!("d{domain}")),
        }
    }

    /// The longest that one message takes when there are no faults.
    pub fn calm_latency(&self) -> Duration {
        Link::CALM.latency
    }
}
