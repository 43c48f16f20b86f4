//! Thousands of nodes in one process: the real protocol and driver against a real etcd, without Python.
//!
//! `scale ENDPOINT NODES NODES_PER_CONNECTION TTL_S` lets so many nodes form a world, one of them leave
//! and a replacement come, and prints one JSON object for each phase:
//!
//! - `first`: all nodes join at once; seconds until the last one has its rank.
//! - `last join`: as above, but one node joins when all others are there; seconds from its call on.
//! - `member lost`: a member's lease is revoked, a new node joins at the same time, every survivor
//!   learns of it from its watch and joins again; seconds until the last one has its rank.
//!
//! Nodes do what torchrun's agents do: who learns that its round is over joins the next one. `rounds` says
//! how many it took: more than one where a node lost its lease because etcd was too busy to renew it.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use _torchetcd::etcd::kv::{Op, Range, Txn};
use _torchetcd::etcd::{Client, Config, Repeat, TlsFiles, unique};
use _torchetcd::rendezvous::{
    Handle, Keys, Labels, Master, NodeInfo, OnMemberLoss, Outcome, RankOrder, Settings,
};
use tokio::sync::watch;
use tokio::task::JoinSet;

const LIMIT: Duration = Duration::from_secs(300);

struct Plan {
    endpoint: String,
    nodes: usize,
    per_connection: usize,
    ttl: Duration,
}

/// The nodes of one run and the connections they share.
struct World<'a> {
    plan: &'a Plan,
    keys: Keys,
    clients: Vec<Client>,
    nodes: Vec<Node>,
}

struct Node {
    handle: Handle,
    outcome: Option<Outcome>,
}

impl<'a> World<'a> {
    /// Connected, but nobody has joined.
    async fn new(plan: &'a Plan, run: &str) -> Self {
        let keys = Keys::new(format!("/bench/{run}/"));
        let mut clients = Vec::new();
        for _ in 0..plan.nodes.div_ceil(plan.per_connection) {
            let client = Client::new(Config {
                endpoints: _torchetcd::etcd::parse_endpoints(&plan.endpoint, false).unwrap(),
                tls: TlsFiles::default(),
                credentials: None,
                connect_timeout: Duration::from_secs(30),
                request_timeout: Duration::from_secs(60),
            });
            client.version(client.deadline_after(None)).await.unwrap();
            clients.push(client);
        }
        let mut world = Self { plan, keys, clients, nodes: Vec::new() };
        world.nodes = (0..plan.nodes).map(|number| world.node(number)).collect();
        world
    }

    fn node(&self, number: usize) -> Node {
        let settings = Settings {
            keys: self.keys.clone(),
            min: self.plan.nodes,
            max: self.plan.nodes,
            join_timeout: LIMIT,
            last_call: Duration::from_secs(30),
            close_timeout: Duration::from_secs(30),
            ttl: self.plan.ttl,
            run_ttl: Duration::from_secs(7200),
            on_member_loss: OnMemberLoss::Restart,
            node: NodeInfo { host: format!("node-{number}.example.org"), pid: 4242 },
            labels: Labels::default(),
            order: RankOrder::Stable,
            epoch: Duration::ZERO,
            seed: u64::try_from(unique() & u128::from(u64::MAX)).unwrap(),
        };
        let client = self.clients[number % self.clients.len()].clone();
        Node { handle: Handle::start(client, settings), outcome: None }
    }

    /// Waits until all have a rank of the same round; tells which.
    async fn form(&mut self, mut joining: JoinSet<Node>) -> u64 {
        while let Some(node) = joining.join_next().await {
            self.nodes.push(node.unwrap());
        }
        self.nodes[0].outcome.as_ref().unwrap().round
    }

    async fn count_joined(&self) -> i64 {
        let client = &self.clients[0];
        let joins = Range::prefix(self.keys.joins(1)).count_only();
        let txn = Txn::when([]).then([Op::Get(joins)]);
        let reply = client.txn(&txn, Repeat::Safely, client.deadline_after(None)).await.unwrap();
        reply.range(0).count
    }

