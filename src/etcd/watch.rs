//! Watches that resume: all watches of a client share one stream, which is opened anew where the
//! last event left off when its connection breaks, its token expires or its member loses the leader.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{WatchFilterType, WatchOptions, WatchRequestSender, WatchResponse};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::backoff::Backoff;
use super::client::Client;
use super::connection::Connection;
use super::convert;
use super::error::{EtcdError, Refusal, Verdict, classify, classify_message};
use super::kv::{Event, Range};
use super::metrics::{Watching as Counted, metrics};

const OPEN: Duration = Duration::from_secs(5);

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

enum Command {
    Add(i64, Watching),
    Cancel(i64),
}

struct Watching {
    spec: WatchSpec,
    /// The revision to resume from; 0 until etcd said what "now" is.
    next: i64,
    /// Whether it was refused for want of permission, which may have been a stale token's fault.
    denied: bool,
    /// etcd has confirmed it before.
    opened: bool,
    /// The history that its revisions are of.
    history: u64,
    sender: UnboundedSender<WatchMessage>,
}

/// The way to the task that serves a client's watches; it starts with the first one.
#[derive(Clone, Default)]
pub(super) struct WatchHub {
    commands: Arc<Mutex<Option<UnboundedSender<Command>>>>,
    ids: Arc<AtomicI64>,
}

impl WatchHub {
    pub(super) fn add(&self, client: &Client, spec: WatchSpec) -> WatchReceiver {
        // etcd takes 0 for "choose an id yourself".
        let id = self.ids.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, messages) = unbounded_channel();
        let commands = self
            .commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_with(|| {
                let (commands, receiver) = unbounded_channel();
                tokio::spawn(serve(client.without_watches(), receiver));
                commands
            })
            .clone();
        let next = spec.start_revision;
        let history = client.history().number();
        let watching = Watching { next, denied: false, opened: false, history, spec, sender };
        // A closed channel shows as `Closed` at the receiver.
        let _ = commands.send(Command::Add(id, watching));
        WatchReceiver { id, messages, commands }
    }
}

