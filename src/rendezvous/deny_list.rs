//! The deny list: names of nodes that an operator does not want in the run. It lies below the head, so
//! that everybody reads and watches it without another call.

use std::collections::BTreeMap;

use super::keys::{self, NodeId};
use super::records::{Denial, Labels, NodeInfo, Reader};
use crate::etcd::kv::{Event, KeyValue};

/// No name of a node is longer; what is there beyond it is nobody's.
const LONGEST_NAME: usize = 1024;

/// The names that are denied.
#[derive(Clone, Debug, Default)]
pub struct DenyList {
    names: BTreeMap<String, Denial>,
    /// The revision at which all of them were read.
    as_of: i64,
    /// The names that were written or deleted after it: what is read at an earlier revision, and comes late,
    /// says nothing of these.
    since: BTreeMap<String, i64>,
    /// How often it has changed.
    pub changes: u64,
}

impl DenyList {
    pub fn read(&mut self, reader: Reader, prefix: &str, kvs: &[KeyValue], as_of: i64) {
        if as_of < self.as_of {
            return;
        }
        self.as_of = as_of;
        self.since.retain(|_, revision| *revision > as_of);
        let is_older = |name: &String| !self.since.contains_key(name);
        let read = kvs.iter().filter_map(|kv| denial(reader, prefix, kv));
        let mut names: BTreeMap<String, Denial> = read.filter(|(name, _)| is_older(name)).collect();
        let newer = self.names.iter().filter(|(name, _)| !is_older(name));
        names.extend(newer.map(|(name, denial)| (name.clone(), denial.clone())));
        if names != self.names {
            self.names = names;
            self.changes += 1;
        }
    }

    pub fn take(&mut self, reader: Reader, prefix: &str, event: &Event) {
        let kv = event.kv();
        let Some(name) = name_of(prefix, kv) else { return };
        let known = self.since.get(&name).copied().unwrap_or(self.as_of);
        if kv.mod_revision < known {
            return;
        }
        self.changes += 1;
        self.names.remove(&name);
        if let Event::Put(kv) = event {
            self.names.extend(denial(reader, prefix, kv));
        }
        self.since.insert(name, kv.mod_revision);
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether this node may not take part: by its own name, by that of its host, or by its node id.
    pub fn has(&self, node: NodeId, info: &NodeInfo, labels: &Labels) -> bool {
        !self.is_empty() && self.of(&[node], info, labels).is_some()
    }

    pub fn of(
        &self,
        nodes: &[NodeId],
        info: &NodeInfo,
        labels: &Labels,
    ) -> Option<(&'static str, String, &Denial)> {
        let ids = nodes.iter().map(|node| ("the node", format!("{node:016x}")));
        let host = ("its host", info.host.clone());
        let node_id = labels.node_id.clone().map(|node_id| ("its node_id", node_id));
        let mut names = [host].into_iter().chain(node_id).chain(ids);
        names.find_map(|(what, name)| {
            let denial = self.names.get(&name)?;
            Some((what, name, denial))
        })
    }
}

fn name_of(prefix: &str, kv: &KeyValue) -> Option<String> {
    let segment = kv.key.strip_prefix(prefix.as_bytes())?;
    keys::unescape(segment).filter(|name| name.len() <= LONGEST_NAME)
}

/// What cannot be read denies nobody.
fn denial(reader: Reader, prefix: &str, kv: &KeyValue) -> Option<(String, Denial)> {
    Some((name_of(prefix, kv)?, reader.record("", &kv.value).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const READER: Reader = Reader { newest: 1 };
    const PREFIX: &str = "/p/denied/";

    fn kv(name: &str, value: &str, mod_revision: i64) -> KeyValue {
        let key = format!("{PREFIX}{name}").into();
        KeyValue { key, value: value.into(), mod_revision, ..KeyValue::default() }
    }

    fn has(denied: &DenyList, host: &str, node_id: Option<&str>, node: NodeId) -> bool {
        let info = NodeInfo { host: host.into(), pid: 1 };
        let labels = Labels { node_id: node_id.map(String::from), ..Labels::default() };
        denied.has(node, &info, &labels)
    }

    #[test]
    fn a_node_is_denied_by_each_of_its_names() {
        let mut denied = DenyList::default();
        let list = [kv("a%2Fb", "{}", 1), kv("00000000000000ff", r#"{"by":"x"}"#, 2)];
        denied.read(READER, PREFIX, &list, 5);
        assert!(has(&denied, "a/b", None, 1));
        assert!(has(&denied, "c", Some("a/b"), 1));
        assert!(has(&denied, "c", None, 0xff));
        assert!(!has(&denied, "a", Some("b"), 0xfe));
    }

    /// A read and the events of a watch come by different ways.
    #[test]
    fn what_was_read_before_an_event_and_comes_after_it_still_counts_for_other_names() {
        let mut denied = DenyList::default();
        denied.take(READER, PREFIX, &Event::Put(kv("b", "{}", 7)));
        denied.take(READER, PREFIX, &Event::Delete(kv("c", "", 8)));
        denied.read(READER, PREFIX, &[kv("a", "{}", 2), kv("c", "{}", 3)], 6);
        assert!(has(&denied, "a", None, 1) && has(&denied, "b", None, 1));
        assert!(!has(&denied, "c", None, 1));
        denied.read(READER, PREFIX, &[kv("a", "{}", 2)], 9);
        assert!(has(&denied, "a", None, 1) && !has(&denied, "b", None, 1));
    }

    #[test]
    fn the_newest_counts_and_what_cannot_be_read_denies_nobody() {
        let mut denied = DenyList::default();
        denied.take(READER, PREFIX, &Event::Put(kv("a", "{}", 7)));
        assert!(has(&denied, "a", None, 1));
        denied.read(READER, PREFIX, &[], 6);
        assert!(has(&denied, "a", None, 1), "what was read is older");
        denied.take(READER, PREFIX, &Event::Delete(kv("a", "", 8)));
        assert!(!has(&denied, "a", None, 1));
        denied.take(READER, PREFIX, &Event::Put(kv("a", "{}", 7)));
        assert!(!has(&denied, "a", None, 1), "the event is older");
        denied.read(READER, PREFIX, &[kv("a", "no", 9), kv("%", "{}", 9)], 9);
        assert!(denied.is_empty());
    }
}
