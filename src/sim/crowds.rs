//! What happens to many nodes at once, and what it costs etcd and all nodes together. For N members, k nodes
//! that are replaced or lost, and W that wait, the cost is a multiple of N + k + W, and never of a product.
//!
//! Counted are calls, bytes, keys that are written, events that watches bring, and keys that etcd looks at.
//! 16,000 nodes are looked at where `TORCHETCD_SIM_CROWD` is 16000.

use std::time::Duration;

use super::agent::Doing;
use super::node::NodeIx;
use super::scenario::Scenario;
use super::seeds::number;
use super::world::World;

const SIZES: [usize; 2] = [1000, 4000];

/// What something has cost.
#[derive(Clone, Copy, Debug, Default)]
struct Costs {
    calls: u64,
    bytes: u64,
    events: u64,
    written: u64,
    visited: u64,
}

/// What it may cost for each node that has a part in it.
const MOST: Costs = Costs { calls: 12, bytes: 12_000, events: 40, written: 8, visited: 60 };

impl Costs {
    /// Of all since this was asked last.
    fn of(world: &mut World) -> Self {
        let mut costs = Self { visited: world.etcd.take_visited(), ..Self::default() };
        for node in &mut world.nodes {
            let own = std::mem::take(&mut node.costs);
            costs.calls += own.rpcs;
            costs.bytes += own.sent + own.received;
            costs.events += own.events;
        }
        costs.written = std::mem::take(&mut world.checks.written).all;
        costs
    }

    fn parts(self) -> [(&'static str, u64); 5] {
        [
            ("calls", self.calls),
            ("bytes", self.bytes),
            ("events", self.events),
            ("written", self.written),
            ("visited", self.visited),
        ]
    }
}

struct Crowd {
    world: World,
    name: &'static str,
    /// How many rounds had been completed when the last world was formed.
    formed: u64,
}

impl Crowd {
    fn new(name: &'static str, scenario: Scenario) -> Self {
        let nodes = scenario.nodes;
        let mut world = World::new(scenario, 1);
        world.healed = Some(Duration::ZERO);
        world.start_nodes(nodes);
        Self { world, name, formed: 0 }
    }

    fn run_for(&mut self, time: Duration) {
        let until = self.world.now + time;
        self.world
            .run_until(until)
            .unwrap_or_else(|violation| panic!("{}: {violation}", self.name));
    }

    /// Until so many train, all in a new round, and for as long as what was before is swept away.
    fn form(&mut self, nodes: usize) -> Duration {
        let began = self.world.now;
        while self.world.checks.history.completed == self.formed || !self.trains(nodes) {
            self.run_for(Duration::from_millis(20));
            let took = self.world.now - began;
            assert!(took < Duration::from_secs(120), "{}: no world of {nodes}", self.name);
        }
        let took = self.world.now - began;
        self.formed = self.world.checks.history.completed;
        self.run_for(Duration::from_secs(3));
        took
    }

    fn trains(&self, nodes: usize) -> bool {
        let Some((current, _)) = self.world.checks.history.current() else { return false };
        let in_it = |node: &&super::node::Node| {
            node.is_up()
                && matches!(&node.agent.doing, Doing::Training { nth, .. } if *nth == current)
        };
        self.world.nodes.iter().filter(in_it).count() == nodes
    }

