//! How a closed run is opened again: by an operator, or by a node that comes to it when all have gone.

use super::keys::Keys;
use super::records::{self, Control, State};
use crate::etcd::kv::{Compare, Op};

/// By whom it is reopened, when (Unix time in seconds) and why.
pub struct Opening {
    pub by: String,
    pub at: u64,
    pub why: String,
}

/// What a transaction must check and write.
pub struct Reopening {
    /// The record that it writes.
    pub control: Control,
    pub guards: Vec<Compare>,
    pub writes: Vec<Op>,
}

/// The next round of a run that was closed by this record, which has this revision. It follows the last
/// round that was completed, so ranks are kept. Of two that reopen one close only the first one does.
///
/// With `if_members_gone` not while a member of the last world is there.
pub fn reopening(
    keys: &Keys,
    closed: &Control,
    modified: i64,
    opening: Opening,
    if_members_gone: bool,
) -> Reopening {
    let Opening { by, at, why } = opening;
    let round = closed.round + 1;
    let last = closed.last();
    let mut guards = vec![Compare::mod_revision(keys.control(), modified)];
    if if_members_gone && let Some(last) = &last {
        guards.push(Compare::none_below(keys.members(&last.id)));
    }
    let mut control = closed.then(round, State::Open { previous: last, by, at, why });
    control.reopened = control.reopened.saturating_add(1);
    let record = records::encode(&control, control.version);
    let writes = vec![
        Op::put(keys.control(), record, keys.run_lease()),
        Op::delete(keys.loss()),
        Op::delete(keys.usher()),
        // What an earlier round of this number has left would be taken for the new one's.
        Op::delete(keys.last_call(round)),
        Op::delete_prefix(keys.round_data(round)),
    ];
    Reopening { control, guards, writes }
}

/// The same from outside: the first node that joins coordinates.
pub fn from_outside(
    keys: &Keys,
    closed: &Control,
    modified: i64,
    opening: Opening,
    if_members_gone: bool,
) -> Reopening {
    let mut again = reopening(keys, closed, modified, opening, if_members_gone);
    again.writes.push(Op::delete(keys.coordinator()));
    again
}
