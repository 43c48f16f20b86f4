//! What a node knows of the run: the keys below the head, each as of a revision.

use std::collections::BTreeMap;

use crate::etcd::kv::{Event, KeyValue, TxnReply};
use crate::rendezvous::api::Settings;
use crate::rendezvous::deny_list::DenyList;
use crate::rendezvous::keys::{NodeId, RoundId};
use crate::rendezvous::records::{
    self, Closed, Control, Coordinator, Final, Loss, Previous, Reader, State, UnreadableRecord,
    Usher,
};
use crate::rendezvous::variant::Variant;

/// A value as of a revision: an older observation never replaces a newer one.
#[derive(Clone, Debug)]
pub struct Observed<T> {
    pub value: Option<T>,
    /// The revision at which `value` was last written; 0 when there is none.
    pub modified: i64,
    as_of: i64,
}

impl<T> Default for Observed<T> {
    fn default() -> Self {
        Self { value: None, modified: 0, as_of: 0 }
    }
}

impl<T> Observed<T> {
    pub fn set(&mut self, value: Option<T>, modified: i64, as_of: i64) {
        if as_of >= self.as_of {
            *self = Self { value, modified, as_of };
        }
    }

    /// It is gone, as far as can be known without asking.
    pub fn forget(&mut self) {
        (self.value, self.modified) = (None, 0);
    }

    pub fn as_of(&self) -> i64 {
        self.as_of
    }

    fn is_newer_than(&self, as_of: i64) -> bool {
        self.as_of > as_of
    }
}

/// What has changed in the view since the machine has looked last.
#[allow(clippy::struct_excessive_bools, reason = "each is about something else")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Another run of this name is there, or none.
    pub another_run: bool,
    /// The control record was seen, and whether it is another one than before.
    pub control_seen: bool,
    pub control: bool,
    /// There is a coordinator, there is an usher.
    pub coordinator: bool,
    pub usher: bool,
}

