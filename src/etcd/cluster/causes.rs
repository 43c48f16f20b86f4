//! What went wrong last at each endpoint.

use std::fmt;
use std::time::Duration;

use crate::etcd::endpoint::Endpoint;
use crate::etcd::error::EtcdError;

#[derive(Clone, Default)]
pub struct Causes(Vec<(Endpoint, String)>);

impl Causes {
    /// The deadline may come before there is any cause.
    pub fn begin(&mut self, endpoint: &Endpoint) {
        if self.0.iter().all(|(known, _)| known != endpoint) {
            self.add(endpoint, "no answer yet".into());
        }
    }

    pub fn add(&mut self, endpoint: &Endpoint, cause: String) {
        match self.0.iter_mut().find(|(known, _)| known == endpoint) {
            Some((_, last)) => *last = cause,
            None => self.0.push((endpoint.clone(), cause)),
        }
    }

    pub fn remove(&mut self, endpoint: &Endpoint) {
        self.0.retain(|(known, _)| known != endpoint);
    }

    /// Takes over what others found later.
    pub fn update(&mut self, others: Self) {
        for (endpoint, cause) in others.0 {
            self.add(&endpoint, cause);
        }
    }

    pub fn to_error(&self, waited: Duration, maybe_applied: bool) -> EtcdError {
        let causes = self.to_string();
        if maybe_applied {
            EtcdError::Ambiguous { causes }
        } else {
            EtcdError::Unreachable { waited, causes }
        }
    }
}

impl fmt::Display for Causes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no attempt ended before the deadline");
        }
        for (number, (endpoint, cause)) in self.0.iter().enumerate() {
            let separator = if number == 0 { "" } else { "; " };
            write!(f, "{separator}{endpoint}: {cause}")?;
        }
        Ok(())
    }
}
