//! What a role may read and do: everything that is not a role's own.

use std::time::Duration;

use super::head::Head;
use super::leases::Leases;
use super::name::Name;
use super::out::Out;
use super::remarks::Remarks;
use super::timers::{Timer, Timers};
use super::view::{View, reader};
use crate::rendezvous::api::{Action, DeniedNode, RendezvousError, Settings, Time};
use crate::rendezvous::keys::{NodeId, escape};
use crate::rendezvous::records::Reader;
use crate::rendezvous::variant::Variant;

pub struct Cx {
    pub now: Time,
    pub settings: Settings,
    pub out: Out,
    pub timers: Timers,
    pub view: View,
    pub head: Head,
    pub leases: Leases,
    pub name: Name,
    pub remarks: Remarks,
    pub attempts: Attempts,
}

/// This node's attempts to complete a round, in all its time.
#[derive(Debug, Default)]
pub struct Attempts {
    pub count: u64,
    /// The last one, if it leaves anything behind when it succeeds: others came before it.
    pub sweeps: Option<String>,
}

impl Cx {
    pub fn new(settings: Settings) -> Self {
        Self {
            now: Time::ZERO,
            out: Out::new(settings.seed),
            settings,
            timers: Timers::default(),
            view: View::default(),
            head: Head::default(),
            leases: Leases::default(),
            name: Name::default(),
            remarks: Remarks::default(),
            attempts: Attempts::default(),
        }
    }

    /// Unix time in seconds, for records.
    pub fn unix(&self, time: Time) -> u64 {
        self.settings.epoch.saturating_add(time).as_secs()
    }

    pub fn unix_now(&self) -> u64 {
        self.unix(self.now)
    }

    pub fn reader(&self) -> Reader {
        reader(&self.settings)
    }

    /// A record of this run.
    pub fn encode<T: serde::Serialize>(&self, record: &T) -> Vec<u8> {
        self.view.encode(&self.settings, record)
    }

    /// Whether the head was read after its watch had begun; if not, sees to it. `early`: it is read once
    /// before that, too.
    pub fn know_head(&mut self, deadline: Time, early: bool) -> bool {
        let Self { settings, out, head, .. } = self;
        head.ensure(settings, out, deadline, early)
    }

    pub fn watch_head(&mut self) {
        self.head.begin(&self.settings, &mut self.out);
    }

    pub fn forget_head(&mut self) {
        self.head.forget(&mut self.out);
    }

    /// The TTL of the run's lease, as the run's record has it.
    pub fn run_ttl(&self) -> Duration {
        let known = self.view.control.value.as_ref().map_or(0, |control| control.run_ttl);
        if known == 0 || self.settings.wrong(Variant::OwnTtl) {
            self.leases.run().unwrap_or(self.settings.run_ttl)
        } else {
            Duration::from_secs(known)
        }
    }

    /// The same for the record of a run that this node creates.
    pub fn run_ttl_of_new(&self) -> u64 {
        let forgets = self.settings.wrong(Variant::KnowsLeaseOfLastRun);
        self.leases.run().filter(|_| !forgets).unwrap_or(self.settings.run_ttl).as_secs()
    }

    /// The record is under the run's lease, so etcd has it: this node renews it, too.
    pub fn hold_run_lease(&mut self) {
        let ttl = self.run_ttl();
        self.leases.hold_run(&self.settings, &mut self.out, ttl);
    }

    pub fn abandon_run_lease(&mut self) {
        self.leases.abandon_run(&self.settings, &mut self.out);
    }

    /// Answers whoever asked for the state of the run.
    pub fn observed(&mut self, result: Result<(), RendezvousError>) {
        self.timers.clear(Timer::Observe);
        self.out.act(Action::Observed(result));
    }

    /// `false` while the run's lease is being granted.
    pub fn ensure_run_lease(&mut self, deadline: Time) -> bool {
        self.leases.ensure_run(&self.settings, &mut self.out, deadline)
    }

    /// Why this node may take no part: it is denied, or replaced by another agent.
    pub fn exclusion(&self) -> Option<RendezvousError> {
        self.denial().map(RendezvousError::Denied).or_else(|| self.replaced())
    }

    /// Another agent has this node's `node_id` now.
    pub fn replaced(&self) -> Option<RendezvousError> {
        self.name.replaced(&self.settings, &self.leases)
    }

    /// Why this node may not take part; by what it was called before as well, or the loss of its lease
    /// would make it another one that is not denied.
    fn denial(&self) -> Option<DeniedNode> {
        let Self { settings, leases, view, .. } = self;
        if view.denied.is_empty() || settings.wrong(Variant::IgnoresDenial) {
            return None;
        }
        let nodes: Vec<NodeId> = leases.all().collect();
        let (what, name, denial) = view.denied.of(&nodes, &settings.node, &settings.labels)?;
        let key = format!("{}{}", settings.keys.denials(), escape(&name));
        Some(DeniedNode { node: settings.node.clone(), what, name, denial: denial.clone(), key })
    }
}

/// A count as records have it.
pub fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
