//! What went wrong last at each endpoint.

use std::fmt;
use std::time::Duration;

use crate::etcd::endpoint::Endpoint;
use crate::etcd::error::EtcdError;

/// How many an error tells.
const SHOWN: usize = 10;

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
        self.retain(|known| known != endpoint);
    }

    pub fn retain(&mut self, keep: impl Fn(&Endpoint) -> bool) {
        self.0.retain(|(endpoint, _)| keep(endpoint));
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
        for (number, (endpoint, cause)) in self.0.iter().take(SHOWN).enumerate() {
            let separator = if number == 0 { "" } else { "; " };
            write!(f, "{separator}{endpoint}: {cause}")?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            1 => f.write_str("; and 1 endpoint more"),
            more => write!(f, "; and {more} endpoints more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::endpoint::parse_endpoints;

    #[test]
    fn an_error_of_many_endpoints_can_be_read() {
        let list = (0..1000).map(|number| format!("h{number}")).collect::<Vec<_>>().join(",");
        let mut causes = Causes::default();
        for endpoint in parse_endpoints(&list, false).expect("endpoints") {
            causes.add(&endpoint, "refused".into());
        }
        let text = causes.to_string();
        assert!(text.starts_with("http://h0:2379: refused; http://h1:2379: refused; "), "{text}");
        assert!(text.ends_with("http://h9:2379: refused; and 990 endpoints more"), "{text}");
    }
}
