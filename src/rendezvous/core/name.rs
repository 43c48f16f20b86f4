//! The `node_id`: a name that outlives the process. Whoever starts with a name that is taken takes it over and
//! gives its former holder's lease back, which may be a dead one's. Each that has a name watches its key, and so
//! learns that it was replaced.

use super::leases::Leases;
use super::out::Out;
use super::view::{Observed, View, reader};
use crate::etcd::kv::{Compare, KeyValue, Op};
use crate::rendezvous::api::{Action, RendezvousError, Settings};
use crate::rendezvous::keys::NodeId;
use crate::rendezvous::records::NodeInfo;
use crate::rendezvous::variant::Variant;

#[derive(Default)]
pub struct Name {
    /// The key of this node's `node_id`, and its lease, which is the node that holds it.
    holder: Observed<(NodeInfo, NodeId)>,
    /// This node has held it: another holder has replaced it.
    held: bool,
    /// The holder that the transaction under way replaces.
    replaces: Option<NodeId>,
    /// The holder that this node has replaced.
    ousted: Option<NodeId>,
}

fn key(settings: &Settings) -> Option<String> {
    settings.labels.node_id.as_ref().map(|node_id| settings.keys.holder(node_id))
}

impl Name {
    fn holder(&self) -> Option<NodeId> {
        self.holder.value.as_ref().map(|(_, holder)| *holder)
    }

    pub fn observe(
        &mut self,
        settings: &Settings,
        leases: &Leases,
        out: &mut Out,
        kv: Option<&KeyValue>,
        as_of: i64,
    ) {
        // What no lease will remove is nobody's.
        let held = kv.filter(|kv| kv.lease != 0);
        let reader = reader(settings);
        let value = held.map(|kv| (reader.record("", &kv.value).unwrap_or_default(), kv.lease));
        let own = value.as_ref().is_some_and(|(_, holder)| leases.own() == Some(*holder));
        self.holder.set(value, kv.map_or(0, |kv| kv.mod_revision), as_of);
        if own {
            // A copy of the request whose answer was lost has taken it.
            self.taken(settings, leases, out);
        }
    }

    /// The guard of what this node puts under its lease: its `node_id` is as it knows it.
    pub fn guard(&self, settings: &Settings) -> Option<Compare> {
        if settings.wrong(Variant::FightsBack) {
            return None;
        }
        Some(Compare::mod_revision(key(settings)?, self.holder.modified))
    }

    /// Takes the `node_id`, if it is not this lease's already.
    pub fn claim(
        &mut self,
        settings: &Settings,
        leases: &Leases,
        view: &View,
        lease: NodeId,
    ) -> Option<Op> {
        let key = key(settings)?;
        let holder = self.holder();
        if holder == Some(lease) {
            return None;
        }
        self.replaces = holder.filter(|holder| !leases.is_past(*holder));
        Some(Op::put(key, view.encode(settings, &settings.node), lease))
    }

    /// The transaction with [`Name::claim`] took effect at this revision.
    pub fn written(&mut self, settings: &Settings, leases: &Leases, out: &mut Out, revision: i64) {
        let Some(lease) = leases.own().filter(|_| settings.labels.node_id.is_some()) else {
            return;
        };
        if self.holder() != Some(lease) {
            self.holder.set(Some((settings.node.clone(), lease)), revision, revision);
        }
        self.taken(settings, leases, out);
    }

    /// It is this node's now. Only then is the other one's lease revoked: at no time is the name free.
    fn taken(&mut self, settings: &Settings, leases: &Leases, out: &mut Out) {
        self.held = true;
        let replaced = self.replaces.take();
        self.ousted = replaced.or(self.ousted);
        let run_lease = settings.keys.run_lease();
        if let Some(lease) = replaced.filter(|lease| *lease != run_lease)
            && leases.own() != replaced
        {
            out.act(Action::Revoke(lease));
        }
    }

    /// This node's lease is gone or revoked, and the key with it.
    pub fn lease_is_gone(&mut self, lease: NodeId) {
        self.replaces = None;
        if self.holder() == Some(lease) {
            self.holder.forget();
        }
    }

    /// etcd's history has restarted. Whoever has held the name does not take it from another one in this history
    /// either: else an agent that hangs, or was replaced, would come back and replace its successor.
    pub fn begin_anew(&mut self) {
        let Self { held, ousted, .. } = std::mem::take(self);
        *self = Self { held, ousted, ..Self::default() };
    }

    /// Another agent has this node's `node_id` now.
    pub fn replaced(&self, settings: &Settings, leases: &Leases) -> Option<RendezvousError> {
        if !self.held || settings.wrong(Variant::FightsBack) {
            return None;
        }
        // A backup may bring the one back that this node has replaced.
        let is_own = |node| leases.own() == Some(node) || leases.is_past(node);
        let is_other = |node: &NodeId| !is_own(*node) && self.ousted != Some(*node);
        let holder = self.holder.value.as_ref().filter(|(_, node)| is_other(node));
        let by = holder.map(|(info, _)| info)?;
        let node_id = settings.labels.node_id.clone()?;
        let node = settings.node.clone();
        Some(RendezvousError::Replaced { node, node_id, by: by.clone() })
    }

    /// Whether a close has to look if this node was replaced meanwhile.
    pub fn was_held(&self) -> bool {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::super::cx::Cx;
    use super::super::testing::{OTHER, OWN, cx};
    use super::*;
    use crate::rendezvous::records::encode;

    fn holder(cx: &mut Cx, node: NodeId, revision: i64) {
        let info = NodeInfo { host: "other".into(), pid: 2 };
        let kv = KeyValue {
            key: cx.settings.keys.holder("x").into(),
            value: encode(&info, 1),
            mod_revision: revision,
            lease: node,
            ..KeyValue::default()
        };
        let Cx { settings, leases, out, name, .. } = cx;
        name.observe(settings, leases, out, Some(&kv), revision);
    }

    fn named() -> Cx {
        let mut cx = cx();
        cx.settings.labels.node_id = Some("x".into());
        cx
    }

    #[test]
    fn a_name_is_taken_over_first_and_then_its_holders_lease_is_given_back() {
        let mut cx = named();
        holder(&mut cx, OTHER, 5);
        let Cx { settings, leases, out, view, name, .. } = &mut cx;
        assert!(name.claim(settings, leases, view, OWN).is_some());
        assert!(out.take().is_empty(), "it is not taken yet");
        name.written(settings, leases, out, 6);
        assert_eq!(out.take(), [Action::Revoke(OTHER)]);
        assert!(name.claim(settings, leases, view, OWN).is_none(), "it is this node's");
        assert!(cx.replaced().is_none());
    }

    #[test]
    fn whoever_has_held_a_name_is_replaced_by_another_holder() {
        let mut cx = named();
        holder(&mut cx, OTHER, 5);
        assert!(cx.replaced().is_none(), "it has not held the name");
        let Cx { settings, leases, out, view, name, .. } = &mut cx;
        name.claim(settings, leases, view, OWN);
        name.written(settings, leases, out, 6);
        holder(&mut cx, 99, 7);
        assert!(matches!(cx.replaced(), Some(RendezvousError::Replaced { .. })));
        // A backup has brought the one back that it had replaced.
        holder(&mut cx, OTHER, 8);
        assert!(cx.replaced().is_none());
    }
}
