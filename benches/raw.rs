//! The floor for the store's benchmark: etcd-client's own calls from Rust, without this project's code.
//!
//! `raw latency ENDPOINT SECONDS` prints microseconds per call as JSON, on a runtime of one thread and
//! on tokio's default one. `raw rate ENDPOINT SECONDS put|add` prints how many calls it made: run
//! several at once for what etcd can take.

use std::time::{Duration, Instant};

use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use tokio::runtime::{Builder, Runtime};

/// As long as a key of a round's store, and 45 bytes in base64.
const KEY: &str = "/torchelastic/p2p/run_bench/rdzv/v_1/kv/a2V5";
const VALUE: &str = "dmFsdWUgb2YgdGhlIGtleSB0aGF0IGlzIG1lYXN1cmVkLCA0NSBieXRlcy4h";
/// Calls of one kind in a row: noise hits all kinds alike.
const SLICE: usize = 50;
/// A call after a pause finds everything asleep, etcd too, as one does that wakes a waiting process.
const PAUSE: Duration = Duration::from_millis(5);
const PACED: usize = 30;

async fn put(client: &mut Client) {
    client.put(KEY, VALUE, None).await.unwrap();
}

async fn get(client: &mut Client) {
    client.get(KEY, None).await.unwrap();
}

/// An addition that takes effect once: what no client can do with less.
async fn add(client: &mut Client, receipt: &str, done: i64) {
    let guard = [
        Compare::version(receipt, CompareOp::Equal, done),
        Compare::value("/raw/counter", CompareOp::Greater, "\""),
    ];
    let add = [
        TxnOp::put("/raw/counter/1", "", None),
        TxnOp::get("/raw/counter/1", None),
        TxnOp::get("/raw/counter", None),
        TxnOp::put(receipt, "", None),
    ];
    let answer = client.txn(Txn::new().when(guard).and_then(add)).await.unwrap();
    assert!(answer.succeeded());
}

async fn latency(endpoint: &str, limit: Duration) -> serde_json::Value {
    let mut client = Client::connect([endpoint], None).await.unwrap();
    let (mut puts, mut gets) = (Vec::new(), Vec::new());
    let end = Instant::now() + limit;
    while Instant::now() < end {
        for _ in 0..SLICE {
            let begin = Instant::now();
            put(&mut client).await;
            puts.push(begin.elapsed());
        }
        for _ in 0..SLICE {
            let begin = Instant::now();
            get(&mut client).await;
            gets.push(begin.elapsed());
        }
    }
    let (mut paced_puts, mut paced_gets) = (Vec::new(), Vec::new());
    for _ in 0..PACED {
        tokio::time::sleep(PAUSE).await;
        let begin = Instant::now();
        put(&mut client).await;
        paced_puts.push(begin.elapsed());
        tokio::time::sleep(PAUSE).await;
        let begin = Instant::now();
        get(&mut client).await;
        paced_gets.push(begin.elapsed());
    }
    serde_json::json!({
        "put": summary(puts),
        "get": summary(gets),
        "paced_put": summary(paced_puts),
        "paced_get": summary(paced_gets),
    })
}

fn summary(mut times: Vec<Duration>) -> serde_json::Value {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e6;
    serde_json::json!({ "median_us": at(50), "p99_us": at(99), "n": times.len() })
}

async fn rate(endpoint: &str, limit: Duration, what: &str) -> i64 {
    let mut client = Client::connect([endpoint], None).await.unwrap();
    client.put("/raw/counter", "#0", None).await.unwrap();
    let receipt = format!("/raw/receipt/{}", std::process::id());
    client.delete(receipt.as_str(), None).await.unwrap();
    let end = Instant::now() + limit;
    let mut done = 0;
    while Instant::now() < end {
        match what {
            "put" => put(&mut client).await,
            "add" => add(&mut client, &receipt, done).await,
            other => panic!("put or add, not {other}"),
        }
        done += 1;
    }
    done
}

fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[allow(clippy::print_stdout, reason = "what it is for")]
fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let limit = |seconds: &str| Duration::from_secs_f64(seconds.parse().unwrap());
    match args[..] {
        ["latency", endpoint, seconds] => {
            let limit = limit(seconds) / 2;
            let one = one_thread().block_on(latency(endpoint, limit));
            let default = Runtime::new().unwrap().block_on(latency(endpoint, limit));
            println!("{}", serde_json::json!({ "current_thread": one, "multi_thread": default }));
        }
        ["rate", endpoint, seconds, what] => {
            println!("{}", one_thread().block_on(rate(endpoint, limit(seconds), what)));
        }
        _ => panic!("raw latency ENDPOINT SECONDS | raw rate ENDPOINT SECONDS put|add"),
    }
}
