//! Reading what lies in a range, page by page at one revision, while watches that began before show what comes.

use crate::etcd::kv::{Event, Op, Range, RangeReply, prefix_end};
use crate::rendezvous::api::Settings;

#[derive(Default)]
pub struct Pages {
    done: bool,
    revision: i64,
    from: Option<Vec<u8>>,
}

impl Pages {
    pub fn is_done(&self) -> bool {
        self.done
    }

    pub fn is_first(&self) -> bool {
        self.from.is_none()
    }

    /// All later pages are read as of this revision.
    pub fn begins_at(&mut self, revision: i64) {
        self.revision = revision;
    }

    pub fn next(&self, settings: &Settings, prefix: &str) -> Op {
        Op::Get(Range {
            key: self.from.clone().unwrap_or_else(|| prefix.into()),
            range_end: Some(prefix_end(prefix.as_bytes())),
            limit: settings.tuning.join_page,
            revision: self.revision,
            ..Range::default()
        })
    }

    /// `true` where it was the last one.
    pub fn has_read(&mut self, page: &RangeReply) -> bool {
        self.done = !page.more;
        let next = page.kvs.last().map(|kv| [&kv.key[..], &[0]].concat());
        self.from = next.filter(|_| page.more);
        self.done
    }

    /// Whether an event of the watches is older than what was read.
    pub fn knows(&self, event: &Event) -> bool {
        event.kv().mod_revision <= self.revision
    }
}
