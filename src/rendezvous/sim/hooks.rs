//! What the simulator changes in the protocol itself: smaller pages, so that small worlds have several of
//! them, and wrong variants that it must catch. Set for the thread, since a simulation has only one.

use std::cell::Cell;

use crate::rendezvous::records::Reader;
use crate::rendezvous::variants::Variant;

/// The simulator itself reads everything.
pub const READER: Reader = Reader { newest: u32::MAX };

#[derive(Clone, Copy, Debug, Default)]
pub struct Hooks {
    pub variant: Option<Variant>,
    pub members_per_txn: Option<usize>,
    pub page: Option<i64>,
}

thread_local! {
    static HOOKS: Cell<Hooks> = const { Cell::new(Hooks { variant: None, members_per_txn: None, page: None }) };
}

pub fn set(hooks: Hooks) {
    HOOKS.set(hooks);
}

pub fn get() -> Hooks {
    HOOKS.get()
}
