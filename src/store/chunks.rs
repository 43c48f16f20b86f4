//! Requests within etcd's limits.

/// etcd takes 128 operations in a transaction, less what encloses it.
pub(super) const MAX_OPS: usize = 120;
/// etcd takes requests of 1.5 MiB; what a receipt, leases and framing add stays below the rest.
pub(super) const MAX_BYTES: usize = 1536 * 1024 - 4096;
/// What a key or value costs beside its bytes: tags and lengths.
pub(super) const OP_OVERHEAD: usize = 32;

/// Cuts `items` into runs of at most `max_items` whose sizes sum to at most [`MAX_BYTES`]. An item that
/// is larger than that alone is a run of its own.
pub(super) fn chunks<T>(
    items: &[T],
    max_items: usize,
    size: impl Fn(&T) -> usize,
) -> impl Iterator<Item = &[T]> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fitting = rest.iter().take(max_items).take_while(|item| {
            bytes += size(item) + OP_OVERHEAD;
            bytes <= MAX_BYTES
        });
        let count = fitting.count().max(1).min(rest.len());
        if count == 0 {
            return None;
        }
        let (chunk, after) = rest.split_at(count);
        rest = after;
        Some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_by_number_and_by_size() {
        let sizes = |items: &[usize], max| -> Vec<usize> {
            chunks(items, max, |size| *size).map(<[usize]>::len).collect()
        };
        assert!(sizes(&[], 3).is_empty());
        assert_eq!(sizes(&[1; 7], 3), [3, 3, 1]);
        assert_eq!(sizes(&[MAX_BYTES / 2; 3], 9), [1, 1, 1]);
        assert_eq!(sizes(&[MAX_BYTES / 2 - OP_OVERHEAD; 3], 9), [2, 1]);
        assert_eq!(sizes(&[1, 2 * MAX_BYTES, 1], 9), [1, 1, 1]);
    }
}
