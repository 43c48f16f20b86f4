//! The client: a cluster and the watches of one user of it.

use std::time::Duration;

use tokio::time::Instant;

use super::call::Repeat;
use super::cluster::{Cluster, Endpoints};
use super::config::Config;
use super::endpoint::Endpoint;
use super::error::{EtcdError, Refusal};
use super::kv::{Range, RangeReply, Txn, TxnReply};
use super::nospace;
use super::requests;
use super::watch::{WatchHub, WatchReceiver, WatchSpec};

/// A connection to a cluster. Clones share it.
#[derive(Clone)]
pub struct Client {
    cluster: Cluster,
    watches: WatchHub,
}

impl Client {
    /// Does no I/O: the first call connects.
    pub fn new(config: Config) -> Self {
        let cluster = Cluster::new(config);
        Self { watches: WatchHub::new(cluster.clone()), cluster }
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A way of its own to the member of that endpoint, or to any of them without one; see [`Config::as_it_is`].
    pub(super) fn apart(&self, endpoint: Option<Endpoint>, as_it_is: bool) -> Cluster {
        let known = self.cluster.endpoints();
        let apart = Cluster::new(Config { as_it_is, ..self.config().clone() });
        apart.set_endpoints(match endpoint {
            Some(endpoint) => Endpoints::new(vec![endpoint], Vec::new()),
            None => known.as_ref().clone(),
        });
        apart
    }

    /// Replaces the endpoints, for all that share the connection. Does no I/O: a connection goes on for as long as it
    /// works, watches and leases with it, and then one of these takes its place. Each attempt to connect tries all of
    /// `first`, from any of them on, and then some of `rest`.
    pub fn set_endpoints(&self, first: Vec<Endpoint>, rest: Vec<Endpoint>) {
        self.cluster.set_endpoints(Endpoints::new(first, rest));
    }

    pub fn config(&self) -> &Config {
        self.cluster.config()
    }

    pub fn deadline_after(&self, timeout: Option<Duration>) -> Instant {
        self.cluster.deadline_after(timeout)
    }

    pub async fn txn(
        &self,
        txn: &Txn,
        repeat: Repeat,
        deadline: Instant,
    ) -> Result<TxnReply, EtcdError> {
        let answer = requests::txn(&self.cluster, txn, repeat, deadline).await;
        if let Err(EtcdError::Refused { kind: Refusal::NoSpace, .. }) = answer
            && let Some(answer) = nospace::apart(&self.cluster, txn, repeat, deadline).await
        {
            return answer;
        }
        answer
    }

    /// Answers with the revision the range was read at.
    pub async fn range(
        &self,
        range: &Range,
        deadline: Instant,
    ) -> Result<(i64, RangeReply), EtcdError> {
        requests::range(&self.cluster, range, deadline).await
    }

    /// See [`requests::grant_new`].
    pub async fn grant_new(
        &self,
        first: i64,
        ttl: Duration,
        deadline: Instant,
    ) -> Result<(i64, Duration), EtcdError> {
        requests::grant_new(&self.cluster, first, ttl, deadline).await
    }

    /// See [`requests::grant`].
    pub async fn grant(
        &self,
        id: i64,
        ttl: Duration,
        deadline: Instant,
    ) -> Result<Duration, EtcdError> {
        requests::grant(&self.cluster, id, ttl, deadline).await
    }

    /// A missing lease counts as revoked.
    pub async fn revoke(&self, id: i64, deadline: Instant) -> Result<(), EtcdError> {
        requests::revoke(&self.cluster, id, deadline).await
    }

    /// The remaining and the granted time of a lease; `None` when etcd does not have it.
    pub async fn time_to_live(
        &self,
        id: i64,
        deadline: Instant,
    ) -> Result<Option<(Duration, Duration)>, EtcdError> {
        requests::time_to_live(&self.cluster, id, deadline).await
    }

    /// Renews a lease once; `false` when it is gone.
    pub async fn renew_once(&self, id: i64, deadline: Instant) -> Result<bool, EtcdError> {
        requests::renew_once(&self.cluster, id, deadline).await
    }

    /// Opens a watch that outlives its connection; dropping the receiver ends it.
    pub fn watch(&self, spec: WatchSpec) -> WatchReceiver {
        self.watches.add(spec)
    }

    /// Ends the connection. Calls under way, which may have taken effect, and later ones fail with
    /// [`EtcdError::Closed`].
    pub fn close(&self) {
        self.cluster.close();
    }
}

impl From<Client> for Cluster {
    fn from(client: Client) -> Self {
        client.cluster
    }
}
