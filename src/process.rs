//! Values that belong to one process. `PyTorch` forks: in the child no thread of the runtime exists, so
//! whatever depends on one has to be made again there, and what the parent made must not be touched.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

/// How many forks lie between the process that loaded this and the present one. A process number would not do: the
/// first process of a container can fork into a namespace whose first process has the same number.
static GENERATION: AtomicU64 = AtomicU64::new(0);
static COUNTED: AtomicBool = AtomicBool::new(false);

extern "C" fn forked() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// Has forks counted from now on. It takes no lock of ours: two threads that come first at once have each of them
/// counted twice, which tells processes apart as well.
fn count_forks() {
    #[allow(unsafe_code, reason = "the C library's way to hear of forks")]
    unsafe extern "C" {
        fn pthread_atfork(
            prepare: Option<extern "C" fn()>,
            parent: Option<extern "C" fn()>,
            child: Option<extern "C" fn()>,
        ) -> std::ffi::c_int;
    }
    // Miri does not know it, nor does it fork.
    if cfg!(miri) || COUNTED.load(Ordering::Acquire) {
        return;
    }
    // SAFETY: the function only counts, and is there as long as the process: modules of Python are not unloaded.
    #[allow(unsafe_code, reason = "as above")]
    let failed = unsafe { pthread_atfork(None, None, Some(forked)) };
    assert_eq!(failed, 0, "there is no memory for another pthread_atfork");
    COUNTED.store(true, Ordering::Release);
}

/// Differs between a process and those that are forked from it.
pub fn generation() -> u64 {
    count_forks();
    GENERATION.load(Ordering::Relaxed)
}

struct Made<T> {
    generation: u64,
    value: T,
}

/// A value that is made at first use and again in a forked child.
///
/// Lock-free: a lock that another thread held at the fork would stay locked in the child for ever.
/// The parent's value is leaked in the child: its drop could wait for threads that do not exist.
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
        self.own(self.made.load(Ordering::Acquire))
    }

    /// The value that was read, if it is this process's.
    #[allow(clippy::unused_self, reason = "the reference lives no longer than the cell")]
    fn own(&self, current: *mut Made<T>) -> Option<&T> {
        if current.is_null() {
            return None;
        }
        // SAFETY: not null, so it came from `Box::into_raw` in `get_or_make`. It is freed by `drop` only,
        // which has exclusive access, and a value that is replaced is leaked.
        #[allow(unsafe_code, reason = "the one place that reads the pointer")]
        let made = unsafe { &*current };
        (made.generation == GENERATION.load(Ordering::Relaxed)).then_some(&made.value)
    }

    pub fn get_or_make(&self, make: impl FnOnce() -> T) -> &T {
        // Read once: what is replaced below has to be what was not ours here, never a value that another
        // thread has made in between.
        let seen = self.made.load(Ordering::Acquire);
        if let Some(value) = self.own(seen) {
            return value;
        }
        let made = Box::into_raw(Box::new(Made { generation: generation(), value: make() }));
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

    /// Miri takes the threads through other orders with each seed: see `make miri`.
    #[test]
    fn made_once_whoever_asks_first() {
        for _ in 0..if cfg!(miri) { 1 } else { 200 } {
            let cell = PerProcess::new();
            assert!(cell.get().is_none());
            let start = std::sync::Barrier::new(4);
            let seen: Vec<usize> = std::thread::scope(|scope| {
                let ask = |i| {
                    let (cell, start) = (&cell, &start);
                    move || {
                        start.wait();
                        *cell.get_or_make(|| i)
                    }
                };
                let threads: Vec<_> = (0..4).map(|i| scope.spawn(ask(i))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert!(seen.iter().all(|value| *value == seen[0]), "{seen:?}");
        }
    }

    #[test]
    fn dropped_with_its_cell_and_never_twice() {
        let value = std::sync::Arc::new(());
        let cell = PerProcess::new();
        drop(cell.get_or_make(|| value.clone()).clone());
        drop(cell.get_or_make(|| unreachable!()).clone());
        assert_eq!(std::sync::Arc::strong_count(&value), 2);
        drop(cell);
        assert_eq!(std::sync::Arc::strong_count(&value), 1);
        drop(PerProcess::<u8>::new());
    }

    /// What a fork leaves behind: the pointer to a value of another process.
    #[test]
    #[cfg_attr(miri, ignore = "it leaks, as it must")]
    fn made_anew_in_a_child() {
        let cell = PerProcess::new();
        let parents = Box::into_raw(Box::new(Made { generation: u64::MAX, value: 1 }));
        cell.made.store(parents, Ordering::Release);
        assert_eq!(cell.get(), None);
        assert_eq!(*cell.get_or_make(|| 2), 2);
        assert_eq!(cell.get(), Some(&2));
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
        let made = Made { generation: u64::MAX, value: Counted(&theirs) };
        let made = Box::into_raw(Box::new(made));
        cell.made.store(made, Ordering::Release);
        assert!(cell.get().is_none());
        assert!(std::ptr::eq(cell.get_or_make(|| Counted(&ours)).0, &raw const ours));
        drop(cell);
        assert_eq!((theirs.load(Ordering::SeqCst), ours.load(Ordering::SeqCst)), (0, 1));
    }
}
