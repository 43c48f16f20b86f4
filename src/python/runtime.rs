//! The tokio runtime: one for the process, made at first use.
//!
//! It has one thread of its own, named "torchetcd". But a Python thread that waits for an answer drives
//! the runtime itself for as long as most calls take: so the answer gets to it without a switch between
//! threads, which on a local network is a quarter of a call's time (`benches/raw.rs` measures both). In
//! all longer waits the runtime's own thread drives, so nothing in it ever depends on Python.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Notify;

use crate::process::PerProcess;

/// The own thread comes back when no thread has driven for this long: calls often follow each other.
const LINGER: Duration = Duration::from_millis(2);
/// In a long row of calls it looks less and less often, at last so often.
const LINGER_MOST: Duration = Duration::from_millis(16);

static ENGINE: PerProcess<Engine> = PerProcess::new();

struct Engine {
    runtime: Runtime,
    own_thread: OnceLock<Thread>,
    own_thread_drives: AtomicBool,
    /// Asks the own thread to let a guest drive.
    step_aside: Notify,
    /// Threads that drive, or are about to.
    guests: AtomicUsize,
    /// How many there have been.
    visits: AtomicU64,
    /// Threads that wait while others drive.
    parked: AtomicUsize,
    /// Asks the own thread to drive at once.
    urgent: AtomicBool,
    ended: AtomicBool,
    /// The own thread is past its last use of anything.
    finished: AtomicBool,
}

impl Engine {
    fn new() -> Self {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap_or_else(|error| panic!("the runtime cannot be made: {error}"));
        Self {
            runtime,
            own_thread: OnceLock::new(),
            own_thread_drives: AtomicBool::new(false),
            step_aside: Notify::new(),
            guests: AtomicUsize::new(0),
            visits: AtomicU64::new(0),
            parked: AtomicUsize::new(0),
            urgent: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            finished: AtomicBool::new(false),
        }
    }

    fn start_own_thread(&'static self) -> Thread {
        let thread = std::thread::Builder::new()
            .name("torchetcd".into())
            .spawn(|| self.drive_when_nobody_does())
            .unwrap_or_else(|error| panic!("the runtime's thread cannot be started: {error}"));
        thread.thread().clone()
    }

    fn drive_when_nobody_does(&self) {
        let _finished = Finished(&self.finished);
        while !self.ended() {
            self.own_thread_drives.store(true, Ordering::SeqCst);
            self.runtime.block_on(self.step_aside.notified());
            self.own_thread_drives.store(false, Ordering::SeqCst);
            let mut linger = LINGER;
            loop {
                let visits = self.visits.load(Ordering::SeqCst);
                std::thread::park_timeout(linger);
                linger = LINGER_MOST.min(linger * 2);
                let idle = self.guests.load(Ordering::SeqCst) == 0
                    && self.visits.load(Ordering::SeqCst) == visits;
                if self.urgent.swap(false, Ordering::SeqCst) || idle || self.ended() {
                    break;
                }
            }
        }
    }

    fn ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Drives the runtime until `future` is ready, or `limit` has passed.
    fn drive<F: Future>(&self, future: Pin<&mut F>, limit: Duration) -> Option<F::Output> {
        let _guest = Guest::enter(self);
        self.runtime.block_on(async { tokio::time::timeout(limit, future).await.ok() })
    }

    /// Waits for `future` while others drive.
    fn park<F: Future>(&self, mut future: Pin<&mut F>, limit: Duration) -> Option<F::Output> {
        let _parked = Parked::enter(self);
        let _context = self.runtime.enter();
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let ends = Instant::now() + limit;
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return Some(output);
            }
            let left = ends.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            std::thread::park_timeout(left);
        }
    }

    fn wake_own_thread(&self) {
        self.urgent.store(true, Ordering::SeqCst);
        if let Some(thread) = self.own_thread.get() {
            thread.unpark();
        }
    }
}

/// Says at the end of its scope, however that is left, that it is over.
struct Finished<'a>(&'a AtomicBool);

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A thread that drives.
struct Guest<'a>(&'a Engine);

impl<'a> Guest<'a> {
    fn enter(engine: &'a Engine) -> Self {
        engine.guests.fetch_add(1, Ordering::SeqCst);
        engine.visits.fetch_add(1, Ordering::SeqCst);
        if engine.own_thread_drives.load(Ordering::SeqCst) {
            engine.step_aside.notify_one();
        }
        Self(engine)
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let last = self.0.guests.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.0.parked.load(Ordering::SeqCst) > 0 {
            self.0.wake_own_thread();
        }
    }
}

/// A thread that needs another one to drive.
struct Parked<'a>(&'a Engine);

impl<'a> Parked<'a> {
    fn enter(engine: &'a Engine) -> Self {
        engine.parked.fetch_add(1, Ordering::SeqCst);
        if !engine.own_thread_drives.load(Ordering::SeqCst) {
            engine.wake_own_thread();
        }
        Self(engine)
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.0.parked.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The handle of this process's runtime.
pub fn handle() -> Handle {
    engine().runtime.handle().clone()
}

/// Has the runtime's own thread drive for as long as this lives: for what no Python thread waits for.
pub fn in_background() -> impl Drop + Send + 'static {
    Parked::enter(engine())
}

/// Waits for `future` on this thread: `None` when `limit` has passed first. `drive` says to drive the
/// runtime meanwhile, for which the limit must be short.
pub fn run<F: Future>(future: Pin<&mut F>, limit: Duration, drive: bool) -> Option<F::Output> {
    if drive { engine().drive(future, limit) } else { engine().park(future, limit) }
}

/// Whether [`end`] was called.
pub fn ended() -> bool {
    ENGINE.get().is_some_and(Engine::ended)
}

fn engine() -> &'static Engine {
    let engine = ENGINE.get_or_make(Engine::new);
    engine.own_thread.get_or_init(|| engine.start_own_thread());
    engine
}

/// Ends the runtime's thread, and waits for that as long as `limit`.
pub fn end(limit: Duration) {
    let Some(engine) = ENGINE.get() else { return };
    engine.ended.store(true, Ordering::SeqCst);
    engine.step_aside.notify_one();
    engine.wake_own_thread();
    let deadline = Instant::now() + limit;
    while !engine.finished.load(Ordering::SeqCst) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
}
