//! The members of a cluster, and changes of them.

use etcd_client::{GetOptions, Member as Told, MemberAddOptions};
use tokio::time::Instant;

use super::call::{Repeat, call};
use super::client::Client;
use super::cluster::Cluster;
use super::endpoint::Endpoint;
use super::error::{EtcdError, Refusal};
use super::metrics::Rpc;
use super::transport::Connection;
use super::verdict::{Verdict, classify};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: u64,
    /// Empty until it has started for the first time.
    pub name: String,
    pub peer_urls: Vec<String>,
    /// None until it has started for the first time.
    pub client_urls: Vec<String>,
    pub is_learner: bool,
}

/// Whose list of the members is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// The cluster's: a majority is needed.
    Cluster,
    /// What a member has applied by now. It needs no leader, but it has to have had one since it started: until then etcd
    /// takes connections of clients and answers nothing (its `ReadyNotify`). The peer port's `/members` answers before.
    Member,
}

impl Client {
    /// Of that endpoint's member; of any without one.
    pub async fn member_list(
        &self,
        endpoint: Option<Endpoint>,
        knowledge: Knowledge,
        deadline: Instant,
    ) -> Result<Vec<Member>, EtcdError> {
        match (endpoint, knowledge) {
            (None, Knowledge::Cluster) => list(self.cluster(), knowledge, deadline).await,
            (endpoint, _) => {
                let apart = self.apart(endpoint, knowledge == Knowledge::Member);
                list(&apart, knowledge, deadline).await
            }
        }
    }

    /// As the member knows them that the client is connected to. It has a leader, and may be behind the others.
    pub async fn members(&self, deadline: Instant) -> Result<Vec<Member>, EtcdError> {
        list(self.cluster(), Knowledge::Member, deadline).await
    }

    pub async fn member_urls(&self, deadline: Instant) -> Result<Vec<String>, EtcdError> {
        let members = self.members(deadline).await?;
        Ok(members.into_iter().flat_map(|member| member.client_urls).collect())
    }

    /// Gives the id of the new member and all members. Each attempt would make another id, so it is not sent again after
    /// an answer that was lost: whoever made the peer URLs finds the member by them.
    pub async fn member_add(
        &self,
        peer_urls: Vec<String>,
        is_learner: bool,
        deadline: Instant,
    ) -> Result<(u64, Vec<Member>), EtcdError> {
        let urls = &peer_urls;
        let added = call(self.cluster(), Rpc::MemberAdd, Repeat::Never, deadline, |connection| {
            let mut options = MemberAddOptions::new();
            if is_learner {
                options = options.with_is_learner();
            }
            async move {
                let response = connection.client().member_add(urls.clone(), Some(options)).await?;
                let id = response.member().map_or(0, Told::id);
                Ok((id, response.member_list().iter().map(member).collect()))
            }
        });
        added.await
    }

    /// Makes a voter of a learner. One that votes already counts as promoted. Gives all members.
    pub async fn member_promote(
        &self,
        id: u64,
        deadline: Instant,
    ) -> Result<Vec<Member>, EtcdError> {
        let promoted = call(
            self.cluster(),
            Rpc::MemberPromote,
            Repeat::Safely,
            deadline,
            |connection| async move {
                let response = connection.client().member_promote(id).await?;
                Ok(response.members().iter().map(member).collect())
            },
        );
        match promoted.await {
            Err(EtcdError::Refused { kind: Refusal::NotLearner, .. }) => {
                list(self.cluster(), Knowledge::Cluster, deadline).await
            }
            other => other,
        }
    }

    /// A missing one counts as removed: etcd uses no id twice. Gives all members.
    pub async fn member_remove(
        &self,
        id: u64,
        deadline: Instant,
    ) -> Result<Vec<Member>, EtcdError> {
        let removed = call(
            self.cluster(),
            Rpc::MemberRemove,
            Repeat::Safely,
            deadline,
            |connection| async move {
                let response = connection.client().member_remove(id).await?;
                Ok(response.members().iter().map(member).collect())
            },
        );
        match removed.await {
            Err(EtcdError::Refused { kind: Refusal::MemberNotFound, .. }) => {
                list(self.cluster(), Knowledge::Cluster, deadline).await
            }
            other => other,
        }
    }
}

async fn list(
    cluster: &Cluster,
    knowledge: Knowledge,
    deadline: Instant,
) -> Result<Vec<Member>, EtcdError> {
    call(cluster, Rpc::MemberList, Repeat::Read, deadline, |connection| async move {
        if knowledge == Knowledge::Cluster {
            catch_up(&connection).await?;
        }
        let response = connection.client().member_list().await?;
        Ok(response.members().iter().map(member).collect())
    })
    .await
}

/// Returns when the member has applied all that the cluster had decided when it was asked, as for any read. What it lists
/// after that is what etcd's own `linearizable` list gives, which etcd-client cannot ask for and etcd 3.4 does not know.
async fn catch_up(connection: &Connection) -> Result<(), etcd_client::Error> {
    let nothing = GetOptions::new().with_count_only();
    match connection.kv().get("\0", Some(nothing)).await {
        // Whether the user may read is looked at when the member has caught up.
        Err(error) if classify(&error) == Verdict::Final(Refusal::PermissionDenied) => Ok(()),
        other => other.map(drop),
    }
}

fn member(told: &Told) -> Member {
    Member {
        id: told.id(),
        name: told.name().into(),
        peer_urls: told.peer_urls().to_vec(),
        client_urls: told.client_urls().to_vec(),
        is_learner: told.is_learner(),
    }
}
