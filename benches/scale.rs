//! Thousands of nodes in one process: the real protocol and driver against a real etcd, without Python.
//!
//! `scale ENDPOINT NODES NODES_PER_CONNECTION TTL_S [PHASE ...]` lets so many nodes form worlds, and prints one
//! JSON object for each phase:
//!
//! - `first`: all nodes join at once; seconds until the last one has its rank.
//! - `last join`: as above, but one node joins when all others are there; seconds from its call on.
//! - `member lost`: a member's lease is revoked, a new node joins at the same time, every survivor
//!   learns of it from its watch and joins again; seconds until the last one has its rank.
//! - `mass death`: the same of a tenth of the members at once, and as many replacements.
//! - `takeovers`: a tenth of the members, each with a `node_id`, is started again while the old ones still have
//!   their leases, as after SIGKILL.
//! - `spares`: a tenth more nodes than the world has places for come, late; seconds until all of them wait.
//! - `coordinator`: one node is missing, and the coordinator goes; seconds until the world that its replacement and
//!   the missing node complete.
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
    Handle, Keys, Labels, Master, NodeInfo, OnMemberLoss, Outcome, RankOrder, Settings, Tuning,
    VERSION,
};
use tokio::sync::watch;
use tokio::task::JoinSet;

const LIMIT: Duration = Duration::from_secs(300);

struct Plan {
    endpoint: String,
    nodes: usize,
    per_connection: usize,
    ttl: Duration,
    /// Names of phases; all where there is none.
    phases: Vec<String>,
}

impl Plan {
    fn has(&self, phase: &str) -> bool {
        self.phases.is_empty() || self.phases.iter().any(|name| name == phase)
    }

    /// How many nodes a phase is about that is not about all of them.
    fn some(&self) -> usize {
        (self.nodes / 10).max(1)
    }
}

/// The nodes of one run and the connections they share.
struct World<'a> {
    plan: &'a Plan,
    keys: Keys,
    clients: Vec<Client>,
    nodes: Vec<Node>,
    max: usize,
    node_ids: bool,
}

