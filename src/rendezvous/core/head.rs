//! The watch of the head, and of this node's `node_id`. It begins now, and only then is the head read: etcd
//! serves a watch that begins in the past (which any revision is, while others join) late.

use super::out::{Out, Slot};

use crate::etcd::WatchSpec;
use crate::etcd::kv::{Op, Range, Txn};
use crate::rendezvous::api::{Settings, Time, WatchId};

/// The call that reads the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading;

#[derive(Default)]
pub struct Head {
    watch: Option<HeadWatch>,
    /// The watch has ended, and what was missed since has not been read yet.
    deaf: bool,
    pub slot: Slot<Reading>,
}

#[derive(Clone, Copy, Debug)]
struct HeadWatch {
    watch: WatchId,
    /// It shows what is written after this revision. Not known before etcd has said so.
    from: Option<i64>,
    /// The revision at which the head was read last; 0 when it was not.
    read: i64,
    /// The watch of this node's `node_id`, if it has one, and from where on it shows what is written.
    name: Option<(WatchId, Option<i64>)>,
}

impl HeadWatch {
    /// The revision that a reading must have; `None` before etcd has said where the watches begin.
    fn wanted(&self) -> Option<i64> {
        let name = self.name.map_or(Some(0), |(_, from)| from)?;
        Some(self.from?.max(name))
    }

    fn is_known(&self) -> bool {
        self.wanted().is_some_and(|wanted| self.read >= wanted)
    }
}

/// Which of the two watches it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    Head,
    Name,
}

impl Head {
    pub fn is_known(&self) -> bool {
        self.watch.is_some_and(|watch| watch.is_known())
    }

    pub fn is_deaf(&self) -> bool {
        self.deaf
    }

    /// The watch, where all existing keys have been read.
    #[cfg(test)]
    pub fn known_watch(&self) -> Option<WatchId> {
        self.watch.filter(HeadWatch::is_known).map(|head| head.watch)
    }

    pub fn which(&self, watch: WatchId) -> Option<Watched> {
        let head = self.watch?;
        if head.watch == watch {
            return Some(Watched::Head);
        }
        head.name.is_some_and(|(name, _)| name == watch).then_some(Watched::Name)
    }

    pub fn begin(&mut self, settings: &Settings, out: &mut Out) {
        if self.watch.is_none() {
            let watch = out.watch_prefix(settings.keys.head(), false);
            let name = settings.labels.node_id.as_ref().map(|node_id| {
                let key = settings.keys.holder(node_id).into();
                (out.watch(WatchSpec { key, ..WatchSpec::default() }), None)
            });
            self.watch = Some(HeadWatch { watch, from: None, read: 0, name });
        }
    }

    pub fn started(&mut self, watch: WatchId, revision: i64) {
        let Some(head) = &mut self.watch else { return };
        match &mut head.name {
            Some((name, from)) if *name == watch => *from = Some(revision),
            _ => head.from = Some(revision),
        }
    }

    pub fn ensure(
        &mut self,
        settings: &Settings,
        out: &mut Out,
        deadline: Time,
        early: bool,
    ) -> bool {
        if self.is_known() {
            self.deaf = false;
            return true;
        }
        self.begin(settings, out);
        let is_due = |head: HeadWatch| match head.wanted() {
            Some(wanted) => head.read < wanted,
            None => early && head.read == 0,
        };
        if self.watch.is_some_and(is_due) {
            self.read(settings, out, deadline);
        }
        false
    }

    pub fn read(&mut self, settings: &Settings, out: &mut Out, deadline: Time) {
        let txn = Txn::when([]).then(reads(settings));
        out.txn(&mut self.slot, Reading, txn, deadline);
    }

    pub fn was_read(&mut self, revision: i64) {
        if let Some(head) = &mut self.watch {
            head.read = revision;
        }
    }

    /// What is missed from now on will be in what is read then.
    pub fn forget(&mut self, out: &mut Out) {
        let head = self.watch.take();
        out.unwatch(head.map(|head| head.watch));
        out.unwatch(head.and_then(|head| head.name).map(|(name, _)| name));
        self.deaf = true;
    }
}

/// What [`super::view::View::head_read`] takes over, and last the holder of this node's `node_id`.
pub fn reads(settings: &Settings) -> Vec<Op> {
    let keys = &settings.keys;
    let mut reads = vec![
        Op::get(keys.control()),
        Op::get(keys.coordinator()),
        Op::get(keys.loss()),
        Op::Get(Range::prefix(keys.denials())),
        Op::get(keys.usher()),
    ];
    reads.extend(settings.labels.node_id.as_ref().map(|node_id| Op::get(keys.holder(node_id))));
    reads
}
