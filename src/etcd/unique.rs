//! Names that nobody else has.

use rand::TryRng;
use rand::rngs::SysRng;

/// A random number that no other process has, a forked child of this one included: `rand::random` keeps
/// its state in the thread, which the child inherits, so that siblings would draw the same numbers.
pub fn unique() -> u128 {
    let mut bytes = [0; 16];
    match SysRng.try_fill_bytes(&mut bytes) {
        Ok(()) => u128::from_le_bytes(bytes),
        // Without the system's entropy (early boot): the process number keeps children apart.
        Err(_) => rand::random::<u128>() ^ u128::from(std::process::id()),
    }
}

/// A lease id, positive as etcd's own are.
pub fn unique_lease_id() -> i64 {
    let number = unique() & (i64::MAX as u128);
    i64::try_from(number).unwrap_or(i64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_ids_are_positive_and_differ() {
        let (a, b) = (unique_lease_id(), unique_lease_id());
        assert!(a > 0 && b > 0);
        assert_ne!(a, b);
        assert_ne!(unique(), unique());
    }
}
