//! An etcd with more to do than it can, made so: what it says then, and what the client makes of it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::call::Repeat;
use super::client::Client;
use super::error::EtcdError;
use super::kv::{Op, Range, Txn};
use super::test_server::{Server, binary};

/// etcd refuses proposals when this many wait to be applied (`maxGapBetweenApplyAndCommitIndex`).
const GAP: usize = 5000;
const TOO_MANY: &str = "too many requests";

/// Each takes etcd long to apply: it counts many keys many times, and writes, so that it goes through the
/// log.
async fn slow(client: &Client, number: usize) -> Result<(), EtcdError> {
    let count = Op::Get(Range::prefix("k").count_only());
    let mut ops = vec![count; 100];
    ops.push(Op::put(format!("slow{number}"), "", 0));
    let deadline = Instant::now() + Duration::from_secs(100);
    client.txn(&Txn::when([]).then(ops), Repeat::Never, deadline).await.map(drop)
}

async fn quick(client: Client, number: usize) -> Result<i64, EtcdError> {
    let put = Txn::when([]).then([Op::put(format!("q{number}"), "", 0)]);
    let deadline = Instant::now() + Duration::from_secs(100);
    client.txn(&put, Repeat::Never, deadline).await.map(|reply| reply.revision)
}

/// Calls that may not be repeated blindly are repeated here: etcd has not begun them.
#[test]
fn too_many_requests_are_sent_again_later() {
    let Some(binary) = binary() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("one");
    runtime.block_on(async {
        let server = Server::start(&binary).await;
        let client = server.client();
        for chunk in 0..500 {
            let puts = (0..100).map(|key| Op::put(format!("k{chunk}.{key}"), "", 0));
            let txn = Txn::when([]).then(puts.collect::<Vec<_>>());
            client.txn(&txn, Repeat::Never, client.deadline_after(None)).await.expect("written");
        }
        let slow = async {
            let all = (0..3).map(|number| {
                let client = client.clone();
                tokio::spawn(async move { slow(&client, number).await })
            });
            for task in all.collect::<Vec<_>>() {
                // Its answer may exceed etcd's own limit.
                let _ = task.await.expect("no panic");
            }
        };
        let quick = async {
            let all = (0..GAP).map(|number| tokio::spawn(quick(client.clone(), number)));
            let mut revisions = Vec::new();
            for task in all.collect::<Vec<_>>() {
                match task.await.expect("no panic") {
                    Ok(revision) => revisions.push(revision),
                    // On a slow machine it was in the log for too long: another matter.
                    Err(EtcdError::Ambiguous { causes }) => {
                        assert!(!causes.contains(TOO_MANY), "{causes}");
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            let answered = revisions.len();
            revisions.sort_unstable();
            revisions.dedup();
            assert_eq!(revisions.len(), answered, "each once");
        };
        // Without our client in between: what etcd says.
        let refusals = async {
            let endpoint = format!("http://{}", server.endpoint);
            let raw = etcd_client::Client::connect([endpoint], None).await.expect("connected");
            let all = (0..2 * GAP).map(|number| {
                let mut kv = raw.kv_client();
                tokio::spawn(async move { kv.put(format!("raw{number}"), "", None).await })
            });
            let mut said = BTreeMap::new();
            for task in all.collect::<Vec<_>>() {
                if let Err(error) = task.await.expect("no panic") {
                    *said.entry(error.to_string()).or_insert(0) += 1;
                }
            }
            said
        };
        let ((), (), said) = tokio::join!(slow, quick, refusals);
        #[allow(clippy::print_stderr, reason = "whether it was overloaded is worth knowing")]
        {
            eprintln!("etcd {}: {said:?}", server.version);
        }
        assert!(said.keys().any(|text| text.contains(TOO_MANY)), "{said:?}");
    });
}
