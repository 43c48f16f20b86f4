//! One node: the real protocol core and what its driver would keep for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use super::agent::Agent;
pub use super::index::NodeIx;
use crate::etcd::kv::Txn;
use crate::etcd::{EtcdError, WatchSpec};
use crate::rendezvous::keys::NodeId;
use crate::rendezvous::{Answer, CallId, Machine, Time, Wanted, WatchId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Up,
    /// Stopped (SIGSTOP, a swapped-out machine): nothing of it runs, its lease is not renewed.
    Paused,
    /// Its agent has left the run. The process is still there, and what its driver does goes on.
    Left,
    /// Dead or gone: nothing of it will ever run again.
    Gone,
}

/// What a driver sends to etcd.
#[derive(Clone, Debug)]
pub enum Request {
    Txn(Txn),
    Grant(Wanted, Duration),
    TimeToLive(i64),
    Revoke(i64),
}

/// What comes of it.
pub type Reply = Result<Answer, EtcdError>;

/// A call that the machine waits for, or one whose answer nobody wants (a revocation).
pub struct Call {
    pub request: Rc<Request>,
    pub begun: Time,
    pub deadline: Time,
    /// The copy of the request that is waited for; answers to earlier ones are not heard any more.
    pub attempt: u32,
    /// A copy of it has left for etcd.
    pub sent: bool,
    /// The node had left when it was sent last.
    pub ghost: bool,
}

#[allow(clippy::struct_excessive_bools, reason = "each is about something else")]
pub struct Watch {
    pub spec: WatchSpec,
    /// Where it resumes when its stream breaks: after the last event that arrived. 0: not yet known.
    pub next: i64,
    /// What etcd has looked at for it.
    pub scanned: i64,
    /// What has happened since, by its place in etcd's history.
    pub pending: VecDeque<usize>,
    /// The machine has yet to be told where it began.
    pub untold: bool,
    pub open: bool,
    /// It began in the past, and etcd has not looked there yet.
    pub past: bool,
    /// It was open before: it resumes one revision early, as the client does (`etcd/watch/session.rs`, `options`).
    pub opened: bool,
    /// A delivery is on its way.
    pub due: bool,
    /// Which etcd its revisions are of: they mean nothing to one that was wiped since.
    pub etcd: u64,
}

/// What a node has cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Costs {
    /// Calls, repetitions included; renewals of leases and openings of watches apart.
    pub rpcs: u64,
    pub renewals: u64,
    pub watches: u64,
    pub sent: u64,
    pub received: u64,
    /// Events that watches have brought.
    pub events: u64,
}

/// A lease that the driver renews.
#[derive(Clone, Copy, Debug)]
pub struct KeepAlive {
    /// As the machine told it.
    pub ttl: Duration,
    /// Which of the node's tasks it is.
    pub task: u64,
    pub since: Time,
}

pub struct Node {
    pub machine: Machine,
    pub agent: Agent,
    pub health: Health,
    pub started: Time,
    /// Cut off from etcd.
    pub partitioned: bool,
    /// etcd refuses what it asks for: its rights were taken away.
    pub forbidden: bool,
    /// When something last kept it from renewing its leases in time.
    pub disturbed: Time,
    pub calls: BTreeMap<CallId, Call>,
    pub watches: BTreeMap<WatchId, Watch>,
    pub keep_alives: BTreeMap<i64, KeepAlive>,
    pub last_keep_alive: u64,
    pub leases: BTreeSet<NodeId>,
    /// When the next tick is due, so that it is sent once.
    pub tick: Option<Time>,
    /// Ticks in a row at one moment: a machine that asks for them for ever would spin.
    pub spins: u32,
    /// The revision of the last answer of etcd that the machine took in, and of which etcd it is.
    pub answered: i64,
    pub etcd: u64,
    pub costs: Costs,
    /// For calls whose answer nobody waits for.
    pub last_aside: CallId,
}

impl Node {
    pub fn new(machine: Machine, agent: Agent, started: Time) -> Self {
        Self {
            machine,
            agent,
            started,
            health: Health::Up,
            partitioned: false,
            forbidden: false,
            disturbed: started,
            calls: BTreeMap::new(),
            watches: BTreeMap::new(),
            keep_alives: BTreeMap::new(),
            last_keep_alive: 0,
            leases: BTreeSet::new(),
            tick: None,
            spins: 0,
            answered: 0,
            etcd: 0,
            costs: Costs::default(),
            last_aside: CallId::MAX / 2,
        }
    }

    pub fn is_up(&self) -> bool {
        self.health == Health::Up
    }

    /// Its agent takes part, or will.
    pub fn is_live(&self) -> bool {
        matches!(self.health, Health::Up | Health::Paused)
    }

    /// Something of it runs, or will.
    pub fn runs(&self) -> bool {
        self.health != Health::Gone
    }

    /// Nothing has kept it from renewing its leases for so long.
    pub fn was_calm_for(&self, now: Time, time: Duration) -> bool {
        self.is_up() && !self.partitioned && now > self.disturbed + time
    }
}
