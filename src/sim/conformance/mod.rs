//! The model of etcd and a real etcd, given the same script, must answer the same.
//!
//! Runs where `TORCHETCD_TEST_ETCD` names an etcd binary: one script that is always the same and one of a
//! seed that nobody has run, or that of `TORCHETCD_CONFORMANCE_SEED`, of `TORCHETCD_CONFORMANCE_STEPS`.

mod compare;
mod script;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use self::compare::{Both, plain};
use self::script::{Script, Step};
use crate::etcd::kv::{Op, Txn};
use crate::etcd::test_server::{Server, binary};
use crate::etcd::{WatchMessage, WatchSpec};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(test)
}

#[test]
fn the_model_answers_as_etcd_does() {
    let Some(binary) = binary() else { return };
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    let given = number("TORCHETCD_CONFORMANCE_SEED", 0);
    let seeds = if given > 0 { vec![given] } else { vec![1, clock as u64 % 1_000_000_000_000] };
    for seed in seeds {
        #[allow(
            clippy::print_stderr,
            reason = "shown where the test fails: it says how to repeat it"
        )]
        {
            eprintln!(
                "REPRODUCE WITH: TORCHETCD_CONFORMANCE_SEED={seed} TORCHETCD_TEST_ETCD={} \
                 cargo test --no-default-features --lib the_model_answers",
                binary.display()
            );
        }
        run(async {
            let server = Server::start(&binary).await;
            let mut both = Both::connect(&server).await;
            let mut script = Script::new(seed);
            for number in 0..number("TORCHETCD_CONFORMANCE_STEPS", 2500) {
                let step = script.next(&both.model);
                both.take(number, &step).await;
            }
            both.take(u64::MAX, &Step::Drain).await;
        });
    }
}

/// Each lease that runs out is revoked by itself: its keys go in one revision, in the order of the keys.
#[test]
fn leases_run_out_as_in_the_model() {
    let Some(binary) = binary() else { return };
    run(async {
        let server = Server::start(&binary).await;
        let mut both = Both::connect(&server).await;
        let spec = WatchSpec {
            key: b"k".to_vec(),
            range_end: Some(b"l".to_vec()),
            start_revision: 1,
            deletes_only: true,
            with_previous: true,
        };
        both.take(0, &Step::Watch(spec.clone())).await;
        let from = both.watches[0].next;
        for lease in [7, 8] {
            both.take(1, &Step::Grant(lease, Duration::from_secs(1))).await;
            both.take(2, &Step::TimeToLive(lease)).await;
            for key in ["k3", "k1", "k2"] {
                let put = Op::put(format!("{key}{lease}"), "v", lease);
                both.take(3, &Step::Txn(Txn::when([]).then([put]))).await;
            }
        }
        let mut events = Vec::new();
        while events.len() < 6 {
            match tokio::time::timeout(Duration::from_secs(20), both.watches[0].real.next()).await {
                Ok(WatchMessage::Events(more)) => events.extend(more),
                Ok(WatchMessage::Started(_)) => {}
                other => panic!("no more events: {other:?}"),
            }
        }
        // Which of two that run out at the same time goes first is not promised.
        let first = if events[0].kv().key.ends_with(b"7") { [7, 8] } else { [8, 7] };
        first.into_iter().for_each(|lease| assert!(both.model.revoke(lease)));
        let expected = plain(both.model.events(&spec, from).expect("nothing is compacted"));
        assert_eq!(events, expected);
    });
}

/// Old versions lose it to a watch that begins there (etcd issue 18089), as the model does; newer ones
/// and those that have not yet done the work of the compaction do not.
#[test]
fn a_deletion_at_the_compacted_revision() {
    let Some(binary) = binary() else { return };
    run(async {
        let server = Server::start(&binary).await;
        let mut both = Both::connect(&server).await;
        for op in [Op::put("a", "1", 0), Op::delete("a"), Op::put("b", "1", 0)] {
            both.take(0, &Step::Txn(Txn::when([]).then([op]))).await;
        }
        both.take(1, &Step::Compact(3)).await;
        let spec = WatchSpec {
            key: b"a".to_vec(),
            range_end: Some(b"c".to_vec()),
            start_revision: 3,
            deletes_only: false,
            with_previous: false,
        };
        let mut watch = both.client.watch(spec.clone());
        let answer = tokio::time::timeout(Duration::from_secs(5), watch.next()).await;
        let Ok(WatchMessage::Events(events)) = answer else { panic!("{answer:?}") };
        let without = plain(both.model.events(&spec, 3).expect("3 is not older than 3"));
        let all = plain(both.model.events_sent_before(&spec, 3));
        let lost = events == without;
        assert!(lost || events == all, "{events:?}");
        #[allow(
            clippy::print_stderr,
            reason = "which of the two this version does is worth knowing"
        )]
        {
            eprintln!("etcd {}: lost = {lost}", server.version);
        }
    });
}