    /// What was since the last time, of so many nodes altogether.
    fn pays(&mut self, what: &str, nodes: usize, took: Duration) -> Costs {
        let costs = Costs::of(&mut self.world);
        let each: Vec<String> = costs
            .parts()
            .iter()
            .map(|(name, cost)| format!("{:.1} {name}", *cost as f64 / nodes as f64))
            .collect();
        #[allow(clippy::print_stderr, reason = "the numbers are worth reading")]
        {
            eprintln!("{}, {what}: {nodes} nodes, {took:.1?}: each {}", self.name, each.join(", "));
        }
        for ((name, cost), (_, most)) in costs.parts().into_iter().zip(MOST.parts()) {
            let allowed = most * nodes as u64 + 1000;
            assert!(cost <= allowed, "{}, {what}: {cost} {name} for {nodes} nodes", self.name);
        }
        costs
    }
}

/// Members that look once a second.
fn scenario(nodes: usize, min: usize, max: usize) -> Scenario {
    let mut scenario = Scenario::calm(nodes, min, max);
    scenario.poll = Duration::from_secs(1);
    scenario.stop = Duration::from_secs(1);
    scenario.most_nodes = usize::MAX;
    scenario
}

fn sizes() -> Vec<usize> {
    number("TORCHETCD_SIM_CROWD").map_or(SIZES.to_vec(), |nodes| vec![nodes as usize])
}

#[test]
fn all_are_killed_and_started_again_by_their_names() {
    for nodes in sizes() {
        let mut with_names = scenario(nodes, nodes, nodes);
        with_names.node_ids = true;
        let mut crowd = Crowd::new("mass restart", with_names);
        let took = crowd.form(nodes);
        crowd.pays("the first round", nodes, took);
        // Half of them, and then all: sooner than their leases run out.
        for replaced in [nodes / 2, nodes] {
            let victims: Vec<NodeIx> = crowd.world.up().into_iter().take(replaced).collect();
            victims.iter().for_each(|node| crowd.world.crash(*node));
            crowd.run_for(Duration::from_secs(1));
            for node in victims {
                crowd.world.restart(node);
            }
            let took = crowd.form(nodes);
            crowd.pays("takeovers", nodes + replaced, took);
        }
    }
}

#[test]
fn many_come_late_and_there_is_room() {
    for nodes in sizes() {
        let late = nodes / 2;
        let mut crowd = Crowd::new("late nodes", scenario(nodes, nodes / 2, nodes + late));
        let took = crowd.form(nodes);
        crowd.pays("the first round", nodes, took);
        crowd.world.start_nodes(late);
        let took = crowd.form(nodes + late);
        crowd.pays("with those who came", nodes + late, took);
    }
}

#[test]
fn many_come_late_and_there_is_no_room() {
    for nodes in sizes() {
        let spares = nodes / 2;
        let mut crowd = Crowd::new("spares", scenario(nodes, nodes, nodes));
        let took = crowd.form(nodes);
        crowd.pays("the first round", nodes, took);
        crowd.world.start_nodes(spares);
        crowd.run_for(Duration::from_secs(30));
        assert!(crowd.trains(nodes), "a full world restarts for spares");
        crowd.pays("they come", nodes + spares, Duration::from_secs(30));
        // They leave all at once, and the members that are lost are replaced by those who stay.
        let all = crowd.world.nodes.len();
        (nodes..nodes + spares / 2).for_each(|node| crowd.world.depart(node));
        (0..spares / 4).for_each(|node| crowd.world.crash(node));
        let took = crowd.form(nodes);
        crowd.pays("some are promoted", all, took);
    }
}

#[test]
fn the_coordinator_dies() {
    for nodes in sizes() {
        let mut waits = scenario(nodes, nodes - 1, nodes + 1);
        waits.settings.last_call = Duration::from_secs(30);
        let mut crowd = Crowd::new("coordinator", waits);
        crowd.run_for(Duration::from_secs(10));
        crowd.pays("they join", nodes, Duration::from_secs(10));
        let Some(coordinator) = crowd.world.coordinator() else { panic!("no coordinator") };
        crowd.world.crash(coordinator);
        let took = crowd.form(nodes - 1);
        crowd.pays("another one completes the round", nodes, took);
    }
}

#[test]
fn many_members_die_at_once() {
    for nodes in sizes() {
        let mut crowd = Crowd::new("mass death", scenario(nodes, 1, nodes));
        let took = crowd.form(nodes);
        crowd.pays("the first round", nodes, took);
        // Every second one, so that each loss is watched by one who is there.
        let victims: Vec<NodeIx> = (0..nodes).step_by(2).collect();
        victims.iter().for_each(|node| crowd.world.crash(*node));
        let took = crowd.form(nodes - victims.len());
        crowd.pays("the others go on", nodes + victims.len(), took);
    }
}

#[test]
fn the_time_of_all_is_up() {
    for nodes in sizes() {
        let mut short = scenario(nodes, nodes + 1, nodes + 1);
        short.settings.join_timeout = Duration::from_secs(20);
        let mut crowd = Crowd::new("time is up", short);
        crowd.run_for(Duration::from_secs(30));
        assert!(crowd.world.live().is_empty(), "somebody still waits");
        crowd.pays("all give up", nodes, Duration::from_secs(30));
    }
}