struct Node {
    number: usize,
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
                as_it_is: false,
                cluster: None,
            });
            client.version(client.deadline_after(None)).await.unwrap();
            clients.push(client);
        }
        let max = plan.nodes;
        let mut world = Self { plan, keys, clients, nodes: Vec::new(), max, node_ids: false };
        world.nodes = (0..plan.nodes).map(|number| world.node(number)).collect();
        world
    }

    fn node(&self, number: usize) -> Node {
        let settings = Settings {
            keys: self.keys.clone(),
            min: self.plan.nodes,
            max: self.max,
            join_timeout: LIMIT,
            last_call: Duration::from_secs(30),
            survivor_grace: Duration::from_secs(60),
            close_timeout: Duration::from_secs(30),
            reopen_if_closed: false,
            version: VERSION,
            ttl: self.plan.ttl,
            run_ttl: Duration::from_secs(7200),
            on_member_loss: OnMemberLoss::Restart,
            node: NodeInfo { host: format!("node-{number}.example.org"), pid: 4242 },
            labels: Labels {
                node_id: self.node_ids.then(|| format!("node-{number}")),
                ..Labels::default()
            },
            order: RankOrder::Stable,
            epoch: Duration::ZERO,
            seed: u64::try_from(unique() & u128::from(u64::MAX)).unwrap(),
            tuning: Tuning::default(),
        };
        let client = self.clients[number % self.clients.len()].clone();
        Node { number, handle: Handle::start(client, settings), outcome: None }
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
        let mut ranks = vec![false; self.nodes.len()];
        for node in &self.nodes {
            let outcome = node.outcome.as_ref().unwrap();
            assert_eq!((outcome.round, outcome.world as usize), (round, self.nodes.len()));
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
        let mut broken = node.handle.broken(outcome.id());
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

/// A survivor: waits until its watch says that the world is over, or has room for others, and joins the
/// next one.
async fn rejoin(node: Node, tally: Arc<Tally>) -> Node {
    node.handle.waiting().wait_for(|waiting| *waiting > 0).await.unwrap();
    join(node, tally).await
}

impl World<'_> {
    /// All nodes, in a world; which round it is.
    async fn begin(&mut self) -> u64 {
        let nodes = std::mem::take(&mut self.nodes);
        let tally = Tally::new(nodes.len());
        let mut joining = JoinSet::new();
        for node in nodes {
            joining.spawn(join(node, tally.clone()));
        }
        let formed = self.form(joining).await;
        self.check(formed);
        // Every node's watches must be in place before one is lost.
        tokio::time::sleep(Duration::from_secs(2)).await;
        formed
    }

    /// The members join again as soon as they are told, and these nodes with them.
    async fn next(&mut self, comes: Vec<Node>) -> u64 {
        let survivors = std::mem::take(&mut self.nodes);
        let tally = Tally::new(survivors.len() + comes.len());
        let mut joining = JoinSet::new();
        for node in survivors {
            joining.spawn(rejoin(node, tally.clone()));
        }
        for node in comes {
            joining.spawn(join(node, tally.clone()));
        }
        self.form(joining).await
    }
}

async fn mass_death(plan: &Plan) {
    let mut world = World::new(plan, &format!("death-{}-{:x}", plan.nodes, unique())).await;
    let formed = world.begin().await;
    let lost = world.nodes.split_off(plan.nodes - plan.some());
    let comes = (0..plan.some()).map(|number| world.node(number)).collect();
    let phase = Phase::begin(plan, "mass death");
    drop(lost.iter().map(|node| node.handle.leave()).collect::<Vec<_>>());
    let round = world.next(comes).await;
    phase.end(round - formed);
    world.check(round);
    world.leave().await;
}

async fn takeovers(plan: &Plan) {
    let mut world = World::new(plan, &format!("take-{}-{:x}", plan.nodes, unique())).await;
    world.node_ids = true;
    world.nodes = (0..plan.nodes).map(|number| world.node(number)).collect();
    let formed = world.begin().await;
    let first = plan.nodes - plan.some();
    let is_old = |node: &Node| node.outcome.as_ref().is_some_and(|o| o.rank as usize >= first);
    // They go on renewing their leases: nothing but the takeover ends them.
    let (old, kept): (Vec<Node>, Vec<Node>) = world.nodes.drain(..).partition(is_old);
    world.nodes = kept;
    let comes = old.iter().map(|node| world.node(node.number)).collect();
    let phase = Phase::begin(plan, "takeovers");
    let round = world.next(comes).await;
    phase.end(round - formed);
    world.check(round);
    world.nodes.extend(old);
    world.leave().await;
}

async fn spares(plan: &Plan) {
    let mut world = World::new(plan, &format!("late-{}-{:x}", plan.nodes, unique())).await;
    world.begin().await;
    let comes: Vec<Node> = (0..plan.some()).map(|number| world.node(plan.nodes + number)).collect();
    let phase = Phase::begin(plan, "spares");
    for node in &comes {
        drop(node.handle.join(Master { addr: "node.example.org".into(), port: 29500 }));
    }
    for node in &comes {
        while !node.handle.status().progress.spare {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    phase.end(0);
    assert!(world.nodes.iter().all(|node| node.handle.status().waiting == 0));
    world.nodes.extend(comes);
    world.leave().await;
}

async fn coordinator_goes(plan: &Plan) {
    let mut world = World::new(plan, &format!("coord-{}-{:x}", plan.nodes, unique())).await;
    let mut rest = std::mem::take(&mut world.nodes);
    let last = rest.pop().unwrap();
    let coordinator = rest.pop().unwrap();
    drop(coordinator.handle.join(Master { addr: "node.example.org".into(), port: 29500 }));
    while world.count_joined().await < 1 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let tally = Tally::new(plan.nodes);
    let mut joining = JoinSet::new();
    for node in rest {
        joining.spawn(join(node, tally.clone()));
    }
    let others = i64::try_from(plan.nodes).unwrap() - 1;
    while world.count_joined().await < others {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let replacement = world.node(plan.nodes - 2);
    // Its report has told how many there are by then.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let phase = Phase::begin(plan, "coordinator");
    coordinator.handle.leave().await.unwrap();
    joining.spawn(join(replacement, tally.clone()));
    joining.spawn(join(last, tally));
    let round = world.form(joining).await;
    phase.end(round);
    world.check(round);
    world.leave().await;
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
    let phase = Phase::begin(plan, "member lost");
    drop(lost.handle.leave());
    let round = world.next(vec![replacement]).await;
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
            "events": per_node(load.events, self.before.events),
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
    /// Sent to watches.
    events: f64,
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
                "etcd_debugging_mvcc_events_total" => load.events = value,
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
    let [endpoint, nodes, per_connection, ttl, phases @ ..] = &args[..] else {
        panic!("scale ENDPOINT NODES NODES_PER_CONNECTION TTL_S [PHASE ...]")
    };
    let plan = Plan {
        endpoint: endpoint.clone(),
        nodes: nodes.parse().unwrap(),
        per_connection: per_connection.parse().unwrap(),
        ttl: Duration::from_secs(ttl.parse().unwrap()),
        phases: phases.to_vec(),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let all = async {
            if plan.has("first") || plan.has("member lost") {
                all_at_once(&plan).await;
            }
            if plan.has("last join") {
                last_join(&plan).await;
            }
            if plan.has("mass death") {
                mass_death(&plan).await;
            }
            if plan.has("takeovers") {
                takeovers(&plan).await;
            }
            if plan.has("spares") {
                spares(&plan).await;
            }
            if plan.has("coordinator") {
                coordinator_goes(&plan).await;
            }
        };
        tokio::time::timeout(LIMIT * 2, all).await.unwrap();
    });
}
