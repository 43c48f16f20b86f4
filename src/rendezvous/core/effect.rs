//! What a role changes outside of itself. The machine applies it, in one place.

use super::wish::Seat;
use crate::rendezvous::api::{Outcome, RendezvousError, Time};
use crate::rendezvous::keys::NodeId;
use crate::rendezvous::records::Final;

#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// The node has put itself there.
    Seat(Seat),
    /// It is the coordinator; `took_over`: others may have been it before.
    Lead { took_over: bool },
    /// It is the coordinator no more.
    StepDown,
    /// It is a member of this round, and watches `next`.
    Member { outcome: Outcome, complete: Box<Final>, next: NodeId },
    /// It is not a member any more: its key is gone.
    Expelled,
    /// The barrier has ended.
    End(Result<Outcome, RendezvousError>),
    /// What was counted of those who wait may be wrong.
    CountAnew,
    /// No member is left: the usher opens the next round.
    OpenForTheLost { deadline: Time },
    /// The wish to close the run is settled.
    Closed(Result<Option<String>, RendezvousError>),
}
