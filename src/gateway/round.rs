//! The store of one round, and the answers from it.

use std::time::Duration;

use tokio::sync::watch;

use super::codec::{Answer, NOT_READY, READY};
use super::query::{Kind, Query};
use crate::etcd::Client;
use crate::store::{Store, StoreError, StoreReply, StoreRequest};

/// Why waits end, once there is a reason.
pub type Abort = watch::Receiver<Option<String>>;

/// Longer than any job. torch's clients cancel a wait themselves when their time is up.
const UNTIL_CANCELLED: Duration = Duration::from_secs(365 * 86400);

/// What the workers of one round share.
pub struct Round {
    client: Client,
    prefix: Vec<u8>,
    lease: i64,
    request_timeout: Duration,
    /// Holds a reason once a member of the round is lost, or the round is over.
    pub(super) abort: Option<Abort>,
    store: Store,
}

/// How a query is answered.
pub(super) enum Course {
    Now(Answer),
    /// Once these keys are there.
    AfterWait(Vec<Vec<u8>>),
}

impl Round {
    /// As [`Store::new`]; `request_timeout` limits what does not wait for others.
    pub fn new(
        client: Client,
        prefix: &[u8],
        lease: i64,
        request_timeout: Duration,
        abort: Option<Abort>,
    ) -> Self {
        // What does not wait is not aborted.
        let store = Store::new(client.clone(), prefix, lease, None);
        Self { client, prefix: prefix.to_vec(), lease, request_timeout, abort, store }
    }

    /// Waits for keys until `abort` holds a reason. The future may only be dropped where it does not read: etcd 3.5.1 ends
    /// with a panic when a transaction that only reads is cancelled. So it is ended by `abort`.
    pub(super) async fn wait(&self, keys: Vec<Vec<u8>>, abort: Abort) -> Result<(), StoreError> {
        let waiting = Store::new(self.client.clone(), &self.prefix, self.lease, Some(abort));
        let wait = StoreRequest::Wait { keys, timeout: UNTIL_CANCELLED };
        waiting.handle(wait, self.request_timeout).await.map(drop)
    }

    pub(super) async fn answer(&self, query: Query) -> Result<Course, StoreError> {
        use StoreRequest as Ask;
        let n = query.number;
        // What the reply of the store is on the wire stands beside what is asked.
        let (request, as_answer): (_, fn(&StoreReply) -> Answer) = match query.kind {
            // The magic number was looked at before.
            Kind::Validate => return Ok(Course::Now(Answer::Nothing)),
            // It has come after the answer to the wait, and is answered as well.
            Kind::CancelWait => return Ok(Course::Now(NOT_READY)),
            Kind::Ping => return Ok(Course::Now(Answer::Word(query.word))),
            Kind::Wait => return Ok(Course::AfterWait(query.texts)),
            Kind::Barrier => return self.barrier(query).await,
            Kind::Get => {
                let value = self.get(query.take::<1>().into()).await?.concat();
                return Ok(Course::Now(Answer::Text(value)));
            }
            Kind::MultiGet => return Ok(Course::Now(Answer::Texts(self.get(query.texts).await?))),
            Kind::QueuePop => {
                let [key] = query.take();
                let popped = self.ask(Ask::QueuePop { key, timeout: None }).await;
                return Ok(Course::Now(Answer::Counted(match popped {
                    Err(StoreError::QueueEmpty { .. }) => Vec::new(),
                    other => values(&other?),
                })));
            }
            Kind::Set => {
                let [key, value] = query.take();
                (Ask::Set { key, value }, nothing)
            }
            Kind::Append => {
                let [key, value] = query.take();
                (Ask::Append { key, value }, nothing)
            }
            Kind::QueuePush => {
                let [key, value] = query.take();
                (Ask::QueuePush { key, value }, nothing)
            }
            Kind::MultiSet => {
                let (keys, values) = pairs(query.texts);
                (Ask::MultiSet { keys, values }, nothing)
            }
            Kind::CompareSet => {
                let [key, expected, desired] = query.take();
                (Ask::CompareSet { key, expected, desired }, text)
            }
            Kind::Check => (Ask::Check { keys: query.texts }, ready),
            Kind::Add => (Ask::Add { key: query.take::<1>().concat(), n }, number),
            Kind::DeleteKey => (Ask::DeleteKey { key: query.take::<1>().concat() }, number),
            Kind::QueueLen => (Ask::QueueLen { key: query.take::<1>().concat() }, number),
            Kind::NumKeys => (Ask::NumKeys, number),
            Kind::ListKeys => (Ask::ListKeys, counted),
        };
        Ok(Course::Now(as_answer(&self.ask(request).await?)))
    }

