//! One client: its queries one after the other, each answered before the next one is looked at.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::codec::{Answer, Decoder, Malformed, NOT_READY, READY};
use super::query::{Kind, Query};
use super::round::{Course, Round};
use crate::store::StoreError;

/// What torch's clients begin with.
const MAGIC: u32 = 0x3C85_F7CE;
const READ: usize = 16 << 10;
/// How long a wait that has to end may still read.
const ENDING: Duration = Duration::from_secs(10);

/// Why a connection is ended by this side. The texts go on after "The connection of a worker was ended: ".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    #[error("it sent {0}")]
    Malformed(#[from] Malformed),
    #[error("it did not begin as clients of torch's TCPStore do")]
    Stranger,
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("it was another user's ({0})")]
    OtherUser(String),
}

/// The client has gone, or this side goes.
struct Over;

struct Connection<'a> {
    stream: &'a TcpStream,
    decoder: Decoder,
    /// One that came while another was waited for.
    ahead: Option<Query>,
    closing: watch::Receiver<bool>,
}

/// Answers a client until it goes, or `closing` turns true.
pub async fn serve(
    stream: &TcpStream,
    round: &std::sync::Arc<Round>,
    closing: watch::Receiver<bool>,
) -> Result<(), Ended> {
    let (decoder, ahead) = Default::default();
    let mut connection = Connection { stream, decoder, ahead, closing };
    let mut validated = false;
    while let Some(query) = connection.query().await? {
        if !validated {
            if query.kind != Kind::Validate || u32::from_ne_bytes(query.word) != MAGIC {
                return Err(Ended::Stranger);
            }
            validated = true;
            continue;
        }
        // A read of etcd is not dropped when the client goes: see `Round::wait`.
        let answer = match round.answer(query).await? {
            Course::Now(answer) => answer,
            Course::AfterWait(keys) => match connection.wait(round, keys).await? {
                Some(answer) => answer,
                None => return Ok(()),
            },
        };
        if connection.send(&answer).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

impl Connection<'_> {
    /// The next query; `None` at the end.
    async fn query(&mut self) -> Result<Option<Query>, Malformed> {
        match self.ahead.take() {
            Some(query) => Ok(Some(query)),
            None => self.read().await,
        }
    }

    /// Reads a query. Whatever has been read is kept where the future is dropped.
    async fn read(&mut self) -> Result<Option<Query>, Malformed> {
        loop {
            if let Some(query) = self.decoder.next()? {
                return Ok(Some(query));
            }
            tokio::select! {
                // First: what comes after the end of a round is not for its store.
                biased;
                _ = self.closing.wait_for(|closing| *closing) => return Ok(None),
                ready = self.stream.readable() => if ready.is_err() { return Ok(None) },
            }
            let mut buffer = [0; READ];
            match self.stream.try_read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(count) => self.decoder.push(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Ok(None),
            }
        }
    }

    /// Waits for keys until they are there, the client cancels the wait or goes (`None`), or the round is over.
    async fn wait(
        &mut self,
        round: &std::sync::Arc<Round>,
        keys: Vec<Vec<u8>>,
    ) -> Result<Option<Answer>, Ended> {
        let (end, ended) = watch::channel(None);
        let waiting = std::sync::Arc::clone(round);
        let mut wait = tokio::spawn(async move { waiting.wait(keys, ended).await });
        let mut abort = round.abort.clone();
        loop {
            // Without a second one ahead, a client that sends and never waits is not read any further.
            let may_read = self.ahead.is_none();
            tokio::select! {
                biased;
                done = &mut wait => return match done {
                    Ok(done) => done.map(|()| Some(READY)).map_err(Ended::from),
                    // It panicked, or the runtime ends.
                    Err(_) => Ok(None),
                },
                reason = reason(&mut abort) => {
                    end.send_replace(Some(reason.clone()));
                    // It looks once more, as the keys may have come before the loss.
                    return match tokio::time::timeout(ENDING, &mut wait).await {
                        Ok(Ok(Ok(()))) => Ok(Some(READY)),
                        Ok(Ok(Err(error))) => Err(error.into()),
                        Ok(Err(_)) | Err(_) => {
                            wait.abort();
                            Err(StoreError::MemberLost { reason }.into())
                        }
                    };
                }
                next = self.read(), if may_read => match next {
                    Ok(Some(query)) if query.kind == Kind::CancelWait => {
                        leave(wait, &end, "the client has cancelled it");
                        return Ok(Some(NOT_READY));
                    }
                    Ok(Some(query)) => self.ahead = Some(query),
                    Ok(None) => {
                        leave(wait, &end, "the client has gone");
                        return Ok(None);
                    }
                    Err(malformed) => {
                        leave(wait, &end, "the client is cut off");
                        return Err(malformed.into());
                    }
                },
            }
        }
    }

    async fn send(&self, answer: &Answer) -> Result<(), Over> {
        let bytes = answer.bytes();
        let mut rest = bytes.as_slice();
        let mut closing = self.closing.clone();
        while !rest.is_empty() {
            match self.stream.try_write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => tokio::select! {
                    ready = self.stream.writable() => if ready.is_err() { return Err(Over) },
                    _ = closing.wait_for(|closing| *closing) => return Err(Over),
                },
                Err(_) => return Err(Over),
            }
        }
        Ok(())
    }
}

/// Has a wait end by itself, and nobody waits for that.
fn leave(
    mut wait: JoinHandle<Result<(), StoreError>>,
    end: &watch::Sender<Option<String>>,
    reason: &str,
) {
    end.send_replace(Some(reason.to_string()));
    tokio::spawn(async move {
        if tokio::time::timeout(ENDING, &mut wait).await.is_err() {
            wait.abort();
        }
    });
}

/// Why the round's waits end, once there is a reason.
async fn reason(abort: &mut Option<super::round::Abort>) -> String {
    if let Some(abort) = abort
        && let Ok(reason) = abort.wait_for(Option::is_some).await
    {
        return reason.clone().unwrap_or_default();
    }
    std::future::pending().await
}
