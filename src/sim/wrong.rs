//! The simulator is only worth something if it catches protocols that are wrong: each of these has one
//! guard less, and some seed must violate what that guard protects.

use super::fault::Fault;
use super::scenario::Scenario;
use super::seeds::run;
use super::world::World;
use crate::rendezvous::Variant;

/// A wrong variant that is not caught by so many seeds is not caught.
const SEEDS: u64 = 60000;

/// Looks only at scenarios in which the guard matters.
fn is_caught_where(matters: impl Fn(&Scenario) -> bool, variant: Variant, invariants: &[&str]) {
    for seed in 0..SEEDS {
        let mut scenario = Scenario::of(seed);
        if !matters(&scenario) {
            continue;
        }
        scenario.settings.tuning.variant = Some(variant);
        if let Err(violation) = run(seed, &mut World::new(scenario, seed)) {
            let name = violation.invariant;
            let right = Scenario::of(seed);
            if !invariants.contains(&name) && run(seed, &mut World::new(right, seed)).is_err() {
                // Not the variant's doing: that seed says nothing of it.
                continue;
            }
            assert!(invariants.contains(&name), "seed {seed} of {variant:?}: {violation}");
            return;
        }
    }
    panic!("{variant:?} is not caught by {SEEDS} seeds");
}

fn is_caught(variant: Variant, invariants: &[&str]) {
    is_caught_where(|_| true, variant, invariants);
}

/// Where the search would take too long: by a seed that was found once.
fn is_caught_by(seed: u64, variant: Variant, invariant: &str) {
    let mut scenario = Scenario::of(seed);
    scenario.settings.tuning.variant = Some(variant);
    let caught = run(seed, &mut World::new(scenario, seed)).expect_err("a violation");
    assert_eq!(caught.invariant, invariant, "{caught}");
}

#[test]
fn a_completion_without_its_guard_reopens_a_closed_run() {
    is_caught(Variant::UnguardedCompletion, &["I4"]);
}

#[test]
fn ranks_of_an_abandoned_attempt_are_given_twice() {
    is_caught(Variant::AnyAttempt, &["I1", "I3", "ranks", "waiting"]);
}

#[test]
fn a_membership_that_is_not_checked_outlives_the_close() {
    is_caught(Variant::UncheckedMembership, &["I4"]);
}

#[test]
fn a_last_call_that_begins_anew_takes_too_long() {
    // A world that is late may not be what it will be when all is quiet.
    is_caught(Variant::ForgetsLastCall, &["I5", "quiet"]);
}

#[test]
fn a_late_copy_deletes_the_next_last_call() {
    // One in 180,000 seeds: the copy, the next last call and the coordinator's end must follow in that order.
    is_caught_by(1_129_945, Variant::LastCallAlone, "I5");
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

#[test]
fn a_spare_that_closes_the_run_is_seen() {
    is_caught(Variant::ClosesFromOutside, &["I7", "reopened"]);
}

#[test]
fn the_time_of_a_spare_does_not_run_out() {
    is_caught(Variant::DeadlineWhileParked, &["parked"]);
}

#[test]
fn who_is_not_admitted_makes_nobody_restart() {
    let matters = |scenario: &Scenario| {
        let Scenario { unequal, faults, .. } = scenario;
        unequal.limits || unequal.order || faults.contains(&Fault::Deny)
    };
    is_caught_where(matters, Variant::CountsUnadmitted, &["I5", "I8", "I9", "loss", "waiting"]);
}

#[test]
fn a_round_of_the_same_number_is_another_one() {
    let matters = |scenario: &Scenario| scenario.faults.contains(&Fault::DeleteAll);
    is_caught_where(matters, Variant::RoundByNumber, &["I2", "I5"]);
}

#[test]
fn a_lease_that_is_renewed_too_late_is_lost() {
    is_caught(Variant::RenewsFromAnswer, &["lease"]);
}

#[test]
fn survivors_that_are_left_behind_cost_more_restarts() {
    is_caught(Variant::LastCallLeavesSurvivors, &["I5", "I8", "I9"]);
}

#[test]
fn a_close_that_forgets_the_last_round_is_seen() {
    let matters = |scenario: &Scenario| scenario.faults.contains(&Fault::Reopen);
    is_caught_where(matters, Variant::ForgetsPrevious, &["previous"]);
}

#[test]
fn a_run_that_was_reopened_is_not_closed_by_who_closed_it() {
    let matters = |scenario: &Scenario| scenario.closes && scenario.faults.contains(&Fault::Reopen);
    is_caught_where(matters, Variant::MissesReopening, &["reopened"]);
}

#[test]
fn the_lease_of_the_run_has_the_time_that_it_was_granted() {
    let matters = |scenario: &Scenario| scenario.unequal.leases;
    is_caught_where(matters, Variant::OwnTtl, &["lease"]);
}

#[test]
fn a_run_that_begins_anew_asks_how_long_its_lease_lives() {
    let matters = |scenario: &Scenario| {
        scenario.unequal.leases && scenario.faults.contains(&Fault::DeleteAll)
    };
    is_caught_where(matters, Variant::KnowsLeaseOfLastRun, &["lease"]);
}

#[test]
fn who_has_left_writes_nothing() {
    is_caught(Variant::CallsGoOn, &["ghost"]);
}
