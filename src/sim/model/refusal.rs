//! How it refuses.

use crate::etcd::{EtcdError, Refusal};

pub fn refused(kind: Refusal, message: &str) -> EtcdError {
    EtcdError::Refused { endpoint: "the model".into(), kind, message: message.into() }
}
