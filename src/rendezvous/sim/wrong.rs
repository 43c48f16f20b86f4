//! The simulator is only worth something if it catches protocols that are wrong: each of these has one
//! guard less, and some seed must violate what that guard protects.

use super::scenario::Scenario;
use super::seeds::run;
use super::world::World;
use crate::rendezvous::variants::Variant;

/// A wrong variant that is not caught by so many seeds is not caught.
const SEEDS: u64 = 60000;

fn is_caught(variant: Variant, invariants: &[&str]) {
    for seed in 0..SEEDS {
        let mut scenario = Scenario::of(seed);
        scenario.hooks.variant = Some(variant);
        if let Err(violation) = run(seed, &mut World::new(scenario, seed)) {
            let name = violation.invariant;
            assert!(invariants.contains(&name), "seed {seed} of {variant:?}: {violation}");
            return;
        }
    }
    panic!("{variant:?} is not caught by {SEEDS} seeds");
}

#[test]
fn a_completion_without_its_guard_reopens_a_closed_run() {
    is_caught(Variant::UnguardedCompletion, &["I4"]);
}

#[test]
fn ranks_of_an_abandoned_attempt_are_given_twice() {
    is_caught(Variant::AnyAttempt, &["I1", "ranks"]);
}

#[test]
fn a_membership_that_is_not_checked_outlives_the_close() {
    is_caught(Variant::UncheckedMembership, &["I4"]);
}

#[test]
fn a_last_call_that_begins_anew_takes_too_long() {
    is_caught(Variant::ForgetsLastCall, &["I5"]);
}

#[test]
fn a_loss_before_the_completion_is_missed() {
    is_caught(Variant::WatchesFromFinal, &["loss"]);
}

#[test]
fn a_loss_that_nobody_watches_for_is_missed() {
    is_caught(Variant::LastWatchesNobody, &["loss"]);
}

#[test]
fn a_node_that_ignores_its_denial_stays() {
    is_caught(Variant::IgnoresDenial, &["denied", "I5"]);
}

#[test]
fn two_agents_of_one_node_id_that_both_fight_go_on_for_ever() {
    is_caught(Variant::FightsBack, &["identity", "I5"]);
}

#[test]
fn a_loss_that_is_not_told_is_missed() {
    is_caught(Variant::UntoldLoss, &["loss"]);
}
