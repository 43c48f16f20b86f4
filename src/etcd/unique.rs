//! Names that nobody else has.

use std::ops::RangeInclusive;

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

/// A random number of a range, which siblings do not share either.
pub fn uniform(range: RangeInclusive<f64>) -> f64 {
    let share = u32::try_from(unique() >> 96).map_or(0.0, f64::from) / f64::from(u32::MAX);
    range.start() + (range.end() - range.start()) * share
}

/// A lease id, positive as etcd's own are.
pub fn unique_lease_id() -> i64 {
    let number = unique() & (i64::MAX as u128);
    i64::try_from(number).unwrap_or(i64::MAX).max(1)
}

/// The id of the lease that this attempt, from 1 on, asks for: another one for each. Of two attempts with one id
/// the late copy of the first could bring back a lease that was granted to the second and revoked since.
pub fn nth_lease_id(first: i64, attempt: u32) -> i64 {
    first.wrapping_add(i64::from(attempt.saturating_sub(1))) & i64::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_numbers_fill_their_range() {
        let drawn: Vec<f64> = (0..1000).map(|_| uniform(2.0..=3.0)).collect();
        assert!(drawn.iter().all(|number| (2.0..=3.0).contains(number)));
        for part in [2.0..=2.1, 2.45..=2.55, 2.9..=3.0] {
            assert!(drawn.iter().any(|number| part.contains(number)), "{part:?}");
        }
    }

    #[test]
    fn lease_ids_are_positive_and_differ() {
        let (a, b) = (unique_lease_id(), unique_lease_id());
        assert!(a > 0 && b > 0);
        assert_ne!(a, b);
        assert_ne!(unique(), unique());
    }
}
