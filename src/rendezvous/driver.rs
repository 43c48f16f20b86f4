//! Runs one [`Machine`] against a real etcd: performs its actions and brings it what comes of them.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;

use super::api::{
    Action, Answer, CallId, Close, Input, Outcome, RendezvousError, Settings, Status, Time, Wanted,
    WatchId,
};
use super::core::Machine;
use super::keys::RoundId;
use super::phases::{Phases, Stopwatch};
use super::records::Master;
use crate::etcd::{Client, EtcdError, KeepAlive, Repeat, WatchMessage};

/// A lease that is not revoked by then is left to run out.
const REVOKE: Duration = Duration::from_secs(2);
/// A node that leaves waits no longer than this: a signal must end a process within a second, also when etcd
/// does not answer.
const LEAVE: Duration = Duration::from_millis(700);

type JoinResult = Result<Outcome, RendezvousError>;
type Done = Result<(), RendezvousError>;
/// `Some` where the run was left as it is, with the reason.
type CloseResult = Result<Option<String>, RendezvousError>;

enum Command {
    Join(Master, oneshot::Sender<JoinResult>),
    Close(Close, oneshot::Sender<CloseResult>),
    Observe(oneshot::Sender<Done>),
    Leave(oneshot::Sender<()>),
}

/// The way to a node's task. When it is dropped the node leaves.
pub struct Handle {
    commands: UnboundedSender<Command>,
    status: watch::Receiver<Status>,
    phases: watch::Receiver<Phases>,
}

impl Handle {
    /// Must be called within the runtime. Does no I/O by itself.
    pub fn start(client: Client, mut settings: Settings) -> Self {
        settings.epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (commands, receiver) = unbounded_channel();
        let (status_sender, status) = watch::channel(Status::default());
        let (phases_sender, phases) = watch::channel(Phases::default());
        let (inputs, incoming) = unbounded_channel();
        let driver = Driver {
            client,
            machine: Machine::new(settings),
            origin: Instant::now(),
            inputs,
            watches: HashMap::new(),
            calls: HashMap::new(),
            leases: HashMap::new(),
            revoking: Vec::new(),
            joining: Vec::new(),
            closing: Vec::new(),
            observing: Vec::new(),
            status: status_sender,
            stopwatch: Stopwatch::default(),
            phases: phases_sender,
        };
        tokio::spawn(driver.run(receiver, incoming));
        Self { commands, status, phases }
    }

    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// How many nodes could change the world of this member, as it changes. Must be called within the runtime.
    pub fn waiting(&self) -> watch::Receiver<usize> {
        let (sender, receiver) = watch::channel(self.status().waiting);
        let mut status = self.status.clone();
        tokio::spawn(async move {
            while status.changed().await.is_ok() && !sender.is_closed() {
                let waiting = status.borrow_and_update().waiting;
                sender.send_replace(waiting);
            }
        });
        receiver
    }

    /// How the barrier that was joined last has gone so far.
    pub fn phases(&self) -> Phases {
        *self.phases.borrow()
    }

