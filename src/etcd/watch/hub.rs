//! Watches that resume. All watches of a client share one stream. It is reopened after the last event
//! when its connection breaks, its token expires or its member loses the leader.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::message::{Command, WatchMessage, WatchSpec, Watching};
use super::session::{End, OPEN, Patience, Session};
use crate::etcd::cluster::{Backoff, Cluster};
use crate::etcd::error::EtcdError;
use crate::etcd::metrics::{WatchEvent, metrics};

/// Our ids begin here, so that they are told from those that a server gives.
const FIRST_ID: i64 = 1 << 40;

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

/// The way to the task that serves a client's watches; it starts with the first one.
#[derive(Clone)]
pub struct WatchHub {
    cluster: Cluster,
    commands: Arc<Mutex<Option<UnboundedSender<Command>>>>,
    ids: Arc<AtomicI64>,
}

impl WatchHub {
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster, commands: Arc::default(), ids: Arc::default() }
    }

    pub fn add(&self, spec: WatchSpec) -> WatchReceiver {
        let id = FIRST_ID + self.ids.fetch_add(1, Ordering::Relaxed);
        let (sender, messages) = unbounded_channel();
        let commands = {
            let mut held = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
            match &*held {
                // Closed where the task has ended by a panic.
                Some(commands) if !commands.is_closed() => commands.clone(),
                _ => {
                    let (commands, receiver) = unbounded_channel();
                    tokio::spawn(serve(self.cluster.clone(), receiver));
                    held.insert(commands).clone()
                }
            }
        };
        let next = spec.start_revision;
        let history = self.cluster.history().number();
        let watching = Watching { next, opened: false, history, spec, sender };
        // Where it is closed by now the receiver says so.
        let _ = commands.send(Command::Add(id, watching));
        WatchReceiver { id, messages, commands }
    }
}

async fn serve(cluster: Cluster, mut commands: UnboundedReceiver<Command>) {
    let mut watches = BTreeMap::new();
    let mut backoff = Backoff::default();
    let mut open = Patience::default();
    let mut histories = cluster.history().numbers();
    loop {
        end_those_of_another_history(&mut watches, *histories.borrow_and_update());
        while watches.is_empty() {
            match commands.recv().await {
                None => return,
                Some(Command::Add(id, watching)) => drop(watches.insert(id, watching)),
                Some(Command::Cancel(_)) => {}
            }
        }
        match cluster.connected().await {
            Err(error) => {
                for watching in std::mem::take(&mut watches).into_values() {
                    let _ = watching.sender.send(WatchMessage::Failed(error.clone()));
                }
                continue;
            }
            Ok(connection) => {
                let epoch = connection.token_epoch();
                let mut session = Session::new(&cluster, &connection, &mut watches);
                let ended = tokio::select! {
                    ended = session.run(&mut commands, &mut backoff, &mut open) => ended,
                    () = connection.health.fell_silent() => End::Broken,
                    // The next look at the cluster finds out.
                    () = cluster.closed() => continue,
                    // Cannot fail: the sender is the cluster's.
                    _ = histories.changed() => continue,
                };
                match ended {
                    End::HubGone => return,
                    End::StaleToken => {
                        if !connection.renew_token(epoch).await {
                            cluster.discard(&connection);
                        }
                    }
                    End::Broken => cluster.discard(&connection),
                    End::Late => {
                        if cluster.leave_if_silent(&connection, OPEN, &mut None).await {
                            open = Patience::default();
                        } else if open.was_in_vain() {
                            // The member may still answer other calls.
                            cluster.leave_for_another(&connection);
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
            metrics().watch(WatchEvent::HistoryLost);
            let _ = watching.sender.send(WatchMessage::HistoryLost);
        }
        lasts
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::test_server::{Server, binary};

    #[test]
    fn a_task_that_has_panicked_is_started_again() {
        let Some(binary) = binary() else { return };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("one").block_on(async {
            let server = Server::start(&binary).await;
            let client = server.client();
            let hub = WatchHub::new(client.into());
            // What a panic leaves.
            *hub.commands.lock().expect("whole") = Some(unbounded_channel().0);
            let spec = WatchSpec { key: b"k".to_vec(), ..WatchSpec::default() };
            for _ in 0..2 {
                let first = hub.add(spec.clone()).next().await;
                assert!(matches!(first, WatchMessage::Started(_)), "{first:?}");
            }
        });
    }
}
