//! What a record leaves out where it is not told.

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub fn is_unknown(at: &u64) -> bool {
    *at == 0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub fn is_none(number: &u32) -> bool {
    *number == 0
}