    fn check(&self, round: u64) {
        let mut ranks = vec![false; self.plan.nodes];
        for node in &self.nodes {
            let outcome = node.outcome.as_ref().unwrap();
            assert_eq!((outcome.round, outcome.world as usize), (round, self.plan.nodes));
            ranks[outcome.rank as usize] = true;
        }
        assert!(ranks.into_iter().all(|taken| taken), "a rank is missing");
    }

    async fn leave(self) {
        let left: Vec<_> = self.nodes.iter().map(|node| node.handle.leave()).collect();
        for done in left {
            let _ = done.await;
        }
    }
}

/// Counts the nodes that have a rank, by round.
struct Tally {
    nodes: usize,
    arrived: Mutex<BTreeMap<u64, usize>>,
    full: watch::Sender<bool>,
}

impl Tally {
    fn new(nodes: usize) -> Arc<Self> {
        Arc::new(Self { nodes, arrived: Mutex::default(), full: watch::Sender::new(false) })
    }

    fn arrive(&self, round: u64) {
        let mut arrived = self.arrived.lock().unwrap();
        let count = arrived.entry(round).or_default();
        *count += 1;
        if *count == self.nodes {
            self.full.send_replace(true);
        }
    }
}

/// Joins round after round, until there is one with all nodes.
async fn join(mut node: Node, tally: Arc<Tally>) -> Node {
    let mut full = tally.full.subscribe();
    loop {
        let joined = node.handle.join(Master { addr: "node.example.org".into(), port: 29500 });
        let outcome = joined.await.unwrap().unwrap();
        let mut broken = node.handle.broken(outcome.round);
        tally.arrive(outcome.round);
        node.outcome = Some(outcome);
        tokio::select! {
            biased;
            whole = full.wait_for(|full| *full) => {
                whole.unwrap();
                return node;
            }
            over = broken.wait_for(Option::is_some) => drop(over.unwrap()),
        }
    }
}

/// A survivor: waits until its watch says that the world is not whole, and joins the next one.
async fn rejoin(node: Node, tally: Arc<Tally>) -> Node {
    let round = node.outcome.as_ref().unwrap().round;
    let mut broken = node.handle.broken(round);
    broken.wait_for(Option::is_some).await.unwrap();
    join(node, tally).await
}

async fn all_at_once(plan: &Plan) {
    let mut world = World::new(plan, &format!("all-{}-{:x}", plan.nodes, unique())).await;
    let nodes = std::mem::take(&mut world.nodes);
    let phase = Phase::begin(plan, "first");
    let mut joining = JoinSet::new();
    let tally = Tally::new(plan.nodes);
    for node in nodes {
        joining.spawn(join(node, tally.clone()));
    }
    let formed = world.form(joining).await;
    phase.end(formed);
    world.check(formed);
    // Every node's watches must be in place before one is lost.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let lost = world.nodes.swap_remove(plan.nodes / 2);
    let replacement = world.node(plan.nodes / 2);
    let survivors = std::mem::take(&mut world.nodes);
    let phase = Phase::begin(plan, "member lost");
    let mut joining = JoinSet::new();
    let tally = Tally::new(plan.nodes);
    for node in survivors {
        joining.spawn(rejoin(node, tally.clone()));
    }
    joining.spawn(join(replacement, tally));
    lost.handle.leave().await.unwrap();
    let round = world.form(joining).await;
    phase.end(round - formed);
    world.check(round);
    world.leave().await;
}