async fn serve(client: Client, mut commands: UnboundedReceiver<Command>) {
    let mut watches = BTreeMap::new();
    let mut backoff = Backoff::default();
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
                let mut session = Session {
                    client: &client,
                    connection: &connection,
                    watches: &mut watches,
                    pending: VecDeque::new(),
                    known: client.history().revision(),
                    doubted: false,
                };
                let ended = tokio::select! {
                    ended = session.run(&mut commands, &mut backoff) => ended,
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
                        client.leave_if_silent(&connection, OPEN, &mut None).await;
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

enum End {
    Broken,
    /// It could not be opened in time.
    Late,
    StaleToken,
    HubGone,
}

/// One stream, from its opening to its end.
struct Session<'a> {
    client: &'a Client,
    connection: &'a Connection,
    watches: &'a mut BTreeMap<i64, Watching>,
    /// Watches that etcd has not confirmed: it answers in this order, and a refusal names none.
    pending: VecDeque<i64>,
    /// etcd's revision was this one at least when the stream was opened.
    known: i64,
    /// Whether etcd is being asked if its history is the one that is known.
    doubted: bool,
}

impl Session<'_> {
    async fn run(
        &mut self,
        commands: &mut UnboundedReceiver<Command>,
        backoff: &mut Backoff,
    ) -> End {
        let mut wanted =
            self.watches.iter().map(|(id, w)| (*id, options(*id, w))).collect::<VecDeque<_>>();
        let Some((first, (key, opened))) = wanted.pop_front() else { return End::Broken };
        self.pending.push_back(first);
        let mut client = self.connection.watch();
        let stream = tokio::time::timeout(OPEN, client.watch(key, Some(opened))).await;
        let (mut requests, mut responses) = match stream {
            Ok(Ok(stream)) => stream.split(),
            Ok(Err(error)) => return end_of(&error),
            Err(_) => return End::Late,
        };
        for (id, (key, options)) in wanted {
            self.pending.push_back(id);
            if send(&mut requests, key, options).await.is_err() {
                return End::Broken;
            }
        }
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    None => return End::HubGone,
                    Some(Command::Add(_, watching)) if watching.history != self.client.history().number() => {
                        let _ = watching.sender.send(WatchMessage::HistoryLost);
                    }
                    Some(Command::Add(id, watching)) => {
                        let (key, options) = options(id, &watching);
                        self.watches.insert(id, watching);
                        self.pending.push_back(id);
                        if send(&mut requests, key, options).await.is_err() {
                            return End::Broken;
                        }
                    }
                    Some(Command::Cancel(id)) => {
                        let known = self.watches.remove(&id).is_some();
                        if known && requests.cancel(id).await.is_err() {
                            return End::Broken;
                        }
                    }
                },
                response = responses.message() => match response {
                    Err(error) => return end_of(&error),
                    Ok(None) => return End::Broken,
                    Ok(Some(response)) => {
                        self.connection.note_answer(!response.canceled());
                        // A refusal is an answer too, but no success.
                        if !response.canceled() {
                            backoff.reset();
                        }
                        if let Some(end) = self.take(&response) {
                            return end;
                        }
                    }
                },
            }
        }
    }

    fn take(&mut self, response: &WatchResponse) -> Option<End> {
        let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
        let mut id = response.watch_id();
        if response.created() {
            let asked = self.pending.pop_front();
            if id < 0 {
                id = asked?;
            }
        }
        if response.canceled() {
            return self.canceled(id, response);
        }
        if response.created() && !self.client.history().watch_began(response.header(), self.known) {
            self.doubt(id);
        }
        let watching = self.watches.get_mut(&id)?;
        if response.created() {
            metrics().watch(if watching.opened { Counted::Resumed } else { Counted::Opened });
            watching.denied = false;
            watching.opened = true;
            if watching.next == 0 {
                watching.next = revision + 1;
                // As below, should the receiver be gone.
                let _ = watching.sender.send(WatchMessage::Started(revision));
            }
            return None;
        }
        let events = response.events().iter().filter_map(convert::event);
        let fresh: Vec<_> =
            events.filter(|event| event.kv().mod_revision >= watching.next).collect();
        if let (Some(last), Some(header)) = (fresh.last(), response.header()) {
            self.client.history().heard(header);
            watching.next = last.kv().mod_revision + 1;
            if watching.sender.send(WatchMessage::Events(fresh)).is_err() {
                // The receiver is gone and its cancellation on the way.
                return None;
            }
        }
        None
    }

    /// Has etcd asked, by a linearizable read, whether its revision went back. The answer is noted where
    /// the others are.
    fn doubt(&mut self, id: i64) {
        let Some(watching) = self.watches.get(&id) else { return };
        if std::mem::replace(&mut self.doubted, true) {
            return;
        }
        // A key that may be read, as it may be watched.
        let range = Range::key(watching.spec.key.clone()).count_only();
        let client = self.client.without_watches();
        tokio::spawn(async move {
            loop {
                match client.range(&range, client.deadline_after(None)).await {
                    Err(EtcdError::Unreachable { .. } | EtcdError::Ambiguous { .. }) => {}
                    // Nothing can be learnt where it is refused, or the client was closed.
                    _ => return,
                }
            }
        });
    }

    fn first_denial(&mut self, id: i64) -> bool {
        self.watches
            .get_mut(&id)
            .is_some_and(|watching| !std::mem::replace(&mut watching.denied, true))
    }

    fn canceled(&mut self, id: i64, response: &WatchResponse) -> Option<End> {
        let fatal = if response.compact_revision() > 0 {
            // The header's revision is 0 here: never store it (etcd issue 8668).
            WatchMessage::Compacted { oldest: response.compact_revision() }
        } else {
            let has_user = self.connection.user.is_some();
            let kind = match classify_message(response.cancel_reason()) {
                Some(Verdict::StaleToken) if has_user => return Some(End::StaleToken),
                Some(Verdict::StaleToken) => Refusal::AuthenticationFailed,
                // Until 3.5.3 etcd says this of a watch whose token is stale.
                Some(Verdict::Final(Refusal::PermissionDenied))
                    if has_user && self.first_denial(id) =>
                {
                    return Some(End::StaleToken);
                }
                Some(Verdict::Final(kind)) => kind,
                // Our own cancellation, confirmed.
                _ if !self.watches.contains_key(&id) => return None,
                _ => return Some(End::Broken),
            };
            // The first words are those of etcd's own client.
            let reason = response.cancel_reason();
            let text = reason.split_once(" desc = ").map_or(reason, |(_, text)| text);
            WatchMessage::Failed(self.connection.refusal(kind, text))
        };
        if let Some(watching) = self.watches.remove(&id) {
            let compacted = matches!(fatal, WatchMessage::Compacted { .. });
            metrics().watch(if compacted { Counted::Compacted } else { Counted::Refused });
            let _ = watching.sender.send(fatal);
        }
        None
    }
}

fn end_of(error: &etcd_client::Error) -> End {
    match classify(error) {
        Verdict::StaleToken | Verdict::Final(Refusal::AuthenticationFailed) => End::StaleToken,
        _ => End::Broken,
    }
}

async fn send(
    requests: &mut WatchRequestSender,
    key: Vec<u8>,
    options: WatchOptions,
) -> Result<(), ()> {
    match tokio::time::timeout(OPEN, requests.watch(key, Some(options))).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(()),
    }
}

fn options(id: i64, watching: &Watching) -> (Vec<u8>, WatchOptions) {
    // Versions before 3.4.34 and 3.5.16 lose a deletion at the very revision that is compacted when a watch
    // begins there (etcd issue 18089); of one that begins earlier they say that it is compacted. What comes
    // twice is dropped. Not when it is new: a watch that begins in the past waits 100 ms for its events.
    let start = if watching.opened { (watching.next - 1).max(1) } else { watching.next };
    let mut options = WatchOptions::new().with_watch_id(id).with_start_revision(start);
    if let Some(end) = &watching.spec.range_end {
        options = options.with_range(end.clone());
    }
    if watching.spec.deletes_only {
        options = options.with_filters([WatchFilterType::NoPut]);
    }
    if watching.spec.with_previous {
        options = options.with_prev_key();
    }
    (watching.spec.key.clone(), options)
}
