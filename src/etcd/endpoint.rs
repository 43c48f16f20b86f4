//! Endpoints of an etcd cluster, as people write them.

use std::collections::HashSet;
use std::fmt;

/// etcd's client port: <https://etcd.io/docs/v3.6/op-guide/configuration/>.
pub const DEFAULT_PORT: u16 = 2379;

/// One address of an etcd member.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// A host name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    pub port: u16,
    pub tls: bool,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "The etcd endpoint '{endpoint}' is not valid: {reason}. Expected host, host:port, [ipv6]:port, \
     http://host:port or https://host:port, or several of them separated by commas."
)]
pub struct InvalidEndpoint {
    endpoint: String,
    reason: String,
}

/// Parses a comma-separated list. `tls` is for endpoints that name no scheme themselves.
pub fn parse_endpoints(list: &str, tls: bool) -> Result<Vec<Endpoint>, InvalidEndpoint> {
    if list.contains('@') {
        // Nothing of it: what stands before the '@' may be a password, and may have commas in it.
        return Err(InvalidEndpoint {
            endpoint: "...@...".into(),
            reason: "it must not hold a user or a password, which are given by themselves".into(),
        });
    }
    let mut endpoints = Vec::new();
    let mut seen = HashSet::new();
    for part in list.split(',').map(str::trim) {
        if part.is_empty() {
            let reason =
                if list.trim().is_empty() { "it is empty" } else { "a part of it is empty" };
            return Err(InvalidEndpoint { endpoint: list.into(), reason: reason.into() });
        }
        let endpoint = parse_endpoint(part, tls)
            .map_err(|reason| InvalidEndpoint { endpoint: part.into(), reason })?;
        if seen.insert(endpoint.clone()) {
            endpoints.push(endpoint);
        }
    }
    Ok(endpoints)
}

fn parse_endpoint(text: &str, default_tls: bool) -> Result<Endpoint, String> {
    let (tls, rest) = match text.split_once("://") {
        None => (default_tls, text),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
        Some((scheme, _)) => return Err(format!("the scheme '{scheme}' is not http or https")),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = if let Some(bracketed) = rest.strip_prefix('[') {
        let (host, after) =
            bracketed.split_once(']').ok_or_else(|| "the bracket is not closed".to_string())?;
        host.parse::<std::net::Ipv6Addr>()
            .map_err(|_| format!("'{host}' is not an IPv6 address"))?;
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err(format!("'{after}' after the bracket is not a port")),
        }
    } else {
        match rest.matches(':').count() {
            0 => (rest, None),
            1 => rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
            _ if rest.parse::<std::net::Ipv6Addr>().is_ok() => (rest, None),
            _ => return Err("an IPv6 address with a port needs brackets".into()),
        }
    };
    if host.is_empty() {
        return Err("the host is missing".into());
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if let Some(bad) = host.chars().find(|c| !allowed(*c)) {
        return Err(format!("the host must not contain '{}'", bad.escape_default()));
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(text) => match text.parse::<u16>() {
            Ok(port) if port > 0 && text.bytes().all(|b| b.is_ascii_digit()) => port,
            _ => return Err(format!("the port '{text}' is not a number from 1 to 65535")),
        },
    };
    Ok(Endpoint { host: host.into(), port, tls })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(list: &str) -> Vec<String> {
        parse_endpoints(list, false).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_accepted_form() {
        assert_eq!(shown("etcd"), ["http://etcd:2379"]);
        assert_eq!(shown("10.0.0.1:1234"), ["http://10.0.0.1:1234"]);
        assert_eq!(shown("[::1]:1234"), ["http://[::1]:1234"]);
        assert_eq!(shown("[::1]"), ["http://[::1]:2379"]);
        assert_eq!(shown("fe80::1"), ["http://[fe80::1]:2379"]);
        assert_eq!(shown("HTTPS://a/, http://b:1"), ["https://a:2379", "http://b:1"]);
        assert_eq!(shown("a,b:2379,a:2379"), ["http://a:2379", "http://b:2379"]);
        assert!(parse_endpoints("a,http://b", true).unwrap()[0].tls);
    }

    #[test]
    fn a_password_in_an_endpoint_is_refused_and_not_shown() {
        for list in ["http://me:pass@a", "me:pa,ss@a", "a,https://me:pa/ss@b:1", "pass@[::1]:1"] {
            let error = parse_endpoints(list, false).unwrap_err().to_string();
            assert!(error.contains("must not hold a user or a password"), "{list}: {error}");
            assert!(!error.contains("pa,") && !error.contains("ss@"), "{error}");
        }
    }

    #[test]
    fn refusals_name_the_endpoint_and_the_reason() {
        for (list, reason) in [
            ("", "it is empty"),
            ("a,,b", "a part of it is empty"),
            ("ftp://a", "scheme 'ftp'"),
            ("a:0", "port '0'"),
            ("a:+1", "port '+1'"),
            ("a:99999", "port '99999'"),
            (":2379", "host is missing"),
            ("::1:2:3:4:5:6:7:8:9", "needs brackets"),
            ("[::1", "not closed"),
            ("[host]:1", "not an IPv6"),
            ("a b", "must not contain ' '"),
            ("%75a", "must not contain '%'"),
            ("[fe80::1%eth0]", "not an IPv6"),
            ("a/path", "must not contain '/'"),
        ] {
            let error = parse_endpoints(list, false).unwrap_err().to_string();
            assert!(error.contains(reason), "{list}: {error}");
        }
    }
}