    async fn ask(&self, request: StoreRequest) -> Result<StoreReply, StoreError> {
        self.store.handle(request, self.request_timeout).await
    }

    /// The values that there are now: clients wait for the keys before they ask. The value of a key that
    /// does not exist, or is a queue, is empty, as at `TCPStore`.
    async fn get(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, StoreError> {
        let timeout = Duration::ZERO;
        let absent = |error| match error {
            StoreError::Timeout { .. } => Ok(StoreReply::Values(vec![Vec::new()])),
            error => Err(error),
        };
        match self.ask(StoreRequest::MultiGet { keys: keys.clone(), timeout }).await {
            Err(StoreError::Timeout { .. }) => {}
            other => return other.map(|reply| values(&reply)),
        }
        let mut found = Vec::new();
        for key in keys {
            let one = self.ask(StoreRequest::Get { key, timeout }).await.or_else(absent)?;
            found.extend(values(&one));
        }
        Ok(found)
    }

    /// Counts this process at the key. Whoever completes the count says so in a queue of its own: queues are no keys that
    /// are counted or listed, and a wait sees them.
    async fn barrier(&self, query: Query) -> Result<Course, StoreError> {
        let (world, [key]) = (query.number, query.take());
        let complete = [&b"\0barrier "[..], world.to_string().as_bytes(), b" ", &key].concat();
        let counted = self.ask(StoreRequest::Add { key, n: 1 }).await?;
        let StoreReply::Number(counted) = counted else { return Ok(Course::Now(NOT_READY)) };
        if counted < world {
            return Ok(Course::AfterWait(vec![complete]));
        }
        let said = StoreRequest::QueueLen { key: complete.clone() };
        // Once: every later process comes through as well.
        if counted == world || self.ask(said).await? == StoreReply::Number(0) {
            self.ask(StoreRequest::QueuePush { key: complete, value: Vec::new() }).await?;
        }
        Ok(Course::Now(READY))
    }
}

fn pairs(texts: Vec<Vec<u8>>) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let mut texts = texts.into_iter();
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    while let (Some(key), Some(value)) = (texts.next(), texts.next()) {
        keys.push(key);
        values.push(value);
    }
    (keys, values)
}

fn values(reply: &StoreReply) -> Vec<Vec<u8>> {
    match reply {
        StoreReply::Value(value) => vec![value.clone()],
        StoreReply::Values(values) => values.clone(),
        StoreReply::Done | StoreReply::Bool(_) | StoreReply::Number(_) => Vec::new(),
    }
}

fn nothing(_: &StoreReply) -> Answer {
    Answer::Nothing
}

fn ready(reply: &StoreReply) -> Answer {
    if *reply == StoreReply::Bool(true) { READY } else { NOT_READY }
}

fn number(reply: &StoreReply) -> Answer {
    Answer::Number(match reply {
        StoreReply::Number(number) => *number,
        StoreReply::Bool(yes) => (*yes).into(),
        StoreReply::Done | StoreReply::Value(_) | StoreReply::Values(_) => 0,
    })
}

fn text(reply: &StoreReply) -> Answer {
    Answer::Text(values(reply).concat())
}

fn counted(reply: &StoreReply) -> Answer {
    Answer::Counted(values(reply))
}
