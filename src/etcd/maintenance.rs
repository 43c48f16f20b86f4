//! What operators ask of a cluster: what each member says of itself, and alarms.

use etcd_client::{AlarmAction, AlarmType, ResponseHeader};
use tokio::time::Instant;

use super::call::{Repeat, call};
use super::client::Client;
use super::cluster::Cluster;
use super::endpoint::Endpoint;
use super::error::EtcdError;
use super::metrics::Rpc;

/// What one member says of itself. It answers without the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberStatus {
    pub version: String,
    pub cluster: u64,
    pub member: u64,
    pub revision: i64,
    /// The member that it takes for the leader; 0 for none.
    pub leader: u64,
    pub is_learner: bool,
    pub raft_term: u64,
    pub raft_index: u64,
    pub raft_applied_index: u64,
    /// In bytes, of the file.
    pub db_size: i64,
    /// In bytes, without what defragmentation would free.
    pub db_size_in_use: i64,
    /// In bytes; 0 where it does not say (before etcd 3.6).
    pub db_quota: i64,
    pub errors: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    pub member: u64,
    pub kind: &'static str,
}

impl Client {
    /// Of that endpoint, also where its member has no leader or is a learner; of any that serves without one.
    pub async fn status(
        &self,
        endpoint: Option<Endpoint>,
        deadline: Instant,
    ) -> Result<MemberStatus, EtcdError> {
        match endpoint {
            None => status(self.cluster(), deadline).await,
            endpoint => status(&self.apart(endpoint, true), deadline).await,
        }
    }

    pub async fn version(&self, deadline: Instant) -> Result<String, EtcdError> {
        Ok(status(self.cluster(), deadline).await?.version)
    }

    pub async fn alarms(&self, deadline: Instant) -> Result<Vec<Alarm>, EtcdError> {
        call(self.cluster(), Rpc::Alarm, Repeat::Read, deadline, |connection| async move {
            let response =
                connection.client().alarm(AlarmAction::Get, AlarmType::None, None).await?;
            let alarms = response.alarms().iter().map(|alarm| Alarm {
                member: alarm.member_id(),
                kind: match alarm.alarm() {
                    AlarmType::None => "NONE",
                    AlarmType::Nospace => "NOSPACE",
                    AlarmType::Corrupt => "CORRUPT",
                },
            });
            Ok(alarms.collect())
        })
        .await
    }
}

async fn status(cluster: &Cluster, deadline: Instant) -> Result<MemberStatus, EtcdError> {
    call(cluster, Rpc::Status, Repeat::Read, deadline, |connection| async move {
        let told = connection.client().status().await?;
        let header = told.header();
        Ok(MemberStatus {
            version: told.version().into(),
            cluster: header.map_or(0, ResponseHeader::cluster_id),
            member: header.map_or(0, ResponseHeader::member_id),
            revision: header.map_or(0, ResponseHeader::revision),
            leader: told.leader(),
            is_learner: told.is_learner(),
            raft_term: told.raft_term(),
            raft_index: told.raft_index(),
            raft_applied_index: told.raft_applied_index(),
            db_size: told.db_size(),
            db_size_in_use: told.raft_used_db_size(),
            db_quota: told.db_size_quota(),
            errors: told.errors().to_vec(),
        })
    })
    .await
}
