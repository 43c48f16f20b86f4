//! What people should know of, kept for the agent's log: no thread of the runtime attaches to Python.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A client that connects again and again must not fill the memory.
const MOST: usize = 100;

#[derive(Default)]
pub struct Remarks {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    texts: VecDeque<String>,
    left_out: usize,
}

impl Remarks {
    pub fn add(&self, text: String) {
        let mut kept = self.kept();
        if kept.texts.len() < MOST {
            kept.texts.push_back(text);
        } else {
            kept.left_out += 1;
        }
    }

    /// All since the last time.
    pub fn take(&self) -> Vec<String> {
        let kept = std::mem::take(&mut *self.kept());
        let more = (kept.left_out > 0).then(|| format!("{} more are left out", kept.left_out));
        kept.texts.into_iter().chain(more).collect()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted() {
        let remarks = Remarks::default();
        (0..MOST + 3).for_each(|number| remarks.add(number.to_string()));
        let taken = remarks.take();
        assert_eq!((taken.len(), taken[0].as_str()), (MOST + 1, "0"));
        assert_eq!(taken[MOST], "3 more are left out");
        assert!(remarks.take().is_empty());
    }
}
