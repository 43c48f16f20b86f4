//! Each record reads as it was written, and what is none is named.

use super::*;
use crate::rendezvous::keys::RoundId;

const READER: Reader = Reader { newest: 1 };

#[test]
fn a_control_record_reads_as_it_was_written() {
    let last = Previous { id: RoundId { round: 4, attempt: "1-1".into() }, world: 2 };
    let ended = Ended { result: "failed".into(), text: "train.py failed".into() };
    let (by, reason) = ("a (pid 1)".into(), "done".into());
    let closed = Closed { by, reason, at: 7, last: Some(last), ended: Some(ended) };
    for state in [
        State::Open {
            previous: Some(Previous { id: RoundId { round: 3, attempt: "1-1".into() }, world: 5 }),
            by: "a (pid 1)".into(),
            at: 1,
            why: "the first round".into(),
        },
        State::Final(Final {
            world: 2,
            attempt: "1-1".into(),
            since: 9,
            master_addr: "a".into(),
            master_port: 1,
            order: RankOrder::Topology { segment: 2 },
            story: Story { by: "a (pid 1)".into(), at: 3, opened_at: 1, ..Story::default() },
        }),
        State::Closed(closed),
    ] {
        let control = Control { reopened: 2, ..Control::first(1, 60, 4, state) };
        assert_eq!(READER.control("k", &encode(&control, 1)).unwrap(), control);
    }
}

#[test]
fn records_of_versions_that_told_less_are_read() {
    for value in [
        &br#"{"v":1,"round":1,"state":"open","previous":null,"by":"a"}"#[..],
        br#"{"v":1,"round":1,"state":"final","world":1,"attempt":"1","since":1,"master_addr":"a","master_port":1}"#,
    ] {
        READER.control("k", value).unwrap();
    }
    READER
        .record::<Coordinator>("k", br#"{"host":"a","pid":1,"joined":1,"last_call":false}"#)
        .unwrap();
    READER.record::<Waiting>("k", br#"{"host":"a","pid":1}"#).unwrap();
    READER.member("k", br#"{"host":"a","pid":1,"rank":0}"#, 1).unwrap();
}

#[test]
fn garbage_and_newer_versions_are_named() {
    for (value, cause) in [
        (&b"\xff\x00"[..], "expected value"),
        (br#"{"v":2,"round":1,"state":"open","previous":null,"by":""}"#, "version 2"),
        (br#"{"v":1,"round":1,"state":"odd"}"#, "unknown variant"),
    ] {
        let error = READER.control("/k", value).unwrap_err().to_string();
        assert!(error.contains("'/k'") && error.contains(cause), "{error}");
    }
}

#[test]
fn each_record_tells_its_version_and_a_newer_one_is_told_from_garbage() {
    let node = NodeInfo { host: "a".into(), pid: 1 };
    let stay = Stay::default();
    let master = Master { addr: "a".into(), port: 1 };
    let id = RoundId { round: 1, attempt: "1".into() };
    let labels = Labels::default();
    let newer = [
        encode(&Join::new(node.clone(), master, stay, labels.clone()), 2),
        encode(&Waiting { node: node.clone(), stay, labels: labels.clone() }, 2),
        encode(&Loss::of(&id, "a".into()), 2),
        encode(&Usher { node, id, count: 1, at: 1 }, 2),
        encode(&LastCall { lease: 1 }, 2),
    ];
    for value in newer {
        let text = String::from_utf8(value.clone()).unwrap();
        assert!(text.starts_with(r#"{"v":2,"#), "{text}");
        // Whatever it is read as: what it holds is not looked at.
        let error = READER.record::<Member>("k", &value).unwrap_err();
        assert!(error.is_of_another_version(), "{error}");
        let knows = error.to_string();
        assert!(
            knows.contains("speaks version 2") && knows.contains("agent 1: update it"),
            "{knows}"
        );
    }
    let error = READER.record::<Member>("k", br#"{"v":1}"#).unwrap_err();
    assert!(!error.is_of_another_version());
    let both = Reader { newest: 2 };
    let waiting = br#"{"v":2,"host":"a","pid":1}"#;
    assert!(both.record::<Waiting>("k", waiting).is_ok());
}
