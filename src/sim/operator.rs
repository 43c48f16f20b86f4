//! What people do to a run from outside, and agents that are started again: with guarded writes of their
//! own, as `torchetcd.aio` makes them.

use super::model::Touched;
use super::node::{Node, NodeIx};
use super::world::World;
use crate::etcd::kv::{Compare, Op, Txn};
use crate::rendezvous::keys::{escape, unescape};
use crate::rendezvous::records::Denial;
use crate::rendezvous::records::{self, Closed, Control, State};
use crate::rendezvous::reopen::{self, Opening};

impl World {
    /// `false` where the guard does not hold.
    fn operate(&mut self, txn: &Txn) -> bool {
        let done = !self.etcd_down && self.etcd.txn(txn).is_ok_and(|reply| reply.succeeded);
        self.written(None);
        done
    }

    /// The control record and its revision.
    fn read_control(&self) -> Option<(Control, i64)> {
        let revision = self.etcd.get(&self.keys.control())?.mod_revision;
        Some((self.control()?.clone(), revision))
    }

    /// A closed run is open again, in its next round.
    pub fn reopen(&mut self) {
        let Some((control, modified)) = self.read_control() else { return };
        let State::Closed(_) = control.state else { return };
        self.note(|| format!("an operator reopens the run as round {}", control.round + 1));
        let opening = Opening { by: "operator".into(), at: 1, why: "test".into() };
        let if_members_gone = self.rng.chance(200);
        let again = reopen::from_outside(&self.keys, &control, modified, opening, if_members_gone);
        let txn = Txn::when(again.guards).then(again.writes);
        self.checks.history.reopening = true;
        if self.operate(&txn) {
            self.checks.closed = None;
        }
        self.checks.history.reopening = false;
    }

    pub fn close_by_operator(&mut self) {
        let Some((control, revision)) = self.read_control() else { return };
        if matches!(control.state, State::Closed(_)) {
            return;
        }
        self.note(|| "an operator closes the run".into());
        let (by, reason) = ("operator".into(), "test".into());
        let closed = Closed { by, reason, at: 1, last: control.last(), ended: None };
        let closed = control.then(control.round, State::Closed(closed));
        let record = records::encode(&closed, closed.version);
        let key = self.keys.control();
        let put = Op::put(key.clone(), record, self.keys.run_lease());
        self.operate(&Txn::when([Compare::mod_revision(key, revision)]).then([put]));
    }

    /// `etcdctl del --prefix` of the whole run, or a purge, which takes the leases as well.
    pub fn delete_all(&mut self) {
        if self.etcd_down {
            return;
        }
        let purge = self.rng.chance(300);
        self.note(|| format!("an operator deletes all keys of the run, purge: {purge}"));
        if purge {
            let leases: Vec<i64> = self.nodes.iter().filter_map(Node::lease).collect();
            for lease in leases {
                self.etcd.revoke(lease);
            }
        }
        self.operate(&Txn::when([]).then([Op::delete_prefix("/sim/run_a/")]));
        if purge {
            self.etcd.revoke(self.keys.run_lease());
            self.written(None);
        }
    }

    /// Takes the lease of a node without denying it.
    pub fn evict(&mut self, node: NodeIx) {
        if let Some(lease) = self.nodes[node].lease().filter(|_| !self.etcd_down) {
            self.note(|| format!("an operator evicts n{node}"));
            self.nodes[node].disturbed = self.now;
            self.etcd.revoke(lease);
            self.written(None);
        }
    }

    /// Puts a node on the deny list by one of its names, and maybe takes its lease.
    pub fn deny(&mut self, node: NodeIx) {
        let settings = self.nodes[node].settings();
        let mut names = vec![settings.node.host.clone()];
        names.extend(settings.labels.node_id.clone());
        names.extend(self.nodes[node].lease().map(|lease| format!("{lease:016x}")));
        let name = names.swap_remove(self.rng.below(names.len()));
        let key = format!("{}{}", self.keys.denials(), escape(&name));
        let control = self.keys.control();
        let there = self.etcd.get(&control).map_or(0, |kv| kv.mod_revision);
        if there == 0 {
            return;
        }
        self.note(|| format!("an operator denies n{node} as {name}"));
        let version = self.control().map_or(1, |control| control.version);
        let denial = Denial { by: "operator".into(), ..Denial::default() };
        let record = records::encode(&denial, version);
        let txn = Txn::when([Compare::mod_revision(control, there)]).then([Op::put(
            key,
            record,
            self.keys.run_lease(),
        )]);
        let lease = self.nodes[node].lease();
        if self.operate(&txn) && self.rng.chance(500) {
            if let Some(lease) = lease {
                self.nodes[node].disturbed = self.now;
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
        let node = &self.nodes[node];
        let leases = node.lease().into_iter().chain(node.formers());
        let mut names: Vec<String> = leases.map(|lease| format!("{lease:016x}")).collect();
        names.push(node.settings().node.host.clone());
        names.extend(node.settings().labels.node_id.clone());
        names.iter().any(|name| self.denied.contains(name))
    }

    /// The agent is started again in its place: after its end, or while it is still there.
    pub fn kill_and_restart(&mut self, node: NodeIx) {
        self.crash(node);
        self.double(node);
    }

    pub fn double(&mut self, node: NodeIx) {
        let again = self.restart(node);
        self.note(|| format!("n{again} has the node_id of n{node}"));
    }

    pub fn restart(&mut self, node: NodeIx) -> NodeIx {
        let settings = self.nodes[node].settings().clone();
        self.start_as(settings)
    }
}
