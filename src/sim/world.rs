//! Many nodes, one etcd, one clock: a queue of things to happen, taken one by one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use super::agent::{Agent, Doing};
use super::checks::round::Limits;
use super::checks::{Checks, Violation};
use super::model::Etcd;
use super::node::{Node, NodeIx, Request};
use super::rng::Rng;
use super::scenario::{Link, Scenario};
use super::trace::TraceHash;
use super::watchers::Watchers;
use crate::rendezvous::keys::Keys;
use crate::rendezvous::records::{Control, NodeInfo};
use crate::rendezvous::{CallId, Machine, Settings, Time, WatchId};

/// How often etcd looks for leases that have run out (`lessor.runLoop`).
pub const EXPIRY: Duration = Duration::from_millis(500);
/// How often the invariants are looked at that are about time.
pub const CHECK: Duration = Duration::from_millis(100);
/// The same while nothing is expected to happen, and how often agents look then.
pub const QUIET: Duration = Duration::from_secs(1);

/// Something that will happen.
#[derive(Clone, Debug)]
pub enum Event {
    /// A copy of a request reaches etcd; whether its node had left when it was sent.
    Arrive(NodeIx, CallId, u32, bool, Rc<Request>),
    /// The answer to that copy reaches the node.
    Answer(NodeIx, CallId, u32, Rc<super::node::Reply>),
    /// The node gives up waiting for that copy's answer.
    Retry(NodeIx, CallId, u32),
    Tick(NodeIx, Time),
    /// The watch is opened at etcd, for the first time or again.
    OpenWatch(NodeIx, WatchId),
    /// Events, or the end of the watch, reach the node.
    Deliver(NodeIx, WatchId),
    Renew(NodeIx, i64, u64),
    LeaseLost(NodeIx, i64),
    /// The watch ends: etcd was wiped.
    HistoryLost(NodeIx, WatchId),
    Agent(NodeIx),
    /// torch's launcher shuts the handler down.
    Shutdown(NodeIx),
    /// The process of an agent that has left ends.
    Exit(NodeIx),
    /// The scheduler starts another agent in its place.
    Replace(NodeIx),
    Expire,
    Check,
    /// The scenario's next fault.
    Fault,
    Recover(super::fault::Recovery),
    Strike(NodeIx, super::trap::Blow),
}

pub struct Scheduled {
    pub at: Time,
    order: u64,
    pub event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

pub struct World {
    pub now: Time,
    pub rng: Rng,
    pub etcd: Etcd,
    pub keys: Keys,
    pub scenario: Scenario,
    /// How messages travel at present.
    pub link: Link,
    pub nodes: Vec<Node>,
    pub etcd_down: bool,
    /// It has no space left.
    pub etcd_full: bool,
    /// How often it was wiped.
    pub etcd_number: u64,
    pub trap: Option<super::trap::Trap>,
    /// Faults happen.
    pub chaos: bool,
    /// From when on there are no faults.
    pub healed: Option<Time>,
    /// Nothing is expected to happen.
    pub quiet: bool,
    /// How many agents the scheduler is about to start again.
    pub replacements: u32,
    /// All nodes are gone for good.
    pub ended: bool,
    pub checks: Checks,
    pub last_write: Time,
    /// The names on the deny list.
    pub denied: BTreeSet<String>,
    pub watchers: Watchers,
    /// Whose lease each one is or was.
    pub owners: HashMap<i64, NodeIx>,
    pub failure: Option<Violation>,
    pub queue: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    /// What happened to paused nodes while they were.
    pub deferred: BTreeMap<NodeIx, Vec<Event>>,
    pub trace: Option<VecDeque<String>>,
    trace_lines: usize,
    /// Of all actions so far, where it is asked for.
    pub hash: Option<TraceHash>,
}

impl World {
    pub fn new(scenario: Scenario, seed: u64) -> Self {
        let mut world = Self {
            now: Duration::ZERO,
            rng: Rng::new(seed),
            etcd: Etcd::default(),
            keys: Keys::new("/sim/run_a"),
            link: scenario.link,
            checks: Checks::new(&scenario),
            scenario,
            nodes: Vec::new(),
            etcd_down: false,
            etcd_full: false,
            etcd_number: 0,
            trap: None,
            chaos: false,
            healed: None,
            quiet: false,
            replacements: 0,
            ended: false,
            last_write: Duration::ZERO,
            denied: BTreeSet::new(),
            watchers: Watchers::default(),
            owners: HashMap::new(),
            failure: None,
            queue: BinaryHeap::new(),
            order: 0,
            deferred: BTreeMap::new(),
            trace: None,
            trace_lines: 0,
            hash: None,
        };
        world.after(EXPIRY, Event::Expire);
        world.after(CHECK, Event::Check);
        world
    }

    /// Keeps the last `lines` of what happens.
    pub fn with_trace(mut self, lines: usize) -> Self {
        self.trace = Some(VecDeque::new());
        self.trace_lines = lines;
        self
    }

