//! The status of a node, without asking etcd.

use super::cx::Cx;
use super::roles::Roles;
use super::standing;
use super::wish::Seat;
use crate::rendezvous::api::{Member, Progress, Status};

pub fn of(cx: &Cx, roles: &Roles) -> Status {
    let membership = roles.membership.as_ref();
    // Where a newer version has restarted the run, the closed run no longer exists.
    let closed = cx.view.closed().filter(|_| !cx.view.is_led_by_another_version()).cloned();
    let told = cx.view.coordinator.value.as_ref().map(|(told, _)| told);
    let member = membership.filter(|_| !roles.barrier.is_on());
    let waiting = member.filter(|_| closed.is_none());
    Status {
        waiting: waiting.map_or(0, |member| standing::waiting(cx, member)),
        closed,
        run_ttl: cx.view.control.value.as_ref().map_or(0, |control| control.run_ttl),
        progress: Progress {
            round: cx.view.round(),
            current: cx.view.current(),
            joined: told.map_or(0, |told| told.joined as usize),
            last_call: told.is_some_and(|told| told.last_call),
            spare: matches!(roles.barrier.seat, Seat::Waiting(_)),
            entered: matches!(roles.barrier.seat, Seat::Joined(_)),
            member: member.map(|m| Member { rank: m.rank, world: m.world }),
        },
        broken: membership.and_then(|member| standing::broken(cx, member)),
        observed: cx.head.is_known(),
        excluded: roles.excluded(cx),
        parked: roles.parked,
        remark: cx.remarks.last().cloned(),
    }
}