/// What the control record says.
#[derive(Clone, Copy, Debug)]
pub enum Phase<'a> {
    /// There is none.
    Absent,
    Open(OpenRound<'a>),
    Complete(u64, &'a Final),
    Closed(&'a Closed),
}

/// A round that nodes join.
#[derive(Clone, Copy, Debug)]
pub struct OpenRound<'a> {
    pub round: u64,
    pub previous: Option<&'a Previous>,
    pub by: &'a str,
    pub at: u64,
    pub why: &'a str,
}

#[derive(Default)]
pub struct View {
    pub control: Observed<Control>,
    pub coordinator: Observed<(Coordinator, NodeId)>,
    pub loss: Observed<Loss>,
    pub usher: Observed<(Usher, NodeId)>,
    pub denied: DenyList,
    /// How many nodes share the wish for a key that is missing, as was told last.
    pub crowd: usize,
    /// The revision at which the control record was created: another one is another run of the same name.
    incarnation: i64,
    /// The records of the head that this node needs and cannot read, by key.
    unreadable: BTreeMap<&'static str, UnreadableRecord>,
    news: News,
}

impl View {
    pub fn phase(&self) -> Phase<'_> {
        let Some(control) = &self.control.value else { return Phase::Absent };
        match &control.state {
            State::Open { previous, by, at, why } => Phase::Open(OpenRound {
                round: control.round,
                previous: previous.as_ref(),
                by,
                at: *at,
                why,
            }),
            State::Final(complete) => Phase::Complete(control.round, complete),
            State::Closed(closed) => Phase::Closed(closed),
        }
    }

    pub fn round(&self) -> u64 {
        self.control.value.as_ref().map_or(0, |control| control.round)
    }

    /// How often the run has been reopened, as far as is known.
    pub fn reopened(&self) -> u32 {
        self.control.value.as_ref().map_or(0, |control| control.reopened)
    }

    /// The completed round that is current.
    pub fn current(&self) -> Option<RoundId> {
        self.control.value.as_ref().and_then(Control::current)
    }

    /// The round of this number, if it is complete and current.
    pub fn complete(&self, round: u64) -> Option<&Final> {
        match self.phase() {
            Phase::Complete(current, complete) if current == round => Some(complete),
            _ => None,
        }
    }

    pub fn closed(&self) -> Option<&Closed> {
        match self.phase() {
            Phase::Closed(closed) => Some(closed),
            _ => None,
        }
    }

    pub fn is_closed(&self) -> bool {
        self.closed().is_some()
    }

    pub fn loss_of(&self, id: &RoundId) -> Option<&Loss> {
        self.loss.value.as_ref().filter(|loss| loss.is_of(id))
    }

    /// What the usher reports about this round, and which node it is.
    pub fn usher_of(&self, id: &RoundId) -> Option<(u32, NodeId)> {
        let told = self.usher.value.as_ref().filter(|(told, _)| told.id == *id);
        told.map(|(told, holder)| (told.count, *holder))
    }

    pub fn coordinator_node(&self) -> Option<NodeId> {
        self.coordinator.value.as_ref().map(|(_, node)| *node)
    }

    pub fn is_of_this_run(&self, revision: i64) -> bool {
        revision >= self.incarnation
    }

    /// What cannot be read and must not be passed over.
    pub fn unreadable(&self) -> Option<&UnreadableRecord> {
        self.unreadable.values().next()
    }

    /// A record that this node cannot read because it is of a version that it does not know.
    pub fn another_version(&self) -> Option<&UnreadableRecord> {
        self.unreadable.values().find(|error| error.is_of_another_version())
    }

    /// A version that this node does not know has restarted the run.
    pub fn is_led_by_another_version(&self) -> bool {
        self.unreadable.get("control").is_some_and(UnreadableRecord::is_of_another_version)
    }

    /// A record of this run, as its version has it.
    pub fn encode<T: serde::Serialize>(&self, settings: &Settings, record: &T) -> Vec<u8> {
        let version = self.control.value.as_ref().map(|control| control.version);
        records::encode(record, version.unwrap_or(settings.version))
    }

    /// What is known is of a lost history.
    pub fn begin_anew(&mut self) {
        *self = Self { crowd: self.crowd, ..Self::default() };
    }

    pub fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    /// Takes over what `txns::get_head` has read.
    pub fn head_read(&mut self, settings: &Settings, reply: &TxnReply) {
        self.observe_control(settings, reply.range(0).kvs.first(), reply.revision);
        self.observe_coordinator(settings, reply.range(1).kvs.first(), reply.revision);
        self.observe_loss(settings, reply.range(2).kvs.first(), reply.revision);
        let denials = settings.keys.denials();
        self.denied.read(reader(settings), &denials, &reply.range(3).kvs, reply.revision);
        self.observe_usher(settings, reply.range(4).kvs.first(), reply.revision);
    }

    pub fn head_event(&mut self, settings: &Settings, event: &Event) {
        let (kv, keys) = (event.kv(), &settings.keys);
        let denials = keys.denials();
        if kv.key.starts_with(denials.as_bytes()) {
            return self.denied.take(reader(settings), &denials, event);
        }
        let there = matches!(event, Event::Put(_)).then_some(kv);
        if kv.key == keys.control().as_bytes() {
            self.observe_control(settings, there, kv.mod_revision);
        } else if kv.key == keys.coordinator().as_bytes() {
            self.observe_coordinator(settings, there, kv.mod_revision);
        } else if kv.key == keys.loss().as_bytes() {
            self.observe_loss(settings, there, kv.mod_revision);
        } else if kv.key == keys.usher().as_bytes() {
            self.observe_usher(settings, there, kv.mod_revision);
        }
    }

    pub fn observe_control(&mut self, settings: &Settings, kv: Option<&KeyValue>, as_of: i64) {
        if self.control.is_newer_than(as_of) {
            return;
        }
        let (created, modified) = kv.map_or((0, 0), |kv| (kv.create_revision, kv.mod_revision));
        let key = settings.keys.control();
        match kv.map(|kv| reader(settings).control(&key, &kv.value)).transpose() {
            Ok(control) => {
                self.unreadable.remove("control");
                self.news.another_run |= created != self.incarnation;
                self.incarnation = created;
                self.news.control_seen = true;
                self.news.control |= self.control.modified != modified;
                self.control.set(control, modified, as_of);
            }
            // A world that is training goes on.
            Err(error) => drop(self.unreadable.insert("control", error)),
        }
    }

    pub fn observe_coordinator(&mut self, settings: &Settings, kv: Option<&KeyValue>, as_of: i64) {
        if self.coordinator.is_newer_than(as_of) {
            return;
        }
        let key = settings.keys.coordinator();
        // A record that cannot be read, or that no lease will remove, is no coordinator's: the next claim
        // replaces it.
        let held = kv.filter(|kv| kv.lease != 0);
        let record = held.map(|kv| reader(settings).record(&key, &kv.value));
        let value = self.readable(settings, "coordinator", record);
        let value: Option<(Coordinator, NodeId)> = value.zip(held.map(|kv| kv.lease));
        self.coordinator.set(value, kv.map_or(0, |kv| kv.mod_revision), as_of);
        if let Some((told, _)) = &self.coordinator.value {
            self.crowd = told.joined as usize;
            self.news.coordinator = true;
        }
    }

    fn observe_loss(&mut self, settings: &Settings, kv: Option<&KeyValue>, as_of: i64) {
        if self.loss.is_newer_than(as_of) {
            return;
        }
        let key = settings.keys.loss();
        // A record that cannot be read is none, and is replaced by the next.
        let record = kv.map(|kv| reader(settings).record(&key, &kv.value));
        let value = self.readable(settings, "loss", record);
        self.loss.set(value, kv.map_or(0, |kv| kv.mod_revision), as_of);
    }

    pub fn observe_usher(&mut self, settings: &Settings, kv: Option<&KeyValue>, as_of: i64) {
        if self.usher.is_newer_than(as_of) {
            return;
        }
        let key = settings.keys.usher();
        let held = kv.filter(|kv| kv.lease != 0);
        let record = held.map(|kv| reader(settings).record(&key, &kv.value));
        let value = self.readable(settings, "usher", record);
        let value: Option<(Usher, NodeId)> = value.zip(held.map(|kv| kv.lease));
        self.usher.set(value, kv.map_or(0, |kv| kv.mod_revision), as_of);
        self.news.usher |= self.usher.value.is_some();
    }

    /// What a record of the head that cannot be read means: that of a version that this node does not know
    /// must not be passed over, garbage is.
    fn readable<T>(
        &mut self,
        settings: &Settings,
        name: &'static str,
        record: Option<Result<T, UnreadableRecord>>,
    ) -> Option<T> {
        self.unreadable.remove(name);
        match record? {
            Ok(record) => Some(record),
            Err(error) => {
                let newer = error.is_of_another_version();
                if newer && !settings.wrong(Variant::TakesNewerRecords) {
                    self.unreadable.insert(name, error);
                }
                None
            }
        }
    }

    /// This node has written the record, at this revision.
    pub fn control_written(&mut self, control: Control, revision: i64) {
        if self.control.value.is_none() {
            self.incarnation = revision;
        }
        self.control.set(Some(control), revision, revision);
    }
}

