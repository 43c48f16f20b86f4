//! The thread "torchetcd-aio", which completes the futures of asyncio: a runtime for
//! `pyo3-async-runtimes` that polls attached to Python.
//!
//! Attached, because then nothing that Python owns is dropped elsewhere: pyo3 keeps such drops in a list
//! under a lock, which a fork at that moment would leave locked in the child.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3_async_runtimes::TaskLocals;
use pyo3_async_runtimes::generic::{ContextExt, JoinError, Runtime};
use tokio::sync::oneshot;

use crate::process::PerProcess;

/// It lets others have the GIL after so many tasks.
const AT_ONCE: usize = 64;

static BRIDGE: PerProcess<Bridge> = PerProcess::new();

struct Bridge {
    sender: Sender<Message>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    ended: AtomicBool,
    /// The thread is past its last use of Python.
    finished: AtomicBool,
}

enum Message {
    Poll(Arc<Task>),
    End,
}

impl Bridge {
    fn start() -> Self {
        let (sender, receiver) = channel();
        let state = Arc::new(State::default());
        let its = state.clone();
        std::thread::Builder::new()
            .name("torchetcd-aio".into())
            .spawn(move || serve(&receiver, &its))
            .unwrap_or_else(|error| panic!("the thread for asyncio cannot be started: {error}"));
        Self { sender, state }
    }
}

fn serve(receiver: &Receiver<Message>, state: &State) {
    while let Ok(first) = receiver.recv() {
        if state.ended.load(Ordering::SeqCst) {
            break;
        }
        let more = Python::try_attach(|_| {
            let mut next = Some(first);
            for _ in 0..AT_ONCE {
                match next {
                    None => return true,
                    Some(Message::End) => return false,
                    Some(Message::Poll(task)) => task.poll(),
                }
                next = receiver.try_recv().ok();
            }
            if let Some(Message::Poll(task)) = next {
                task.poll();
            }
            true
        });
        if more != Some(true) {
            break;
        }
    }
    state.finished.store(true, Ordering::SeqCst);
}

/// Ends the thread, and waits for that as long as `limit`, without the GIL, which it may want.
pub fn end(py: Python<'_>, limit: Duration) {
    let Some(bridge) = BRIDGE.get() else { return };
    bridge.state.ended.store(true, Ordering::SeqCst);
    // Fails where the thread has ended by itself.
    let _ = bridge.sender.send(Message::End);
    py.detach(|| {
        let deadline = Instant::now() + limit;
        while !bridge.state.finished.load(Ordering::SeqCst) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

struct Task {
    future: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    queued: AtomicBool,
    sender: Sender<Message>,
}

impl Task {
    fn poll(self: Arc<Self>) {
        self.queued.store(false, Ordering::SeqCst);
        let waker = Waker::from(self.clone());
        let mut future = self.future.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(running) = future.as_mut() else { return };
        if running.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            *future = None;
        }
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            let sender = self.sender.clone();
            // Fails at the end of the interpreter only: nobody waits then.
            let _ = sender.send(Message::Poll(self));
        }
    }
}

/// Implements what `pyo3-async-runtimes` needs.
pub struct AsyncioRuntime;

pub struct Panicked(Box<dyn Any + Send + 'static>);

impl JoinError for Panicked {
    fn is_panic(&self) -> bool {
        true
    }

    fn into_panic(self) -> Box<dyn Any + Send + 'static> {
        self.0
    }
}

/// Ready when the task has ended.
pub struct Joined(oneshot::Receiver<Result<(), Panicked>>);

impl Future for Joined {
    type Output = Result<(), Panicked>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // A sender that is gone: the interpreter ends.
        Pin::new(&mut self.0).poll(context).map(|told| told.unwrap_or(Ok(())))
    }
}

impl Runtime for AsyncioRuntime {
    type JoinError = Panicked;
    type JoinHandle = Joined;

    fn spawn<F>(future: F) -> Joined
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (tell, joined) = oneshot::channel();
        let sender = BRIDGE.get_or_make(Bridge::start).sender.clone();
        let task = Arc::new(Task {
            future: Mutex::new(Some(Box::pin(async move {
                let ended = Caught(Box::pin(future)).await;
                // Whoever waited for it may have gone.
                let _ = tell.send(ended.map_err(Panicked));
            }))),
            queued: AtomicBool::new(false),
            sender,
        });
        task.wake();
        Joined(joined)
    }

    /// On the same thread: it is the one that may wait for the GIL.
    fn spawn_blocking<F>(work: F) -> Joined
    where
        F: FnOnce() + Send + 'static,
    {
        Self::spawn(async move { work() })
    }
}

impl ContextExt for AsyncioRuntime {
    fn scope<F, R>(_: TaskLocals, future: F) -> Pin<Box<dyn Future<Output = R> + Send>>
    where
        F: Future<Output = R> + Send + 'static,
    {
        // No future of ours calls Python, so none asks for the event loop that it belongs to.
        Box::pin(future)
    }

    fn get_task_locals() -> Option<TaskLocals> {
        None
    }
}

/// A future whose panic is a result.
struct Caught<F>(Pin<Box<F>>);

impl<F: Future> Future for Caught<F> {
    type Output = Result<F::Output, Box<dyn Any + Send + 'static>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}
