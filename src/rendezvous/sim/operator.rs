//! What people do to a run from outside, and agents that are started again: with guarded writes of their
//! own, as `torchetcd reopen`, `evict` and `allow` make them.

use std::time::Duration;

use super::agent::Doing;
use super::model::Touched;
use super::node::NodeIx;
use super::world::World;
use crate::etcd::kv::{Compare, Op, Txn};
use crate::rendezvous::denied::Denial;
use crate::rendezvous::keys::{escape, unescape};
use crate::rendezvous::ranks::RankOrder;
use crate::rendezvous::records::{self, Control, State};

impl World {
    /// `false` where the guard does not hold.
    fn operate(&mut self, txn: &Txn) -> bool {
        let done = !self.etcd_down && self.etcd.txn(txn).is_ok_and(|reply| reply.succeeded);
        self.written(None);
        done
    }

    /// A closed run is open again, in its next round.
    pub fn reopen(&mut self) {
        let Some(Control { round, state: State::Closed(_), .. }) = self.control().cloned() else {
            return;
        };
        let key = self.keys.control();
        let Some(modified) = self.etcd.get(&key).map(|kv| kv.mod_revision) else { return };
        self.note(|| format!("an operator reopens the run as round {}", round + 1));
        let open = State::Open {
            previous: None,
            by: "operator".into(),
            at: 1,
            why: "reopened by operator: test".into(),
        };
        let record = records::encode(&Control::new(round + 1, open));
        let txn = Txn::when([Compare::mod_revision(key.clone(), modified)]).then([Op::put(
            key,
            record,
            self.keys.run_lease(),
        )]);
        self.checks.history.reopening = true;
        if self.operate(&txn) {
            self.checks.closed = None;
        }
        self.checks.history.reopening = false;
    }

    /// Puts a node on the deny list by one of its names, and maybe takes its lease.
    pub fn deny(&mut self, node: NodeIx) {
        let settings = &self.nodes[node].machine.settings;
        let mut names = vec![settings.node.host.clone()];
        names.extend(settings.labels.node_id.clone());
        names.extend(self.nodes[node].machine.lease.map(|lease| format!("{lease:016x}")));
        let name = names.swap_remove(self.rng.below(names.len()));
        let key = format!("{}{}", self.keys.denials(), escape(&name));
        let control = self.keys.control();
        let there = self.etcd.get(&control).map_or(0, |kv| kv.mod_revision);
        if there == 0 {
            return;
        }
        self.note(|| format!("an operator denies n{node} as {name}"));
        let record = records::encode(&Denial { by: "operator".into(), ..Denial::default() });
        let txn = Txn::when([Compare::mod_revision(control, there)]).then([Op::put(
            key,
            record,
            self.keys.run_lease(),
        )]);
        let lease = self.nodes[node].machine.lease;
        if self.operate(&txn) && self.rng.chance(500) {
            if let Some(lease) = lease {
                self.etcd.revoke(lease);
            }
            self.written(None);
        }
    }

    pub fn allow_all(&mut self) {
        if self.denied.is_empty() {
            return;
        }
        self.note(|| "an operator empties the deny list".into());
        let txn = Txn::when([]).then([Op::delete_prefix(self.keys.denials())]);
        self.operate(&txn);
    }

    /// Keeps the deny list.
    pub fn denial_touched(&mut self, touched: &Touched) {
        let prefix = b"/sim/run_a/rdzv/head/denied/";
        if let Some(name) = touched.kv.key.strip_prefix(prefix).and_then(unescape) {
            if touched.deleted {
                self.denied.remove(&name);
            } else {
                self.denied.insert(name);
            }
        }
    }

    /// Whether one of the node's names is on the deny list.
    pub fn is_denied(&self, node: NodeIx) -> bool {
        if self.denied.is_empty() {
            return false;
        }
        let machine = &self.nodes[node].machine;
        let leases = machine.lease.into_iter().chain(machine.formers.clone());
        let mut names: Vec<String> = leases.map(|lease| format!("{lease:016x}")).collect();
        names.push(machine.settings.node.host.clone());
        names.extend(machine.settings.labels.node_id.clone());
        names.iter().any(|name| self.denied.contains(name))
    }

    /// The agent is started again in its place: after its end, or while it is still there.
    pub fn restart(&mut self, node: NodeIx, kill: bool) {
        if kill {
            self.crash(node);
        }
        let labels = self.nodes[node].machine.settings.labels.clone();
        let again = self.start_node_with(labels);
        self.note(|| format!("n{again} has the node_id of n{node}"));
    }

    /// For how many of these nodes a world has places.
    pub fn placeable(&self, nodes: &[NodeIx]) -> usize {
        let mut ids = std::collections::BTreeSet::new();
        let labels = |node: &NodeIx| &self.nodes[*node].machine.settings.labels;
        let counts = |node: &&NodeIx| {
            !self.is_denied(**node) && labels(node).node_id.clone().is_none_or(|id| ids.insert(id))
        };
        let nodes: Vec<NodeIx> = nodes.iter().filter(counts).copied().collect();
        let order = self.scenario.settings.order;
        order.placeable(nodes.iter().map(|node| labels(node).domain.as_deref()))
    }

    pub fn start_enough(&mut self) {
        while self.placeable(&self.live()) < self.scenario.settings.min {
            self.start_node();
        }
    }

    pub fn largest(&self) -> usize {
        self.scenario.settings.order.largest(self.scenario.settings.max)
    }

    pub fn has_segments(&self) -> bool {
        matches!(self.scenario.settings.order, RankOrder::Topology { segment: 2.. })
    }

    /// Takes part, or tries to.
    pub fn takes_part(&self, node: NodeIx) -> bool {
        let doing = &self.nodes[node].agent.doing;
        matches!(doing, Doing::Joining | Doing::Training { .. } | Doing::Stopping(_))
    }

    /// How long an agent may need to find out that it is not wanted.
    pub fn time_to_be_told(&self) -> Duration {
        self.scenario.poll + self.scenario.stop + Duration::from_secs(3)
    }
}