pub fn reader(settings: &Settings) -> Reader {
    Reader { newest: settings.version }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{cx, open, sees};
    use super::*;

    fn control(cx: &super::super::cx::Cx, value: &str, created: i64, modified: i64) -> KeyValue {
        KeyValue {
            key: cx.settings.keys.control().into(),
            value: value.into(),
            create_revision: created,
            mod_revision: modified,
            ..KeyValue::default()
        }
    }

    #[test]
    fn an_older_observation_replaces_no_newer_one() {
        let mut cx = cx();
        sees(&mut cx, 4, open(None), 9);
        cx.view.observe_control(&cx.settings, None, 8);
        assert_eq!(cx.view.round(), 4);
        cx.view.observe_control(&cx.settings, None, 10);
        assert!(matches!(cx.view.phase(), Phase::Absent));
    }

    #[test]
    fn a_record_that_was_created_anew_is_another_run() {
        let mut cx = cx();
        sees(&mut cx, 4, open(None), 9);
        let value = r#"{"v":1,"round":1,"state":"open","previous":null,"by":"a"}"#;
        let kv = control(&cx, value, 12, 12);
        cx.view.observe_control(&cx.settings, Some(&kv), 12);
        let news = cx.view.take_news();
        assert!(news.another_run && news.control);
        assert!(!cx.view.is_of_this_run(11));
        assert_eq!(cx.view.take_news(), News::default());
    }

    /// A world that is training goes on.
    #[test]
    fn what_cannot_be_read_is_named_and_what_was_known_stays() {
        let mut cx = cx();
        sees(&mut cx, 4, open(None), 9);
        let kv = control(&cx, r#"{"v":2}"#, 2, 10);
        cx.view.observe_control(&cx.settings, Some(&kv), 10);
        assert_eq!(cx.view.round(), 4);
        assert!(cx.view.is_led_by_another_version() && cx.view.another_version().is_some());
        let kv = control(&cx, "garbage", 2, 11);
        cx.view.observe_control(&cx.settings, Some(&kv), 11);
        assert!(cx.view.unreadable().is_some() && cx.view.another_version().is_none());
    }
}
