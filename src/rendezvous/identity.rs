//! The `node_id`: a name that outlives the process. Who starts with a name that is taken takes it over and
//! gives its former holder's lease back, which may be a dead one's. Who has a name watches its key, and so
//! learns that it was replaced.

use super::keys::NodeId;
use super::machine::{Action, Machine, Observed, RendezvousError};
use super::records::NodeInfo;
use super::variants::Variant;
use crate::etcd::kv::{Compare, Event, KeyValue, Op};

/// How many of its former leases a node knows as its own.
const FORMERS: usize = 4;

#[derive(Default)]
pub(super) struct Identity {
    /// The key of this node's `node_id`, and its lease, which is the node that holds it.
    holder: Observed<(NodeInfo, NodeId)>,
    /// This node has held it: another holder has replaced it.
    held: bool,
    /// The holder that the transaction under way replaces.
    replaces: Option<NodeId>,
    /// The holder that this node has replaced.
    ousted: Option<NodeId>,
}

impl Machine {
    pub(super) fn holder_key(&self) -> Option<String> {
        let node_id = self.settings.labels.node_id.as_ref()?;
        Some(self.settings.keys.holder(node_id))
    }

    /// What is read of it with the head.
    pub(super) fn get_identity(&self) -> Option<Op> {
        self.holder_key().map(Op::get)
    }

    pub(super) fn holder_event(&mut self, event: &Event) {
        let kv = event.kv();
        let present = matches!(event, Event::Put(_));
        self.observe_holder(present.then_some(kv), kv.mod_revision);
    }

    pub(super) fn observe_holder(&mut self, kv: Option<&KeyValue>, as_of: i64) {
        // What no lease will remove is nobody's.
        let held = kv.filter(|kv| kv.lease != 0);
        let reader = self.reader();
        let value = held.map(|kv| (reader.record("", &kv.value).unwrap_or_default(), kv.lease));
        let own = value.as_ref().is_some_and(|(_, holder)| self.lease == Some(*holder));
        self.identity.holder.set(value, kv.map_or(0, |kv| kv.mod_revision), as_of);
        if own {
            // A copy of the request whose answer was lost has taken it.
            self.identity_taken();
        }
    }

    /// The guard of what this node puts under its lease: its `node_id` is as it knows it.
    pub(super) fn identity_unchanged(&self) -> Option<Compare> {
        if self.settings.wrong(Variant::FightsBack) {
            return None;
        }
        let key = self.holder_key()?;
        Some(Compare::mod_revision(key, self.identity.holder.modified))
    }

    /// Takes the `node_id`, if it is not this lease's already.
    pub(super) fn take_identity(&mut self, lease: NodeId) -> Vec<Op> {
        let Some(key) = self.holder_key() else { return Vec::new() };
        let holder = self.identity.holder.value.as_ref().map(|(_, holder)| *holder);
        if holder == Some(lease) {
            return Vec::new();
        }
        self.identity.replaces = holder.filter(|holder| !self.formers.contains(holder));
        vec![Op::put(key, self.encode(&self.settings.node), lease)]
    }

    /// The transaction with [`Machine::take_identity`] took effect at this revision.
    pub(super) fn identity_written(&mut self, revision: i64) {
        let Some(lease) = self.lease.filter(|_| self.settings.labels.node_id.is_some()) else {
            return;
        };
        let holds = self.identity.holder.value.as_ref().is_some_and(|(_, h)| *h == lease);
        if !holds {
            let holder = (self.settings.node.clone(), lease);
            self.identity.holder.set(Some(holder), revision, revision);
        }
        self.identity_taken();
    }

    /// It is this node's now. Only then is the other one's lease given back: at no time is the name free.
    fn identity_taken(&mut self) {
        self.identity.held = true;
        let replaced = self.identity.replaces.take();
        self.identity.ousted = replaced.or(self.identity.ousted);
        let run_lease = self.settings.keys.run_lease();
        if let Some(lease) = replaced.filter(|lease| *lease != run_lease)
            && self.lease != replaced
        {
            self.act(Action::Revoke(lease));
        }
    }

    /// This node's lease is gone or given back, and the key with it.
    pub(super) fn identity_gone(&mut self, lease: NodeId) {
        self.formers.push_back(lease);
        if self.formers.len() > FORMERS {
            self.formers.pop_front();
        }
        self.identity.replaces = None;
        if self.identity.holder.value.as_ref().is_some_and(|(_, holder)| *holder == lease) {
            self.identity.holder.forget();
        }
    }

    /// etcd's history has begun anew. Who has held the name does not take it from another one in this history
    /// either: else an agent that hangs, or was replaced, would come back and replace its successor.
    pub(super) fn identity_anew(&mut self) {
        let Identity { held, ousted, .. } = std::mem::take(&mut self.identity);
        self.identity = Identity { held, ousted, ..Identity::default() };
    }

    /// Another agent has this node's `node_id` now.
    pub(super) fn replaced(&self) -> Option<RendezvousError> {
        if !self.identity.held || self.settings.wrong(Variant::FightsBack) {
            return None;
        }
        // A backup may bring the one back that this node has replaced.
        let is_own = |node| self.lease == Some(node) || self.formers.contains(&node);
        let is_other = |node: &NodeId| !is_own(*node) && self.identity.ousted != Some(*node);
        let holder = self.identity.holder.value.as_ref().filter(|(_, node)| is_other(node));
        let by = holder.map(|(info, _)| info)?;
        let node_id = self.settings.labels.node_id.clone()?;
        let node = self.settings.node.clone();
        Some(RendezvousError::Replaced { node, node_id, by: by.clone() })
    }

    /// Whether a close has to look if this node was replaced meanwhile.
    pub(super) fn has_held_identity(&self) -> bool {
        self.identity.held
    }
}
