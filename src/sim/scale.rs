//! Rounds without faults, of any size: what they cost and how long they take.

use std::time::Duration;

use super::agent::Doing;
use super::invariants::costs::Bill;
use super::scenario::Scenario;
use super::world::World;

const SIZES: [usize; 5] = [2, 8, 100, 1000, 2000];

fn all_train(world: &World, round: u64) -> bool {
    world.nodes.iter().all(|node| {
        matches!(&node.agent.doing, Doing::Training { outcome, .. } if outcome.round == round)
    })
}

/// Forms a round and tells what it has cost.
fn bill(world: &mut World, round: u64) -> (Bill, Duration) {
    let began = world.now;
    let until = world.now + Duration::from_secs(60);
    let mut coordinator = None;
    while !all_train(world, round) {
        coordinator = world.coordinator().or(coordinator);
        let step = (world.now + Duration::from_millis(1)).min(until);
        world.run_until(step).unwrap_or_else(|violation| panic!("{violation}"));
        assert!(world.now < until, "round {round} is not complete");
    }
    let took = world.now - began;
    // Whoever completed the round deletes what the one before has left.
    let swept = world.now + Duration::from_secs(2);
    world.run_until(swept).unwrap_or_else(|violation| panic!("{violation}"));
    (Bill::of(world, coordinator.unwrap_or(0)), took)
}

fn worlds_of(nodes: usize) -> [(Bill, Duration); 3] {
    let mut world = World::new(Scenario::calm(nodes, nodes, nodes), 1);
    world.start_nodes(nodes);
    let first = bill(&mut world, 1);
    // The workers of one node fail: all rejoin as they find out.
    world.nodes[nodes / 2].agent.fails = true;
    let second = bill(&mut world, 2);
    world.nodes[0].agent.fails = true;
    [first, second, bill(&mut world, 3)]
}

#[test]
fn a_round_costs_a_node_the_same_whatever_the_number_of_nodes() {
    let mut hundred = 0;
    for nodes in SIZES {
        for (round, (bill, took)) in worlds_of(nodes).into_iter().enumerate() {
            #[allow(clippy::print_stderr, reason = "the numbers are worth reading")]
            {
                eprintln!("N = {nodes}, round {}: {took:.1?}, {bill:?}", round + 1);
            }
            bill.check().unwrap_or_else(|violation| panic!("{violation}"));
            if nodes == 100 {
                hundred = hundred.max(bill.bytes);
            }
            assert!(nodes <= 100 || bill.bytes <= hundred + 400, "{bill:?}, of 100: {hundred}");
            assert!(took < Duration::from_secs(2), "{took:?}");
        }
    }
}

/// Nobody but the leases speaks to etcd between rounds, however often agents poll.
#[test]
fn between_rounds_there_is_only_the_renewal_of_leases() {
    let mut world = World::new(Scenario::calm(20, 20, 20), 1);
    world.start_nodes(20);
    bill(&mut world, 1);
    let minute = world.now + Duration::from_secs(60);
    world.run_until(minute).unwrap_or_else(|violation| panic!("{violation}"));
    for node in &world.nodes {
        let costs = node.costs;
        assert_eq!((costs.rpcs, costs.sent, costs.received, costs.watches), (0, 0, 0, 0));
        // A third of 10 s, and the run's lease once in a while.
        assert!((17..=20).contains(&costs.renewals), "{costs:?}");
    }
}