    /// Holds a reason as soon as a wait for a member of this round cannot succeed. Must be called within
    /// the runtime.
    pub fn broken(&self, id: RoundId) -> watch::Receiver<Option<String>> {
        let (sender, receiver) = watch::channel(None);
        let mut status = self.status.clone();
        tokio::spawn(async move {
            loop {
                let reason = reason_to_stop(&status.borrow_and_update(), &id);
                if reason.is_some() {
                    sender.send_replace(reason);
                    return;
                }
                tokio::select! {
                    changed = status.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        receiver
    }

    pub fn join(&self, master: Master) -> oneshot::Receiver<JoinResult> {
        let (sender, receiver) = oneshot::channel();
        self.send(Command::Join(master, sender));
        receiver
    }

    pub fn close(&self, wish: Close) -> oneshot::Receiver<CloseResult> {
        let (done, receiver) = oneshot::channel();
        self.send(Command::Close(wish, done));
        receiver
    }

    pub fn observe(&self) -> oneshot::Receiver<Done> {
        let (sender, receiver) = oneshot::channel();
        self.send(Command::Observe(sender));
        receiver
    }

    /// Resolves when the lease is revoked, or after 0.7 s.
    pub fn leave(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.send(Command::Leave(sender));
        receiver
    }

    fn send(&self, command: Command) {
        // Where the task has ended with its runtime, the receiver of the answer says so.
        let _ = self.commands.send(command);
    }
}

struct Driver {
    client: Client,
    machine: Machine,
    origin: Instant,
    inputs: UnboundedSender<Input>,
    watches: HashMap<WatchId, AbortHandle>,
    /// Those that may be cancelled.
    calls: HashMap<CallId, AbortHandle>,
    leases: HashMap<i64, AbortHandle>,
    revoking: Vec<JoinHandle<()>>,
    joining: Vec<oneshot::Sender<JoinResult>>,
    closing: Vec<oneshot::Sender<CloseResult>>,
    observing: Vec<oneshot::Sender<Done>>,
    status: watch::Sender<Status>,
    stopwatch: Stopwatch,
    phases: watch::Sender<Phases>,
}

impl Driver {
    async fn run(
        mut self,
        mut commands: UnboundedReceiver<Command>,
        mut incoming: UnboundedReceiver<Input>,
    ) {
        loop {
            let deadline = self.machine.next_deadline().map(|at| self.origin + at);
            tokio::select! {
                // Commands first: a close must not queue behind a flood of joins.
                biased;
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                // `inputs` is held by `self`, so the channel never closes.
                Some(input) = incoming.recv() => self.handle(input),
                () = sleep_until(deadline) => self.handle(Input::Tick),
            }
        }
        self.handle(Input::Leave);
        self.revoked().await;
        let calls = self.calls.into_values();
        let tasks = self.watches.into_values().chain(self.leases.into_values()).chain(calls);
        tasks.for_each(|task| task.abort());
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Join(master, result) => {
                self.joining.push(result);
                self.stopwatch.begin(self.origin.elapsed());
                self.handle(Input::Join(master));
            }
            Command::Close(wish, done) => {
                self.closing.push(done);
                self.handle(Input::Close(wish));
            }
            Command::Observe(done) => {
                self.observing.push(done);
                self.handle(Input::Observe);
            }
            Command::Leave(done) => {
                self.handle(Input::Leave);
                let revoking = std::mem::take(&mut self.revoking);
                tokio::spawn(async move {
                    let all = async {
                        for task in revoking {
                            // It cannot panic, and nothing aborts it.
                            let _ = task.await;
                        }
                    };
                    // What is not done by then goes on for as long as the process does.
                    let _ = tokio::time::timeout(LEAVE, all).await;
                    let _ = done.send(());
                });
            }
        }
    }

    async fn revoked(&mut self) {
        for task in self.revoking.drain(..) {
            let _ = task.await;
        }
    }

    fn handle(&mut self, input: Input) {
        if let Input::Answer(call, _) = &input {
            self.calls.remove(call);
        }
        let actions = self.machine.handle(self.origin.elapsed(), input);
        // Before the answers: whoever gets one may look at the status at once.
        self.status.send_if_modified(|shown| {
            let status = self.machine.status();
            let modified = *shown != status;
            *shown = status;
            modified
        });
        let ended = actions.iter().any(|action| matches!(action, Action::Joined(_)));
        let phases =
            self.stopwatch.see(self.origin.elapsed(), &self.status.borrow().progress, ended);
        self.phases.send_if_modified(|shown| std::mem::replace(shown, phases) != phases);
        for action in actions {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Txn(call, txn, deadline) => {
                self.ask(call, deadline, move |client, at| async move {
                    client.txn(&txn, Repeat::Safely, at).await.map(Answer::Txn)
                });
            }
            Action::Grant(call, lease, ttl, deadline) => {
                self.ask(call, deadline, move |client, at| async move {
                    let (lease, ttl) = match lease {
                        Wanted::New(first) => client.grant_new(first, ttl, at).await?,
                        Wanted::Shared(lease) => (lease, client.grant(lease, ttl, at).await?),
                    };
                    Ok(Answer::Granted(lease, ttl))
                });
            }
            Action::TimeToLive(call, lease, deadline) => {
                self.ask(call, deadline, move |client, at| async move {
                    let left = client.time_to_live(lease, at).await?;
                    Ok(Answer::TimeToLive(left.map(|(left, _)| left)))
                });
            }
            Action::Revoke(lease) => {
                self.stop_renewing(lease);
                let client = self.client.clone();
                self.revoking.retain(|task| !task.is_finished());
                self.revoking.push(tokio::spawn(async move {
                    // A lease that cannot be revoked runs out by itself.
                    let _ = client.revoke(lease, Instant::now() + REVOKE).await;
                }));
            }
            Action::Abandon(lease) => self.stop_renewing(lease),
            Action::KeepAlive(lease, ttl, first) => {
                let mut keep_alive = KeepAlive::start(self.client.clone(), lease, ttl, first);
                let inputs = self.inputs.clone();
                let task = tokio::spawn(async move {
                    keep_alive.lost().await;
                    let _ = inputs.send(Input::LeaseLost(lease));
                });
                if let Some(former) = self.leases.insert(lease, task.abort_handle()) {
                    former.abort();
                }
            }
            Action::Watch(id, spec) => {
                let mut receiver = self.client.watch(spec);
                let inputs = self.inputs.clone();
                let task = tokio::spawn(async move {
                    loop {
                        let message = receiver.next().await;
                        let ended =
                            !matches!(message, WatchMessage::Events(_) | WatchMessage::Started(_));
                        if inputs.send(Input::Watched(id, message)).is_err() || ended {
                            return;
                        }
                    }
                });
                self.watches.insert(id, task.abort_handle());
            }
            Action::Unwatch(id) => {
                if let Some(task) = self.watches.remove(&id) {
                    task.abort();
                }
            }
            Action::Cancel(call) => {
                if let Some(task) = self.calls.remove(&call) {
                    task.abort();
                }
            }
            Action::Joined(result) => answer_all(&mut self.joining, &result),
            Action::Closed(result) => answer_all(&mut self.closing, &result),
            Action::Observed(result) => answer_all(&mut self.observing, &result),
        }
    }

    fn stop_renewing(&mut self, lease: i64) {
        if let Some(task) = self.leases.remove(&lease) {
            task.abort();
        }
    }

    fn ask<F, Fut>(&mut self, call: u64, deadline: Time, request: F)
    where
        F: FnOnce(Client, Instant) -> Fut,
        Fut: Future<Output = Result<Answer, EtcdError>> + Send + 'static,
    {
        let answer = request(self.client.clone(), self.origin + deadline);
        let inputs = self.inputs.clone();
        let task = tokio::spawn(async move {
            let _ = inputs.send(Input::Answer(call, answer.await));
        });
        self.calls.insert(call, task.abort_handle());
    }
}

fn reason_to_stop(status: &Status, id: &RoundId) -> Option<String> {
    let progress = &status.progress;
    // A status in between may have been missed.
    let later = progress.round > id.round || progress.current.as_ref().is_some_and(|c| c != id);
    match &status.broken {
        Some(broken) if broken.id == *id => Some(broken.reason.clone()),
        _ if status.closed.is_none() && later => Some(format!("round {} is over", id.round)),
        _ => None,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        // The shortest pause keeps a deadline that has passed from starving everything else.
        Some(at) => {
            tokio::time::sleep_until(at.max(Instant::now() + Duration::from_millis(1))).await;
        }
        None => std::future::pending().await,
    }
}

fn answer_all<T: Clone>(waiting: &mut Vec<oneshot::Sender<T>>, result: &T) {
    for sender in waiting.drain(..) {
        // The caller may have stopped waiting.
        let _ = sender.send(result.clone());
    }
}
