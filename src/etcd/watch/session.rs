//! One stream of watches, from its opening to its end.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use etcd_client::{WatchFilterType, WatchOptions, WatchResponse};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::message::{Command, WatchMessage, Watching};
use super::names::Names;
use crate::etcd::cluster::{Backoff, Cluster};
use crate::etcd::convert;
use crate::etcd::error::{EtcdError, Refusal};
use crate::etcd::history::Known;
use crate::etcd::kv::Range;
use crate::etcd::metrics::{WatchEvent, metrics};
use crate::etcd::requests;
use crate::etcd::transport::Connection;
use crate::etcd::verdict::{Verdict, classify, classify_message};

/// What the opening of a stream may take, at first: twice as long each time that the member proves to be there.
pub const OPEN: Duration = Duration::from_secs(5);
const OPEN_AT_MOST: Duration = Duration::from_secs(80);
/// So often it is tried at a member that proves to be there.
const TRIES: u32 = 2;

/// How long the opening of a stream, or of a watch on it, may take.
pub struct Patience {
    limit: Duration,
    /// In a row.
    late: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self { limit: OPEN, late: 0 }
    }
}

impl Patience {
    /// A watch on an open stream may take longer: thousands may be opened at once.
    fn until(&self) -> Instant {
        Instant::now() + 3 * self.limit
    }

    /// Whether it has been so often enough.
    pub fn was_in_vain(&mut self) -> bool {
        self.limit = (self.limit * 2).min(OPEN_AT_MOST);
        self.late += 1;
        self.late.is_multiple_of(TRIES)
    }
}

pub enum End {
    Broken,
    /// It could not be opened in time.
    Late,
    StaleToken,
    HubGone,
}

/// What came of a look at what a watch was denied: the refusal, or nothing.
type Denial = (i64, Option<EtcdError>);

/// One stream, from its opening to its end.
pub struct Session<'a> {
    cluster: &'a Cluster,
    connection: &'a Connection,
    watches: &'a mut BTreeMap<i64, Watching>,
    /// Watches to open.
    wanted: VecDeque<i64>,
    /// Watches that the server has not confirmed: etcd answers in this order, and a refusal names none.
    pending: VecDeque<i64>,
    names: Names,
    /// Watches to cancel, by the server's ids.
    unwanted: Vec<i64>,
    /// What was known when the stream was opened.
    known: Known,
    /// Whether etcd is being asked if its history is the one that is known.
    doubted: bool,
    denials: (UnboundedSender<Denial>, UnboundedReceiver<Denial>),
}

impl<'a> Session<'a> {
    pub fn new(
        cluster: &'a Cluster,
        connection: &'a Connection,
        watches: &'a mut BTreeMap<i64, Watching>,
    ) -> Self {
        Self {
            cluster,
            connection,
            wanted: watches.keys().copied().collect(),
            watches,
            pending: VecDeque::new(),
            names: Names::Unknown,
            unwanted: Vec::new(),
            known: cluster.history().known(),
            doubted: false,
            denials: unbounded_channel(),
        }
    }

    pub async fn run(
        &mut self,
        commands: &mut UnboundedReceiver<Command>,
        backoff: &mut Backoff,
        open: &mut Patience,
    ) -> End {
        let Some((key, opened)) = self.next_to_open() else { return End::Broken };
        let mut stub = self.connection.watch();
        let stream = tokio::time::timeout(open.limit, stub.watch(key, Some(opened))).await;
        let (mut requests, mut responses) = match stream {
            Ok(Ok(stream)) => stream.split(),
            Ok(Err(error)) => return end_of(&error),
            Err(_) => return End::Late,
        };
        // When the stream has been silent for too long while something is pending.
        let mut late = open.until();
        loop {
            while let Some((key, options)) = self.next_to_open() {
                if send(requests.watch(key, Some(options))).await.is_err() {
                    return End::Broken;
                }
            }
            for id in std::mem::take(&mut self.unwanted) {
                if send(requests.cancel(id)).await.is_err() {
                    return End::Broken;
                }
            }
            tokio::select! {
                command = commands.recv() => match command {
                    None => return End::HubGone,
                    Some(Command::Add(_, watching)) if watching.history != self.cluster.history().number() => {
                        let _ = watching.sender.send(WatchMessage::HistoryLost);
                    }
                    Some(Command::Add(id, watching)) => {
                        self.watches.insert(id, watching);
                        self.wanted.push_back(id);
                        if self.pending.is_empty() {
                            late = open.until();
                        }
                    }
                    Some(Command::Cancel(id)) => {
                        if self.watches.remove(&id).is_some() {
                            self.unwanted.extend(self.names.forget(id));
                        }
                    }
                },
                () = tokio::time::sleep_until(late), if !self.pending.is_empty() => return End::Late,
                // Cannot be `None`: a sender is ours.
                Some((id, refusal)) = self.denials.1.recv() => match refusal {
                    // It may be watched by now, or the token was stale and is renewed.
                    None => return End::StaleToken,
                    Some(error) => self.refused(id, WatchMessage::Failed(error)),
                },
                response = responses.message() => match response {
                    Err(error) => return end_of(&error),
                    Ok(None) => return End::Broken,
                    Ok(Some(response)) => {
                        self.connection.health.note_answer(!response.canceled());
                        late = open.until();
                        // A refusal is an answer too, but no success.
                        if !response.canceled() {
                            backoff.reset();
                            *open = Patience::default();
                        }
                        if let Some(end) = self.take(response) {
                            return end;
                        }
                    }
                },
            }
        }
    }

