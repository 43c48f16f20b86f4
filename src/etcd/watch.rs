//! Watches that resume: all watches of a client share one stream, which is opened anew where the
//! last event left off when its connection breaks, its token expires or its member loses the leader.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::backoff::Backoff;
use super::client::Client;
use super::error::EtcdError;
use super::kv::Event;
use super::metrics::{Watching as Counted, metrics};
use super::session::{End, OPEN, Patience, Session};

/// Our ids begin here, so that they are told from those that a server gives.
const FIRST_ID: i64 = 1 << 40;

/// What to watch. `range_end` of `None` watches one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchSpec {
    pub key: Vec<u8>,
    pub range_end: Option<Vec<u8>>,
    /// The first revision of interest; 0 means from now on.
    pub start_revision: i64,
    /// Only deletions.
    pub deletes_only: bool,
    /// What was deleted comes with the deletion; etcd reads it for each of them.
    pub with_previous: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchMessage {
    /// The watch sees all that happens after this revision. Comes first and once, where no
    /// revision was asked for. A watch that begins in the past waits up to 100 ms for its events, since
    /// etcd looks after those only so often (`watchable_store.go`, `syncWatchersLoop`); one that begins
    /// now does not. So who cannot wait watches first and reads then.
    Started(i64),
    /// Events in the order of their revisions, none twice and none left out.
    Events(Vec<Event>),
    /// Events are missing: read the range, then watch anew. The watch has ended.
    Compacted { oldest: i64 },
    /// etcd has another history than before: what was read is of no more use, and leases are gone or
    /// from before. The watch has ended.
    HistoryLost,
    /// The watch has ended and would end again.
    Failed(EtcdError),
}

/// The receiving end of one watch.
pub struct WatchReceiver {
    id: i64,
    messages: UnboundedReceiver<WatchMessage>,
    commands: UnboundedSender<Command>,
}

impl WatchReceiver {
    pub async fn next(&mut self) -> WatchMessage {
        self.messages.recv().await.unwrap_or(WatchMessage::Failed(EtcdError::Closed))
    }
}

impl Drop for WatchReceiver {
    fn drop(&mut self) {
        // Where the task has ended there is nothing left to cancel.
        let _ = self.commands.send(Command::Cancel(self.id));
    }
}

pub(super) enum Command {
    Add(i64, Watching),
    Cancel(i64),
}

pub(super) struct Watching {
    pub spec: WatchSpec,
    /// The revision to resume from; 0 until etcd said what "now" is.
    pub next: i64,
    /// etcd has confirmed it before.
    pub opened: bool,
    /// The history that its revisions are of.
    pub history: u64,
    pub sender: UnboundedSender<WatchMessage>,
}

/// The way to the task that serves a client's watches; it starts with the first one.
#[derive(Clone, Default)]
pub(super) struct WatchHub {
    commands: Arc<Mutex<Option<UnboundedSender<Command>>>>,
    ids: Arc<AtomicI64>,
}

impl WatchHub {
    pub(super) fn add(&self, client: &Client, spec: WatchSpec) -> WatchReceiver {
        let id = FIRST_ID + self.ids.fetch_add(1, Ordering::Relaxed);
        let (sender, messages) = unbounded_channel();
        let commands = {
            let mut held = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
            match &*held {
                // Closed where the task has ended by a panic.
                Some(commands) if !commands.is_closed() => commands.clone(),
                _ => {
                    let (commands, receiver) = unbounded_channel();
                    tokio::spawn(serve(client.without_watches(), receiver));
                    held.insert(commands).clone()
                }
            }
        };
        let next = spec.start_revision;
        let history = client.history().number();
        let watching = Watching { next, opened: false, history, spec, sender };
        // Where it is closed by now the receiver says so.
        let _ = commands.send(Command::Add(id, watching));
        WatchReceiver { id, messages, commands }
    }
}

async fn serve(client: Client, mut commands: UnboundedReceiver<Command>) {
    let mut watches = BTreeMap::new();
    let mut backoff = Backoff::default();
    let mut open = Patience::default();
    let mut histories = client.history().numbers();
    loop {
        end_those_of_another_history(&mut watches, *histories.borrow_and_update());
        while watches.is_empty() {
            match commands.recv().await {
                None => return,
                Some(Command::Add(id, watching)) => drop(watches.insert(id, watching)),
                Some(Command::Cancel(_)) => {}
            }
        }
        match client.connection().await {
            Err(error) => {
                for watching in std::mem::take(&mut watches).into_values() {
                    let _ = watching.sender.send(WatchMessage::Failed(error.clone()));
                }
                continue;
            }
            // The next attempt to connect pauses by itself.
            Ok(None) => continue,
            Ok(Some(connection)) => {
                let epoch = connection.token_epoch();
                let mut session = Session::new(&client, &connection, &mut watches);
                let ended = tokio::select! {
                    ended = session.run(&mut commands, &mut backoff, &mut open) => ended,
                    () = connection.fell_silent() => End::Broken,
                    // The next look at the client finds out.
                    () = client.closed() => continue,
                    // Cannot fail: the sender is the client's.
                    _ = histories.changed() => continue,
                };
                match ended {
                    End::HubGone => return,
                    End::StaleToken => {
                        if !connection.renew_token(epoch).await {
                            client.discard(&connection);
                        }
                    }
                    End::Broken => client.discard(&connection),
                    End::Late => {
                        if client.leave_if_silent(&connection, OPEN, &mut None).await {
                            open = Patience::default();
                        } else if open.was_in_vain() {
                            // Its other calls may be answered all the same.
                            client.leave_for_another(&connection);
                        }
                    }
                }
            }
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

/// The others are of the present one: a watch is known by it before its first request is sent.
fn end_those_of_another_history(watches: &mut BTreeMap<i64, Watching>, present: u64) {
    watches.retain(|_, watching| {
        let lasts = watching.history == present;
        if !lasts {
            metrics().watch(Counted::HistoryLost);
            let _ = watching.sender.send(WatchMessage::HistoryLost);
        }
        lasts
    });
}

#[cfg(test)]
mod tests {
    use super::super::test_server::{Server, binary};
    use super::*;

    #[test]
    fn a_task_that_has_panicked_is_started_again() {
        let Some(binary) = binary() else { return };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("one").block_on(async {
            let server = Server::start(&binary).await;
            let client = server.client();
            let hub = WatchHub::default();
            // What a panic leaves.
            *hub.commands.lock().expect("whole") = Some(unbounded_channel().0);
            let spec = WatchSpec { key: b"k".to_vec(), ..WatchSpec::default() };
            for _ in 0..2 {
                let first = hub.add(&client, spec.clone()).next().await;
                assert!(matches!(first, WatchMessage::Started(_)), "{first:?}");
            }
        });
    }
}
