//! Found by fuzzing: what a node owes those who ask it.

use std::time::Duration;

use super::testing::settings;
use super::*;
use crate::rendezvous::api::Close;
use crate::rendezvous::records::Master;

fn machine() -> Machine {
    Machine::new(Settings { min: 1, max: 1, ..settings() })
}

/// Found by fuzzing: it was not answered before the barrier was over, and the node asked for ticks
/// without end meanwhile.
#[test]
fn who_asks_during_a_barrier_is_answered_in_time() {
    let mut node = machine();
    let actions = node.handle(Time::ZERO, Input::Join(Master { addr: "a".into(), port: 1 }));
    let Some(Action::Grant(call, ..)) = actions.last() else { panic!("{actions:?}") };
    node.handle(Time::ZERO, Input::Answer(*call, Ok(Answer::Granted(7, Duration::from_secs(10)))));
    // etcd does not say where the watch of the head begins, so nothing else can be done.
    node.handle(Time::ZERO, Input::Observe);
    let due = node.next_deadline().expect("a deadline");
    assert_eq!(due, Duration::from_secs(10));
    let actions = node.handle(due, Input::Tick);
    let expected = "Observed(Err(Timeout(\"etcd began no watch in time.\")))";
    assert_eq!(format!("{actions:?}"), format!("[{expected}]"));
    assert_eq!(node.next_deadline(), Some(Duration::from_secs(60)));
}

/// The same of a barrier whose time is up while the run is being closed.
#[test]
fn nothing_else_is_due_while_the_run_is_being_closed() {
    let mut node = machine();
    let actions = node.handle(Time::ZERO, Input::Join(Master { addr: "a".into(), port: 1 }));
    let Some(Action::Grant(call, ..)) = actions.last() else { panic!("{actions:?}") };
    node.handle(Time::ZERO, Input::Answer(*call, Ok(Answer::Granted(7, Duration::from_secs(10)))));
    node.handle(Duration::from_secs(55), Input::Close(Close::default()));
    assert_eq!(node.next_deadline(), Some(Duration::from_secs(65)));
}