    /// The next watch to open now.
    fn next_to_open(&mut self) -> Option<(Vec<u8>, WatchOptions)> {
        while self.pending.is_empty() || matches!(self.names, Names::Ours) {
            let id = self.wanted.pop_front()?;
            // Else it was cancelled before.
            if let Some(watching) = self.watches.get(&id) {
                self.pending.push_back(id);
                return Some(options(id, watching));
            }
        }
        None
    }

    /// Takes in what has come: `None` where the stream goes on.
    fn take(&mut self, response: WatchResponse) -> Option<End> {
        let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
        let theirs = response.watch_id();
        let id = if response.created() {
            // etcd confirms nothing that it was not asked for.
            let asked = self.pending.pop_front()?;
            // A refusal names none.
            let id = if theirs < 0 { asked } else { self.names.learn(theirs, asked) };
            if !self.watches.contains_key(&id) {
                // It was cancelled before it was confirmed.
                self.unwanted.extend(self.names.forget(id));
                return None;
            }
            id
        } else {
            self.names.ours(theirs)?
        };
        if response.canceled() {
            return self.canceled(id, &response);
        }
        if response.created() && !self.cluster.history().watch_began(response.header(), self.known)
        {
            self.doubt(id);
        }
        // Else it was cancelled here, and etcd has not heard of that yet.
        let watching = self.watches.get_mut(&id)?;
        if response.created() {
            metrics().watch(if watching.opened { WatchEvent::Resumed } else { WatchEvent::Opened });
            watching.opened = true;
            if watching.next == 0 {
                watching.next = revision + 1;
                // As below, should the receiver be gone.
                let _ = watching.sender.send(WatchMessage::Started(revision));
            }
            return None;
        }
        let next = watching.next;
        let header = response.header().cloned();
        let fresh: Vec<_> =
            convert::events(response).filter(|event| event.kv().mod_revision >= next).collect();
        if let (Some(last), Some(header)) = (fresh.last(), header) {
            self.cluster.history().heard(&header, self.known);
            watching.next = last.kv().mod_revision + 1;
            // Where it fails the receiver is gone and its cancellation on the way.
            let _ = watching.sender.send(WatchMessage::Events(fresh));
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
        let cluster = self.cluster.clone();
        tokio::spawn(async move {
            loop {
                match requests::range(&cluster, &range, cluster.deadline_after(None)).await {
                    Err(EtcdError::Unreachable { .. } | EtcdError::Ambiguous { .. }) => {}
                    // Nothing can be learnt where it is refused, or the client was closed.
                    _ => return,
                }
            }
        });
    }

    /// Until 3.5.3 etcd says "permission denied" of a watch whose token is stale. Of a read it does not: so what
    /// was to be watched is read.
    fn ask_whether_denied(&self, id: i64) {
        let Some(Watching { spec, .. }) = self.watches.get(&id) else { return };
        let (key, range_end) = (spec.key.clone(), spec.range_end.clone());
        let range = Range { key, range_end, limit: 1, ..Range::default() }.keys_only();
        let (cluster, verdicts) = (self.cluster.clone(), self.denials.0.clone());
        tokio::spawn(async move {
            let refusal =
                match requests::range(&cluster, &range, cluster.deadline_after(None)).await {
                    Err(error @ EtcdError::Refused { kind: Refusal::PermissionDenied, .. }) => {
                        Some(error)
                    }
                    _ => None,
                };
            // The session may be over.
            let _ = verdicts.send((id, refusal));
        });
    }

    /// Ends a watch by what etcd has said of it.
    fn refused(&mut self, id: i64, last: WatchMessage) {
        self.names.forget(id);
        if let Some(watching) = self.watches.remove(&id) {
            let compacted = matches!(last, WatchMessage::Compacted { .. });
            metrics().watch(if compacted { WatchEvent::Compacted } else { WatchEvent::Refused });
            let _ = watching.sender.send(last);
        }
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
                Some(Verdict::Final(Refusal::PermissionDenied)) if has_user => {
                    self.ask_whether_denied(id);
                    return None;
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
        self.refused(id, fatal);
        None
    }
}

fn end_of(error: &etcd_client::Error) -> End {
    match classify(error) {
        Verdict::StaleToken | Verdict::Final(Refusal::AuthenticationFailed) => End::StaleToken,
        _ => End::Broken,
    }
}

async fn send(request: impl Future<Output = Result<(), etcd_client::Error>>) -> Result<(), ()> {
    match tokio::time::timeout(OPEN, request).await {
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
