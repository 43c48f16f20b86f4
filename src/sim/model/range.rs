//! Which keys a range has.

/// Whether a key is in `[key, range_end)` as etcd reads it: no end is the one key, an end of one NUL
/// is the end of the key space.
pub fn in_range(key: &[u8], from: &[u8], range_end: Option<&[u8]>) -> bool {
    match range_end {
        None | Some([]) => key == from,
        Some([0]) => key >= from,
        Some(end) => key >= from && key < end,
    }
}
