//! What clients of torch's `TCPStore` send, as values.

/// The number of a query on the wire, as torch 2.6 to 2.15 send it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Validate = 0,
    Set = 1,
    CompareSet = 2,
    Get = 3,
    Add = 4,
    Check = 5,
    Wait = 6,
    NumKeys = 7,
    DeleteKey = 8,
    Append = 9,
    MultiGet = 10,
    MultiSet = 11,
    CancelWait = 12,
    Ping = 13,
    QueuePush = 14,
    QueuePop = 15,
    QueueLen = 16,
    ListKeys = 17,
    Barrier = 18,
}

/// What follows the number of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Nothing,
    /// Four bytes that the client chose.
    Word,
    /// So many texts, each after its length.
    Texts(usize),
    TextAndNumber,
    /// A number, and as many groups of so many texts.
    Groups(usize),
}

impl Kind {
    const ALL: [Self; 19] = [
        Self::Validate,
        Self::Set,
        Self::CompareSet,
        Self::Get,
        Self::Add,
        Self::Check,
        Self::Wait,
        Self::NumKeys,
        Self::DeleteKey,
        Self::Append,
        Self::MultiGet,
        Self::MultiSet,
        Self::CancelWait,
        Self::Ping,
        Self::QueuePush,
        Self::QueuePop,
        Self::QueueLen,
        Self::ListKeys,
        Self::Barrier,
    ];

    pub fn of(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    pub fn shape(self) -> Shape {
        match self {
            Self::NumKeys | Self::ListKeys | Self::CancelWait => Shape::Nothing,
            Self::Validate | Self::Ping => Shape::Word,
            Self::Get | Self::DeleteKey | Self::QueuePop | Self::QueueLen => Shape::Texts(1),
            Self::Set | Self::Append | Self::QueuePush => Shape::Texts(2),
            Self::CompareSet => Shape::Texts(3),
            Self::Add | Self::Barrier => Shape::TextAndNumber,
            Self::Check | Self::Wait | Self::MultiGet => Shape::Groups(1),
            Self::MultiSet => Shape::Groups(2),
        }
    }
}

/// One query that has arrived as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub kind: Kind,
    pub word: [u8; 4],
    /// Keys and values, in the order in which they came.
    pub texts: Vec<Vec<u8>>,
    pub number: i64,
}

impl Query {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, word: [0; 4], texts: Vec::new(), number: 0 }
    }

    /// The texts of a query that has always `N` of them.
    pub(super) fn take<const N: usize>(self) -> [Vec<u8>; N] {
        let mut texts = self.texts.into_iter();
        std::array::from_fn(|_| texts.next().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_found_by_its_number() {
        for number in 0..=u8::MAX {
            assert_eq!(Kind::of(number).map(|kind| kind as u8), (number < 19).then_some(number));
        }
    }
}
