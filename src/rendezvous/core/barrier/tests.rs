//! Given what is known and an input: what the barrier does.

use super::*;
use crate::rendezvous::api::Action;
use crate::rendezvous::core::effect::Effect;
use crate::rendezvous::core::testing::{
    OTHER, OWN, complete, coordinator, cx, open, puts, sees, sent, usher,
};
use crate::rendezvous::records::Closed;

fn wanting(cx: &mut Cx) -> Barrier {
    let mut barrier = Barrier::default();
    barrier.begin(cx, Master { addr: "a".into(), port: 1 }, None, true);
    barrier
}

#[test]
fn without_a_record_the_run_is_created() {
    let mut cx = cx();
    let mut barrier = wanting(&mut cx);
    assert_eq!(barrier.step(&mut cx, None, false), Turn::Wait);
    let keys = ["head/control", "head/coordinator", "round/1/join/0000000000000007"];
    assert_eq!(puts(&sent(&mut cx)), keys);
    let Some(Purpose::Open(control)) = barrier.slot.purpose() else { panic!("not opened") };
    assert_eq!(control.round, 1);
    let control = control.clone();
    let reply = TxnReply { revision: 3, succeeded: true, replies: Vec::new() };
    let effects = barrier.answered(&mut cx, Purpose::Open(control), &reply);
    let leads = Effect::Lead { took_over: false };
    assert_eq!(effects, [Effect::Seat(Seat::Joined(1)), leads]);
}

#[test]
fn in_an_open_round_it_joins_and_leads_where_its_key_is_the_coordinators() {
    let mut cx = cx();
    sees(&mut cx, 1, open(None), 3);
    let mut barrier = wanting(&mut cx);
    assert_eq!(barrier.step(&mut cx, None, false), Turn::Wait);
    assert_eq!(puts(&sent(&mut cx)), ["round/1/join/0000000000000007"]);
    barrier.seat = Seat::Joined(1);
    coordinator(&mut cx, OTHER, 4);
    assert_eq!(barrier.step(&mut cx, None, false), Turn::Wait);
    assert_eq!(barrier.step(&mut cx, None, true), Turn::StepDown);
    coordinator(&mut cx, OWN, 5);
    assert!(matches!(barrier.step(&mut cx, None, false), Turn::Lead(_)));
}

#[test]
fn a_missing_coordinator_is_replaced_after_a_pause() {
    let mut cx = cx();
    sees(&mut cx, 1, open(None), 3);
    let mut barrier = wanting(&mut cx);
    barrier.seat = Seat::Joined(1);
    assert_eq!(barrier.step(&mut cx, None, false), Turn::Wait);
    assert!(cx.out.take().is_empty());
    cx.now = cx.timers.get(Timer::Claim).expect("a pause");
    assert_eq!(barrier.step(&mut cx, None, false), Turn::Wait);
    assert_eq!(puts(&sent(&mut cx)), ["head/coordinator"]);
    // Its own key has gone: it rejoins.
    let refused = TxnReply { revision: 6, succeeded: false, replies: Vec::new() };
    let effects = barrier.answered(&mut cx, Purpose::Claim, &refused);
    assert_eq!(effects, [Effect::Seat(Seat::Outside)]);
}

#[test]
fn its_time_does_not_run_while_it_waits_in_a_full_world() {
    let mut cx = cx();
    sees(&mut cx, 1, State::Final(complete(2)), 5);
    let mut barrier = wanting(&mut cx);
    barrier.seat = Seat::Waiting(1);
    usher(&mut cx, OTHER, 0, 6);
    cx.now = cx.settings.join_timeout * 2;
    assert_eq!(barrier.step(&mut cx, None, false), Turn::Wait);
    assert!(barrier.is_parked());
    usher(&mut cx, OTHER, 1, 7);
    assert_eq!(barrier.step(&mut cx, None, false), Turn::Wait);
    assert!(!barrier.is_parked());
    cx.now += cx.settings.join_timeout;
    assert_eq!(barrier.step(&mut cx, None, false), Turn::Wait);
    assert_eq!(barrier.slot.purpose(), Some(&Purpose::GiveUp));
}

#[test]
fn a_closed_run_ends_the_barrier() {
    let mut cx = cx();
    let closed = Closed { by: "a".into(), reason: "done".into(), at: 1, last: None, ended: None };
    sees(&mut cx, 1, State::Closed(closed.clone()), 5);
    let mut barrier = wanting(&mut cx);
    let turn = barrier.step(&mut cx, None, false);
    assert_eq!(turn, Turn::End(Err(RendezvousError::Closed(closed))));
    assert!(!cx.out.take().iter().any(|action| matches!(action, Action::Txn(..))));
}