    pub fn trace(&self) -> String {
        self.trace.iter().flatten().map(|line| format!("  {line}\n")).collect()
    }

    pub fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            if trace.len() == self.trace_lines {
                trace.pop_front();
            }
            trace.push_back(format!("{:>10.4} {}", self.now.as_secs_f64(), text()));
        }
    }

    pub fn fail(&mut self, violation: Violation) {
        self.note(|| format!("VIOLATION {violation}"));
        self.failure.get_or_insert(violation);
    }

    pub fn require(&mut self, result: Result<(), Violation>) {
        if let Err(violation) = result {
            self.fail(violation);
        }
    }

    pub fn after(&mut self, pause: Duration, event: Event) {
        self.at(self.now + pause, event);
    }

    pub fn at(&mut self, at: Time, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled { at, order: self.order, event }));
    }

    /// Starts a node whose agent joins at once.
    pub fn start_node(&mut self) -> NodeIx {
        let labels = self.scenario.labels(self.nodes.len(), &mut self.rng);
        let common = Settings { labels, ..self.scenario.settings.clone() };
        let settings = self.scenario.unequal.node(&common, &mut self.rng);
        self.start_as(settings)
    }

    pub fn start_as(&mut self, settings: Settings) -> NodeIx {
        let index = self.nodes.len();
        let settings = Settings {
            node: NodeInfo { host: format!("n{index}"), pid: 1 },
            seed: self.rng.next(),
            ..settings
        };
        let agent = Agent::new(&self.scenario, &mut self.rng);
        let mut node = Node::new(Machine::new(settings), agent, self.now);
        node.etcd = self.etcd_number;
        self.note(|| format!("n{index} starts, {}", super::trace::settings(&node)));
        self.nodes.push(node);
        self.after(Duration::ZERO, Event::Agent(index));
        index
    }

    pub fn start_nodes(&mut self, nodes: usize) {
        for _ in 0..nodes {
            self.start_node();
        }
    }

    /// A node that was paused catches up, in no particular order.
    pub fn catch_up(&mut self, node: NodeIx) {
        for event in self.deferred.remove(&node).unwrap_or_default() {
            let pause = self.rng.time(Duration::ZERO, self.link.latency * 4);
            self.after(pause, event);
        }
    }

    /// Takes what is due at some far time to within `most` from now.
    pub fn hurry(&mut self, most: Duration, which: impl Fn(&Event) -> bool) {
        let latest = self.now + most;
        let queue = std::mem::take(&mut self.queue);
        for Reverse(mut scheduled) in queue.into_sorted_vec().into_iter().rev() {
            if which(&scheduled.event) && scheduled.at > latest {
                scheduled.at = self.now + self.rng.time(Duration::ZERO, most);
            }
            self.queue.push(Reverse(scheduled));
        }
    }

    /// What was on its way does not arrive.
    pub fn drop_messages(&mut self) {
        let is_message = |event: &Event| matches!(event, Event::Arrive(..) | Event::Answer(..));
        self.queue.retain(|Reverse(scheduled)| !is_message(&scheduled.event));
    }

    pub fn control(&self) -> Option<&Control> {
        self.checks.history.control.as_ref()
    }

    pub fn up(&self) -> Vec<NodeIx> {
        self.which(Node::is_up)
    }

    pub fn live(&self) -> Vec<NodeIx> {
        self.which(Node::is_live)
    }

    /// A node that trains in the world of a run that was deleted is none of the present one.
    pub fn is_of_the_run(&self, node: &Node) -> bool {
        let epoch = self.checks.history.epoch;
        !matches!(&node.agent.doing, Doing::Training { nth, .. } if nth.epoch < epoch)
    }

    pub fn training(&self) -> Vec<NodeIx> {
        self.which(|node| node.is_up() && matches!(node.agent.doing, Doing::Training { .. }))
    }

    pub fn which(&self, condition: impl Fn(&Node) -> bool) -> Vec<NodeIx> {
        let chosen = self.nodes.iter().enumerate().filter(|(_, node)| condition(node));
        chosen.map(|(index, _)| index).collect()
    }

    /// The node that holds this lease.
    pub fn holder(&self, lease: i64) -> Option<NodeIx> {
        let owner = self.owners.get(&lease).copied();
        owner.filter(|node| self.nodes[*node].lease() == Some(lease))
    }

    /// What a node goes by as a coordinator; what nodes mostly go by where it is nobody.
    pub fn limits_of(&self, node: Option<NodeIx>) -> Limits {
        node.map_or_else(
            || Limits::of(&self.scenario.settings),
            |node| Limits::of(self.nodes[node].settings()),
        )
    }

    pub fn coordinator(&self) -> Option<NodeIx> {
        self.holder(self.etcd.get(&self.keys.coordinator())?.lease)
    }
}
