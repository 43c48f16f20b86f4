//! How nodes are told apart.

/// Which node of the world: never used again for another one.
pub type NodeIx = usize;
