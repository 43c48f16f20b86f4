//! What a seed stands for: the size of the world, its times, and which faults it knows.

use std::time::Duration;

use super::faults::Fault;
use super::hooks::Hooks;
use super::rng::Rng;
use crate::rendezvous::keys::Keys;
use crate::rendezvous::labels::Labels;
use crate::rendezvous::machine::{OnMemberLoss, Settings};
use crate::rendezvous::ranks::RankOrder;
use crate::rendezvous::records::NodeInfo;

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
}

impl Link {
    pub const CALM: Self = Self {
        latency: Duration::from_millis(4),
        slow: 0,
        slowest: Duration::from_millis(4),
        lost: 0,
        split: 0,
        patience: Duration::from_secs(4),
    };
}

#[derive(Clone, Debug)]
pub struct Scenario {
    pub settings: Settings,
    pub nodes: usize,
    /// The nodes start within this time.
    pub arrivals: Duration,
    pub poll: Duration,
    pub stop: Duration,
    pub link: Link,
    pub chaos: Duration,
    pub fault_pause: Duration,
    /// The faults of this scenario, each as often as it is listed.
    pub faults: Vec<Fault>,
    /// How many nodes may be alive at once.
    pub most_nodes: usize,
    /// Faults stop, and then one coordinator dies all the same.
    pub last_crash: bool,
    /// The run may be closed while faults happen, which ends most of what there is to see.
    pub closes: bool,
    /// Nodes have a `node_id` each.
    pub node_ids: bool,
    /// In how many domains nodes are, for an order by topology.
    pub domains: usize,
    pub hooks: Hooks,
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
                node: NodeInfo::default(),
                labels: Labels::default(),
                order: RankOrder::Stable,
                epoch: Duration::from_secs(1_700_000_000),
                seed: 0,
            },
            nodes,
            arrivals: Duration::ZERO,
            poll: Duration::from_millis(100),
            stop: Duration::from_millis(100),
            link: Link::CALM,
            chaos: Duration::ZERO,
            fault_pause: Duration::from_secs(1),
            faults: Vec::new(),
            most_nodes: nodes,
            last_crash: false,
            closes: false,
            node_ids: false,
            domains: 1,
            hooks: Hooks::default(),
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
        let settings = &mut scenario.settings;
        settings.run_ttl = seconds(rng.between(45, 90));
        settings.ttl = seconds(rng.between(2, 10));
        settings.last_call = millis(rng.between(300, 8000));
        settings.close_timeout = seconds(rng.between(1, 30));
        settings.join_timeout = seconds(rng.between(20, 600));
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
        scenario.arrivals = rng.time(Duration::ZERO, seconds(5));
        let slowest = if rng.chance(200) { 9000 } else { 1500 };
        scenario.poll = rng.time(millis(20), millis(slowest));
        scenario.stop = rng.time(Duration::ZERO, millis(1000));
        // Agents that are slower than the last call would for ever come too late, some of them each time.
        let slow = scenario.poll + scenario.stop;
        scenario.settings.last_call = scenario.settings.last_call.max(slow);
        scenario.chaos = rng.time(seconds(10), seconds(60));
        scenario.fault_pause = rng.time(millis(100), seconds(4));
        scenario.last_crash = rng.chance(400);
        scenario.link = Link {
            latency: rng.time(millis(1), millis(40)),
            slow: rng.between(0, 100),
            slowest: rng.time(millis(50), seconds(3)),
            lost: rng.between(0, 60),
            split: rng.between(0, 500),
            patience: rng.time(millis(300), seconds(4)),
        };
        if rng.chance(500) {
            scenario.hooks.members_per_txn = Some(1 + rng.below(3));
            scenario.hooks.page = Some(1 + rng.between(0, 2) as i64);
        }
        let traps = rng.chance(400);
        scenario.closes = rng.chance(if traps { 500 } else { 250 });
        if traps {
            scenario.faults = vec![Fault::Trap, Fault::Trap, Fault::Trap, Fault::Start];
            scenario.fault_pause = rng.time(millis(50), millis(800));
            if rng.chance(500) {
                scenario.faults.push(Fault::WorkersFail);
            }
            if rng.chance(300) {
                scenario.faults.extend([Fault::Reopen, Fault::Restart, Fault::Double]);
            }
            if rng.chance(200) {
                scenario.faults.extend([Fault::Deny, Fault::Allow]);
            }
            return scenario;
        }
        // Each seed knows a few kinds of faults only: together they would hide each other.
        for fault in Fault::ALL {
            let share = if Fault::OF_PEOPLE.contains(&fault) { 200 } else { 450 };
            if rng.chance(share) && (fault != Fault::Finish || scenario.closes) {
                let often = rng.between(1, 4);
                scenario.faults.extend((0..often).map(|_| fault));
            }
        }
        scenario
    }

    /// What a node says of itself.
    pub fn labels(&self, index: usize, rng: &mut Rng) -> Labels {
        let order = self.settings.order;
        let domain = matches!(order, RankOrder::Topology { .. }).then(|| rng.below(self.domains));
        Labels {
            node_id: self.node_ids.then(|| format!("id{index}")),
            // Some have none, and some the same.
            infra_rank: (order == RankOrder::Infra).then(|| rng.between(0, 9)).filter(|r| *r > 0),
            domain: domain.map(|domain| format!("d{domain}")),
        }
    }

    /// The longest that one message takes when there are no faults.
    pub fn calm_latency(&self) -> Duration {
        Link::CALM.latency
    }
}
