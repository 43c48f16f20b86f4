//! The port at which an agent serves its workers, round after round.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;

use super::admit::user_of;
use super::connection::{Ended, serve};
use super::remarks::Remarks;
use super::round::Round;

/// Where no further connection can be taken, such as where there are no file descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// A round, and what ends its connections.
struct Served {
    round: Arc<Round>,
    closing: watch::Sender<bool>,
}

/// A server on this host's loopback. It ends when it is dropped.
pub struct Gateway {
    address: SocketAddr,
    served: watch::Sender<Option<Arc<Served>>>,
    remarks: Arc<Remarks>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Gateway {
    /// Listens at the first of the ports that is free; 0 is any. Must be called within the runtime. With `user` nobody
    /// else is answered.
    pub fn open(ports: &[u16], user: Option<u32>) -> std::io::Result<Self> {
        let addresses: Vec<_> =
            ports.iter().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, *port))).collect();
        let listener = TcpListener::bind(addresses.as_slice())?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let served = watch::Sender::new(None);
        let remarks = Arc::new(Remarks::default());
        let accepting = tokio::spawn(accept(listener, served.subscribe(), remarks.clone(), user));
        Ok(Self { address, served, remarks, accepting })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves this round from now on. Connections of the last one are ended: its workers have gone, and its keys go.
    pub fn serve(&self, round: Round) {
        let served = Served { round: Arc::new(round), closing: watch::Sender::new(false) };
        end(self.served.send_replace(Some(Arc::new(served))));
    }

    /// What people should know of, since the last time.
    pub fn remarks(&self) -> Vec<String> {
        self.remarks.take()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.accepting.abort();
        end(self.served.send_replace(None));
    }
}

fn end(served: Option<Arc<Served>>) {
    if let Some(served) = served {
        served.closing.send_replace(true);
    }
}

async fn accept(
    listener: tokio::net::TcpListener,
    served: watch::Receiver<Option<Arc<Served>>>,
    remarks: Arc<Remarks>,
    user: Option<u32>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let served = served.borrow().clone();
                tokio::spawn(converse(stream, from, served, remarks.clone(), user));
            }
            Err(error) => {
                remarks.add(format!("No connection of a worker can be taken: {error}"));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn converse(
    stream: TcpStream,
    from: SocketAddr,
    served: Option<Arc<Served>>,
    remarks: Arc<Remarks>,
    user: Option<u32>,
) {
    // Before the first round there are no workers.
    let Some(served) = served else { return };
    // Answers are small, and each is waited for.
    let _ = stream.set_nodelay(true);
    let ended = match admit(&stream, from, user).await {
        Ok(()) => serve(&stream, &served.round, served.closing.subscribe()).await,
        refused => refused,
    };
    if let Err(ended) = ended {
        remarks
            .add(format!("The connection of a worker (port {}) was ended: {ended}", from.port()));
    }
    // A process that was forked meanwhile has the socket, too: dropping it would tell the client nothing.
    if let Ok(stream) = stream.into_std() {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}

async fn admit(stream: &TcpStream, from: SocketAddr, user: Option<u32>) -> Result<(), Ended> {
    let Some(user) = user else { return Ok(()) };
    let Ok(own) = stream.local_addr() else { return Ok(()) };
    let found = tokio::task::spawn_blocking(move || user_of(from, own)).await;
    match found {
        Ok(Ok(Some(other))) if other == user => Ok(()),
        Ok(Ok(Some(other))) => Err(Ended::OtherUser(format!("user id {other}, and not {user}"))),
        Ok(Ok(None)) => Err(Ended::OtherUser("the kernel does not know whose it is".into())),
        Ok(Err(error)) => Err(Ended::OtherUser(format!("the kernel does not tell whose: {error}"))),
        Err(_) => Err(Ended::OtherUser("the runtime is ending".into())),
    }
}
