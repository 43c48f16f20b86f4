//! One branch of a transaction as it is put together. Each operation whose answer is wanted gives a slot, which takes
//! that answer out of the branch's replies later: no code counts operations.

use std::marker::PhantomData;

use super::kv::{Op, OpReply, Range, RangeReply, Txn};

#[derive(Clone, Debug, Default)]
pub struct Branch {
    ops: Vec<Op>,
}

impl Branch {
    /// Adds an operation whose answer nobody needs.
    pub fn add(&mut self, op: Op) {
        self.ops.push(op);
    }

    pub fn get(&mut self, range: Range) -> Slot<RangeReply> {
        self.slot(Op::Get(range))
    }

    pub fn txn(&mut self, txn: Txn) -> Slot<Nested> {
        self.slot(Op::Txn(txn))
    }

    fn slot<A>(&mut self, op: Op) -> Slot<A> {
        let index = self.ops.len();
        self.ops.push(op);
        Slot { index, answer: PhantomData }
    }
}

impl From<Branch> for Vec<Op> {
    fn from(branch: Branch) -> Self {
        branch.ops
    }
}

/// Where the answer to one operation of a branch comes.
#[derive(Debug)]
pub struct Slot<A> {
    index: usize,
    answer: PhantomData<A>,
}

/// The answer to a transaction within a transaction.
#[derive(Debug, Default)]
pub struct Nested {
    pub succeeded: bool,
    pub replies: Vec<OpReply>,
}

impl Slot<RangeReply> {
    /// Empty where it was taken before, or where the branch was answered otherwise.
    pub fn take(&self, replies: &mut [OpReply]) -> RangeReply {
        match replies.get_mut(self.index) {
            Some(OpReply::Get(range)) => std::mem::take(range),
            _ => RangeReply::default(),
        }
    }
}

impl Slot<Nested> {
    /// As the one of a range.
    pub fn take(&self, replies: &mut [OpReply]) -> Nested {
        match replies.get_mut(self.index) {
            Some(OpReply::Txn { succeeded, replies }) => {
                Nested { succeeded: *succeeded, replies: std::mem::take(replies) }
            }
            _ => Nested::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_takes_its_own_answer_once() {
        let mut branch = Branch::default();
        branch.add(Op::put("k", "", 0));
        let one = branch.get(Range::key("one"));
        let nested = branch.txn(Txn::default());
        let two = branch.get(Range::key("two"));
        assert_eq!(Vec::from(branch).len(), 4);
        let range = |count| RangeReply { count, ..RangeReply::default() };
        let mut replies = vec![
            OpReply::Put,
            OpReply::Get(range(1)),
            OpReply::Txn { succeeded: true, replies: vec![OpReply::Put] },
            OpReply::Get(range(2)),
        ];
        assert_eq!(two.take(&mut replies), range(2));
        assert_eq!(one.take(&mut replies), range(1));
        assert_eq!(one.take(&mut replies), range(0));
        let Nested { succeeded, replies: inner } = nested.take(&mut replies);
        assert_eq!((succeeded, inner), (true, vec![OpReply::Put]));
        assert_eq!(two.take(&mut []), range(0));
    }
}
