//! What a member's place is worth: whether its world goes on, and whether the run is this node's to close.

use super::cx::Cx;
use super::membership::Membership;
use super::view::Phase;
use crate::rendezvous::api::{Broken, Cause, OnMemberLoss};
use crate::rendezvous::records::Loss;
use crate::rendezvous::variant::Variant;

/// The loss that ends this world.
fn loss<'a>(cx: &'a Cx, membership: &Membership) -> Option<&'a Loss> {
    let restarts = cx.settings.on_member_loss == OnMemberLoss::Restart;
    cx.view.loss_of(&membership.id).filter(|_| restarts)
}

/// How many nodes could change this world, lost members among them.
pub fn waiting(cx: &Cx, membership: &Membership) -> usize {
    if membership.expelled || cx.view.another_version().is_some() {
        // Its agent is to come back and be told.
        return 1;
    }
    match cx.view.phase() {
        Phase::Closed(_) => 0,
        _ if cx.exclusion().is_some() => 1,
        Phase::Complete(..) if membership.is_current(cx) => {
            let told = cx.view.usher_of(&membership.id).map_or(0, |(count, _)| count as usize);
            usize::from(loss(cx, membership).is_some()) + told
        }
        // Somebody has opened a later round, or the run's state is gone: this world is over (I2).
        Phase::Absent | Phase::Open(_) | Phase::Complete(..) => 1,
    }
}

/// Why a wait for another member of the round cannot succeed.
pub fn broken(cx: &Cx, membership: &Membership) -> Option<Broken> {
    let id = &membership.id;
    let round = id.round;
    let broken = |cause, reason| Some(Broken { id: id.clone(), cause, reason });
    if membership.expelled {
        return broken(Cause::LeaseLost, format!("this node lost its lease in round {round}"));
    }
    if let Some(error) = cx.view.another_version() {
        return broken(Cause::Excluded, error.to_string());
    }
    let exclusion = cx.exclusion();
    match (cx.view.phase(), exclusion) {
        (Phase::Closed(_), _) => None,
        (_, Some(error)) => broken(Cause::Excluded, error.to_string()),
        (Phase::Complete(..), None) if membership.is_current(cx) => {
            let loss = loss(cx, membership)?;
            broken(Cause::MemberLost, format!("{} of round {round} was lost", loss.member))
        }
        (Phase::Open(open), None) => {
            let reason = format!("round {round} is over: {} opened round {}", open.by, open.round);
            broken(Cause::NextRound, reason)
        }
        (Phase::Absent | Phase::Complete(..), None) => {
            broken(Cause::NextRound, format!("round {round} is over"))
        }
    }
}

/// Why the run is none of this node's to close when it ends; `None` where it is a live member of the
/// last completed world, whose next round may be open.
pub fn why_not_close(
    cx: &Cx,
    membership: Option<&Membership>,
    excluded: Option<String>,
) -> Option<String> {
    if excluded.is_some() || cx.settings.wrong(Variant::ClosesFromOutside) {
        return excluded;
    }
    let Some(control) = &cx.view.control.value else { return Some("there is no run".into()) };
    // A run that was closed and opened again is another one's, also where its last world was this node's.
    let since = membership.map_or(0, |membership| membership.reopened);
    if control.reopened != since && !cx.settings.wrong(Variant::MissesReopening) {
        return Some("the run was closed and opened again since".into());
    }
    match control.last() {
        Some(last) if membership.is_some_and(|own| own.is_live(cx, &last.id)) => None,
        Some(last) => Some(format!(
            "this node is not a member of round {}, the last one that was completed",
            last.id.round
        )),
        None => Some("no round was completed, so others may still come".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{OTHER, OWN, complete, cx, open, sees, usher};
    use super::*;
    use crate::rendezvous::api::Outcome;
    use crate::rendezvous::records::{Closed, Master, State};

    /// Rank 0 of two, of a round that is complete.
    fn member(cx: &mut Cx) -> Membership {
        sees(cx, 1, State::Final(complete(2)), 5);
        let master = Master { addr: "b".into(), port: 1 };
        let outcome = Outcome { round: 1, attempt: "8.1".into(), rank: 0, world: 2, master };
        Membership::new(cx, &outcome, &complete(2), OWN, OTHER)
    }

    #[test]
    fn a_world_goes_on_until_somebody_waits_or_is_lost() {
        let mut cx = cx();
        let own = member(&mut cx);
        assert_eq!((waiting(&cx, &own), broken(&cx, &own)), (0, None));
        usher(&mut cx, OTHER, 3, 6);
        assert_eq!((waiting(&cx, &own), broken(&cx, &own)), (3, None));
        cx.view.loss.set(Some(Loss::of(&own.id, "rank 1".into())), 7, 7);
        assert_eq!(waiting(&cx, &own), 4);
        assert_eq!(broken(&cx, &own).map(|broken| broken.cause), Some(Cause::MemberLost));
        cx.settings.on_member_loss = OnMemberLoss::Ignore;
        assert_eq!((waiting(&cx, &own), broken(&cx, &own)), (3, None));
    }

    #[test]
    fn the_next_round_ends_it_and_a_close_does_not() {
        let mut cx = cx();
        let own = member(&mut cx);
        sees(&mut cx, 2, open(None), 8);
        assert_eq!(waiting(&cx, &own), 1);
        assert_eq!(broken(&cx, &own).map(|broken| broken.cause), Some(Cause::NextRound));
        let closed =
            Closed { by: "a".into(), reason: "done".into(), at: 1, last: None, ended: None };
        sees(&mut cx, 2, State::Closed(closed), 9);
        assert_eq!((waiting(&cx, &own), broken(&cx, &own)), (0, None));
    }

    #[test]
    fn only_a_live_member_of_the_last_world_closes_the_run_when_it_ends() {
        let mut cx = cx();
        let mut own = member(&mut cx);
        assert_eq!(why_not_close(&cx, Some(&own), None), None);
        assert!(why_not_close(&cx, None, None).is_some());
        let denied = Some("denied".to_string());
        assert_eq!(why_not_close(&cx, Some(&own), denied.clone()), denied);
        own.expelled = true;
        assert!(why_not_close(&cx, Some(&own), None).is_some());
    }
}
