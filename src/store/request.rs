//! What a store is asked for, and what it answers, as values: the one way in for all who use a store.

use std::time::Duration;

use super::core::Store;
use super::error::StoreError;

/// One operation of torch's `Store`. A `timeout` is how long the operation may wait for others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreRequest {
    Set {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Get {
        key: Vec<u8>,
        timeout: Duration,
    },
    Add {
        key: Vec<u8>,
        n: i64,
    },
    Check {
        keys: Vec<Vec<u8>>,
    },
    Wait {
        keys: Vec<Vec<u8>>,
        timeout: Duration,
    },
    CompareSet {
        key: Vec<u8>,
        expected: Vec<u8>,
        desired: Vec<u8>,
    },
    DeleteKey {
        key: Vec<u8>,
    },
    NumKeys,
    ListKeys,
    Append {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    MultiGet {
        keys: Vec<Vec<u8>>,
        timeout: Duration,
    },
    MultiSet {
        keys: Vec<Vec<u8>>,
        values: Vec<Vec<u8>>,
    },
    QueuePush {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    /// Without a `timeout` an empty queue is an error at once.
    QueuePop {
        key: Vec<u8>,
        timeout: Option<Duration>,
    },
    QueueLen {
        key: Vec<u8>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreReply {
    Done,
    Bool(bool),
    Number(i64),
    Value(Vec<u8>),
    Values(Vec<Vec<u8>>),
}

impl Store {
    /// Runs one operation. `request_timeout` limits what does not wait for others.
    pub async fn handle(
        &self,
        request: StoreRequest,
        request_timeout: Duration,
    ) -> Result<StoreReply, StoreError> {
        use StoreReply::{Bool, Done, Number, Value, Values};
        use StoreRequest as Ask;
        let deadline = self.client.deadline_after(Some(request_timeout));
        Ok(match request {
            Ask::Set { key, value } => {
                self.set(&key, &value, deadline).await?;
                Done
            }
            Ask::Get { key, timeout } => Value(self.get(&key, timeout).await?),
            Ask::Add { key, n } => Number(self.add(&key, n, deadline).await?),
            Ask::Check { keys } => Bool(self.check(&keys, deadline).await?),
            Ask::Wait { keys, timeout } => {
                self.wait(&keys, timeout).await?;
                Done
            }
            Ask::CompareSet { key, expected, desired } => {
                Value(self.compare_set(&key, &expected, &desired, deadline).await?)
            }
            Ask::DeleteKey { key } => Bool(self.delete_key(&key, deadline).await?),
            Ask::NumKeys => Number(self.num_keys(deadline).await?),
            Ask::ListKeys => Values(self.list_keys(deadline).await?),
            Ask::Append { key, value } => {
                self.append(&key, &value, deadline).await?;
                Done
            }
            Ask::MultiGet { keys, timeout } => Values(self.multi_get(&keys, timeout).await?),
            Ask::MultiSet { keys, values } => {
                self.multi_set(&keys, &values, deadline).await?;
                Done
            }
            Ask::QueuePush { key, value } => {
                self.queue_push(&key, &value, deadline).await?;
                Done
            }
            Ask::QueuePop { key, timeout } => {
                Value(self.queue_pop(&key, timeout, request_timeout).await?)
            }
            Ask::QueueLen { key } => Number(self.queue_len(&key, deadline).await?),
        })
    }
}
