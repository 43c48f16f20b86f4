//! What the wire shows of a connection. Errors lose their types on their way through h2 and hyper, so a stream
//! notes them below.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What an answer begins with that is one of HTTP/1.
const HTTP1: &[u8] = b"HTTP/1";

/// As many bytes tell what an answer is.
const FIRST: usize = 16;

/// What has been seen so far, shared by the streams of one connection.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<SeenCells>);

#[derive(Debug, Default)]
struct SeenCells {
    /// The first bytes on the TCP connection itself.
    first: OnceLock<FirstBytes>,
    /// How the stream ended, that of TLS where there is TLS.
    broke: OnceLock<Broke>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstBytes {
    Http1,
    TlsRecord,
    Other,
}

#[derive(Debug)]
pub enum Broke {
    Tls(rustls::Error),
    /// Closed or reset by the other side.
    Closed,
    Io,
}

impl FirstBytes {
    fn of(bytes: &[u8]) -> Self {
        match bytes {
            // A handshake or an alert of any version.
            [0x15 | 0x16, 0x03, ..] => Self::TlsRecord,
            _ if bytes.starts_with(HTTP1) => Self::Http1,
            _ => Self::Other,
        }
    }
}

impl Broke {
    pub fn of(error: &io::Error) -> Self {
        if let Some(error) = tls_error(error) {
            return Self::Tls(error.clone());
        }
        match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Io,
        }
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

impl Seen {
    pub fn first(&self) -> Option<FirstBytes> {
        self.0.first.get().copied()
    }

    pub fn broke(&self) -> Option<&Broke> {
        self.0.broke.get()
    }
}

/// A stream that notes what it shows.
pub struct Observed<S> {
    pub stream: S,
    pub seen: Seen,
    /// Its end shows as that of the stream above.
    pub carries_tls: bool,
}

impl<S> Observed<S> {
    fn ended(&self, how: Broke) {
        if !self.carries_tls {
            // A second end tells no more than the first.
            let _ = self.seen.0.broke.set(how);
        }
    }
}

impl<S: AsyncRead + Unpin> Observed<S> {
    /// What came of a write, after a note of its failure: it may be the first to find the end. The other side may
    /// have said why before it closed, and nothing reads that any more.
    fn wrote<T>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &outcome {
            let (mut bytes, seen) = ([0; FIRST], self.seen.clone());
            let mut unread = ReadBuf::new(&mut bytes);
            let read = Pin::new(&mut self.stream).poll_read(cx, &mut unread);
            if let (Poll::Ready(Ok(())), [_, ..]) = (read, unread.filled()) {
                // What was read before is what the answer begins with.
                let _ = seen.0.first.set(FirstBytes::of(unread.filled()));
            }
            self.ended(Broke::of(error));
        }
        outcome
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        let fresh = &buf.filled()[before..];
        match &outcome {
            Err(error) => self.ended(Broke::of(error)),
            Ok(()) if fresh.is_empty() => self.ended(Broke::Closed),
            Ok(()) if self.seen.0.first.get().is_none() => {
                let _ = self.seen.0.first.set(FirstBytes::of(fresh));
            }
            Ok(()) => {}
        }
        Poll::Ready(outcome)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(cx, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.wrote(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// A server of HTTP/1 answers and closes; the next frame may find that before anything has read the answer.
    #[tokio::test]
    async fn an_answer_is_seen_although_a_write_finds_the_end_first() {
        let (stream, mut peer) = tokio::io::duplex(64);
        peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        drop(peer);
        let seen = Seen::default();
        let mut observed = Observed { stream, seen: seen.clone(), carries_tls: false };
        observed.write_all(b"a frame").await.unwrap_err();
        assert_eq!(seen.first(), Some(FirstBytes::Http1));
        assert!(matches!(seen.broke(), Some(Broke::Closed)));
    }
}
