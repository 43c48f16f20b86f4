//! What to do about a call that has failed, or a watch of the head that was refused.

use super::barrier;
use super::roles::Asked;
use crate::etcd::{EtcdError, Refusal};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The time of the barrier is up. etcd only could not say which nodes were there.
    TimeIsUp,
    /// Whoever completes the next round sees to it.
    EndSweep,
    /// A member died while its rank was written, and the watch has not said it yet: look.
    LoadAnew,
    /// Either lease may be the missing one: the node gives up both.
    LoseLeases,
    /// What was to be read page by page is not there any more.
    CountAnew,
    /// Silence of etcd is no news of the run.
    AskAgain,
    /// Those who wait for this node are told, and it asks again later.
    TellAndAskAgain,
    Tell,
}

/// `time_is_up`: somebody waits for this node no longer.
pub fn remedy(asked: &Asked, error: &EtcdError, time_is_up: bool) -> Remedy {
    let silence = matches!(error, EtcdError::Unreachable { .. } | EtcdError::Ambiguous { .. });
    match (asked, error) {
        (Asked::Barrier(barrier::Purpose::GiveUp), _) => Remedy::TimeIsUp,
        (Asked::Sweep(_), _) => Remedy::EndSweep,
        (Asked::Lead(_), EtcdError::Refused { kind: Refusal::LeaseNotFound, .. }) => {
            Remedy::LoadAnew
        }
        (_, EtcdError::Refused { kind: Refusal::LeaseNotFound, .. }) => Remedy::LoseLeases,
        (_, EtcdError::Compacted { .. }) => Remedy::CountAnew,
        (Asked::Member(_) | Asked::Head, _) if !silence => Remedy::TellAndAskAgain,
        (Asked::Member(_) | Asked::Head, _) if !time_is_up => Remedy::AskAgain,
        _ => Remedy::Tell,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{lead, sweep};
    use super::*;

    #[test]
    fn each_failure_has_its_remedy() {
        let refused =
            |kind| EtcdError::Refused { endpoint: String::new(), kind, message: String::new() };
        let (gone, denied) = (refused(Refusal::LeaseNotFound), refused(Refusal::PermissionDenied));
        let silence = EtcdError::Ambiguous { causes: String::new() };
        let join = || Asked::Barrier(barrier::Purpose::Join(1));
        let lead = || Asked::Lead(lead::Purpose::Complete);
        for (asked, error, time_is_up, expected) in [
            (Asked::Head, &silence, false, Remedy::AskAgain),
            (Asked::Head, &silence, true, Remedy::Tell),
            (Asked::Head, &denied, false, Remedy::TellAndAskAgain),
            (join(), &silence, false, Remedy::Tell),
            (join(), &gone, false, Remedy::LoseLeases),
            (lead(), &gone, false, Remedy::LoadAnew),
            (lead(), &denied, false, Remedy::Tell),
            (Asked::Sweep(sweep::Purpose::Look), &gone, false, Remedy::EndSweep),
        ] {
            assert_eq!(remedy(&asked, error, time_is_up), expected, "{error}");
        }
    }
}
