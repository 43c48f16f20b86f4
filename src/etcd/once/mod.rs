//! Transactions that take effect exactly once although answers get lost.
//!
//! Where a transaction writes it also writes a *receipt*, whose version each of its branches expects: `n`
//! before, `n + 1` after. Sent again, it either finds the receipt at `n` (it had no effect: now it has) or at
//! `n + 1` (it had, at the receipt's revision). A late copy of the first request finds `n + 1` and does
//! nothing. etcd's own history then tells what the transaction read and left at that revision.
//!
//! A branch that writes nothing leaves the receipt alone, so that it makes no revision. After a lost answer
//! that is not enough: a copy that comes late could take another branch. So what is sent then writes the
//! receipt in every branch. The receipt's value names the transaction, and says whether it did anything else.
//! So a receipt can be used again although nobody knows what became of its last transaction.

mod receipt;
mod write;

pub use write::{OnceOutcome, OnceTxns};