async fn last_join(plan: &Plan) {
    let mut world = World::new(plan, &format!("last-{}-{:x}", plan.nodes, unique())).await;
    let mut nodes = std::mem::take(&mut world.nodes);
    let last = nodes.pop().unwrap();
    let mut joining = JoinSet::new();
    let tally = Tally::new(plan.nodes);
    for node in nodes {
        joining.spawn(join(node, tally.clone()));
    }
    let others = i64::try_from(plan.nodes).unwrap() - 1;
    while world.count_joined().await < others {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let phase = Phase::begin(plan, "last join");
    joining.spawn(join(last, tally));
    let round = world.form(joining).await;
    phase.end(round);
    world.check(round);
    world.leave().await;
}

/// A stretch of time, with what etcd did in it.
struct Phase<'a> {
    plan: &'a Plan,
    name: &'static str,
    began: Instant,
    before: Load,
}

impl<'a> Phase<'a> {
    fn begin(plan: &'a Plan, name: &'static str) -> Self {
        Self { plan, name, before: Load::of(&plan.endpoint), began: Instant::now() }
    }

    #[allow(clippy::print_stdout, reason = "what it is for")]
    fn end(self, rounds: u64) {
        let seconds = self.began.elapsed().as_secs_f64();
        let load = Load::of(&self.plan.endpoint);
        #[allow(clippy::cast_precision_loss, reason = "small numbers")]
        let per_node = |after: f64, before: f64| (after - before) / self.plan.nodes as f64;
        let row = serde_json::json!({
            "phase": self.name,
            "n": self.plan.nodes,
            "connections": self.plan.nodes.div_ceil(self.plan.per_connection),
            "seconds": seconds,
            "rounds": rounds,
            "rpcs": per_node(load.rpcs(), self.before.rpcs()),
            "renewals": per_node(load.renewals(), self.before.renewals()),
            "methods": load.since(&self.before),
            "bytes": per_node(load.bytes, self.before.bytes),
            "keys": per_node(load.puts, self.before.puts),
            "etcd_cpu_s": load.cpu_s - self.before.cpu_s,
        });
        println!("{row}");
    }
}

/// Read off etcd's metrics.
#[derive(Default)]
struct Load {
    /// By method; a stream counts once, when it is opened.
    calls: BTreeMap<String, f64>,
    bytes: f64,
    puts: f64,
    cpu_s: f64,
}

impl Load {
    fn of(endpoint: &str) -> Self {
        let mut stream = TcpStream::connect(endpoint).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let mut load = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            match name {
                "process_cpu_seconds_total" => load.cpu_s = value,
                "etcd_mvcc_put_total" => load.puts = value,
                "etcd_network_client_grpc_received_bytes_total"
                | "etcd_network_client_grpc_sent_bytes_total" => load.bytes += value,
                _ => {
                    if let Some(labels) =
                        name.strip_prefix("grpc_server_started_total{grpc_method=\"")
                    {
                        let method = labels.split('"').next().unwrap_or_default();
                        *load.calls.entry(method.to_string()).or_default() += value;
                    }
                }
            }
        }
        load
    }

    /// What the round took, without the renewal of leases, which goes by the time.
    fn rpcs(&self) -> f64 {
        self.calls.values().sum::<f64>() - self.renewals()
    }

    fn renewals(&self) -> f64 {
        self.calls.get("LeaseKeepAlive").copied().unwrap_or_default()
    }

    fn since(&self, before: &Self) -> BTreeMap<String, f64> {
        let mut calls = self.calls.clone();
        for (method, count) in &before.calls {
            *calls.entry(method.clone()).or_default() -= count;
        }
        calls.retain(|_, count| *count != 0.0);
        calls
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [endpoint, nodes, per_connection, ttl] = &args[..] else {
        panic!("scale ENDPOINT NODES NODES_PER_CONNECTION TTL_S")
    };
    let plan = Plan {
        endpoint: endpoint.clone(),
        nodes: nodes.parse().unwrap(),
        per_connection: per_connection.parse().unwrap(),
        ttl: Duration::from_secs(ttl.parse().unwrap()),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let both = async {
            all_at_once(&plan).await;
            last_join(&plan).await;
        };
        tokio::time::timeout(LIMIT, both).await.unwrap();
    });
}
