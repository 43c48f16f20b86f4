//! Values that belong to one process. `PyTorch` forks: in the child no thread of the runtime exists, so
//! whatever hangs on one has to be made anew there, and what the parent made must not be touched.

use std::sync::atomic::{AtomicPtr, Ordering};

struct Made<T> {
    pid: u32,
    value: T,
}

/// A value that is made at first use and again in a forked child.
///
/// Lock-free: a lock that another thread held at the fork would stay locked in the child for ever.
/// The parent's value is leaked in the child: its drop could wait for threads that are not there.
pub struct PerProcess<T> {
    made: AtomicPtr<Made<T>>,
}

impl<T> Default for PerProcess<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> PerProcess<T> {
    pub const fn new() -> Self {
        Self { made: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// This process's value, if it was made already.
    pub fn get(&self) -> Option<&T> {
        let current = self.made.load(Ordering::Acquire);
        if current.is_null() {
            return None;
        }
        // SAFETY: not null, so it came from `Box::into_raw` in `get_or_make`. It is freed by `drop` only,
        // which has exclusive access, and a value that is replaced is leaked.
        #[allow(unsafe_code, reason = "the one place that reads the pointer")]
        let made = unsafe { &*current };
        (made.pid == std::process::id()).then_some(&made.value)
    }

    pub fn get_or_make(&self, make: impl FnOnce() -> T) -> &T {
        if let Some(value) = self.get() {
            return value;
        }
        let seen = self.made.load(Ordering::Acquire);
        let made = Box::into_raw(Box::new(Made { pid: std::process::id(), value: make() }));
        if self.made.compare_exchange(seen, made, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: another thread was first, so nobody else has seen ours.
            #[allow(unsafe_code, reason = "as in `get`")]
            drop(unsafe { Box::from_raw(made) });
        }
        // Ours, or that of another thread of this process: a child starts with one thread.
        self.get().unwrap_or_else(|| unreachable!("a value of this process was published"))
    }
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        let current = *self.made.get_mut();
        if self.get().is_some() {
            // SAFETY: as in `get`, and `&mut self` says that nobody holds a reference.
            #[allow(unsafe_code, reason = "as in `get`")]
            drop(unsafe { Box::from_raw(current) });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn made_once_whoever_asks_first() {
        let cell = PerProcess::new();
        assert!(cell.get().is_none());
        let seen: Vec<usize> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|i| {
                    scope.spawn({
                        let cell = &cell;
                        move || *cell.get_or_make(|| i)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(seen.iter().all(|value| *value == seen[0]));
    }

    struct Counted<'a>(&'a AtomicUsize);

    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn each_value_is_dropped_once() {
        for _ in 0..50 {
            let (made, dropped) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let cell = PerProcess::new();
            let start = std::sync::Barrier::new(4);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        start.wait();
                        cell.get_or_make(|| {
                            made.fetch_add(1, Ordering::SeqCst);
                            Counted(&dropped)
                        });
                    });
                }
            });
            // Those who were too late.
            assert_eq!(dropped.load(Ordering::SeqCst) + 1, made.load(Ordering::SeqCst));
            drop(cell);
            assert_eq!(dropped.load(Ordering::SeqCst), made.load(Ordering::SeqCst));
        }
    }

    #[test]
    fn what_another_process_made_is_neither_used_nor_dropped() {
        let (theirs, ours) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let cell = PerProcess::new();
        let pid = std::process::id().wrapping_add(1);
        let made = Box::into_raw(Box::new(Made { pid, value: Counted(&theirs) }));
        cell.made.store(made, Ordering::Release);
        assert!(cell.get().is_none());
        assert!(std::ptr::eq(cell.get_or_make(|| Counted(&ours)).0, &raw const ours));
        drop(cell);
        assert_eq!((theirs.load(Ordering::SeqCst), ours.load(Ordering::SeqCst)), (0, 1));
    }
}
