//! The addresses of one endpoint, as those to choose a connection from.

use std::net::SocketAddr;
use std::sync::Arc;

use super::race::{Progress, race};
use crate::etcd::config::Config;
use crate::etcd::endpoint::Endpoint;
use crate::etcd::transport::{ConnectError, Connection, Reached, addresses, silent};
use crate::etcd::unique::unique;

type Opened = Result<Connection, ConnectError>;

/// Whether nothing is left to try, for better or worse.
pub fn decides(opened: &Opened) -> bool {
    matches!(opened, Ok(_) | Err(ConnectError::Final(_) | ConnectError::LogInRefused(_)))
}

/// Opens a connection to the first address of the endpoint that serves. Of those that serve at the same time
/// one logs in, by `log_in`: etcd works for long on that.
pub async fn open_endpoint(
    config: &Config,
    endpoint: &Endpoint,
    left: Option<SocketAddr>,
    progress: &Progress,
    log_in: &tokio::sync::Mutex<()>,
) -> Opened {
    let found = tokio::time::timeout(config.connect_timeout, addresses(endpoint)).await;
    let found =
        found.unwrap_or_else(|_| Err(silent("no answer to the look-up of its name", config)))?;
    let alone = found.len() == 1;
    let attempt = |address: SocketAddr, its: Arc<Progress>| async move {
        let connected = || {
            its.connected();
            progress.connected();
        };
        let opened = match Reached::reach(config, endpoint, address, connected).await {
            Ok(reached) => {
                let _turn = log_in.lock().await;
                Connection::open(config, endpoint, alone, reached).await
            }
            Err(error) => Err(error),
        };
        (address, opened)
    };
    let order = in_order(found, left);
    let mut tried = race(order, attempt, |(_, opened)| decides(opened)).await;
    match tried.pop() {
        Some((_, opened)) if decides(&opened) => opened,
        last => Err(together(tried.into_iter().chain(last))),
    }
}

/// Clients spread over the members that a name stands for, families take turns (RFC 8305), and the address
/// that was given up comes last.
fn in_order(mut addresses: Vec<SocketAddr>, left: Option<SocketAddr>) -> Vec<SocketAddr> {
    let preferred = addresses.first().is_some_and(SocketAddr::is_ipv6);
    addresses.sort_by_cached_key(|_| unique());
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == preferred);
    let mut second = second.into_iter();
    let mut order = Vec::new();
    for address in first {
        order.push(address);
        order.extend(second.next());
    }
    order.extend(second);
    order.sort_by_key(|address| Some(*address) == left);
    order
}

/// One error for all addresses of an endpoint: they are those of one service, so one that is reached and not
/// trusted says more than those that are not reached.
fn together(tried: impl Iterator<Item = (SocketAddr, Opened)>) -> ConnectError {
    let (mut untrusted, mut unreachable) = (Vec::new(), Vec::new());
    for (address, opened) in tried {
        match opened {
            Err(ConnectError::Untrusted(text)) => untrusted.push((address, text)),
            Err(ConnectError::Unreachable(text)) => unreachable.push((address, text)),
            // `decides` has ended it.
            _ => {}
        }
    }
    if untrusted.is_empty() {
        ConnectError::Unreachable(text_of(&unreachable))
    } else {
        ConnectError::Untrusted(text_of(&untrusted))
    }
}

fn text_of(causes: &[(SocketAddr, String)]) -> String {
    let Some((_, first)) = causes.first() else { return "its name has no address".into() };
    if causes.iter().all(|(_, text)| text == first) {
        return first.clone();
    }
    let each = causes.iter().map(|(address, text)| format!("{}: {text}", address.ip()));
    each.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn families_take_turns_and_the_one_given_up_comes_last() {
        let all = parse(&["[::1]:1", "[::2]:1", "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"]);
        for left in [None, Some(all[0]), Some(all[3])] {
            let order = in_order(all.clone(), left);
            assert_eq!(order.len(), all.len());
            assert_eq!(order.last().copied().filter(|_| left.is_some()), left);
            let kept = order.iter().filter(|address| Some(**address) != left);
            let families: Vec<_> = kept.map(SocketAddr::is_ipv6).take(3).collect();
            assert!(families != [false, false, false], "{order:?}");
        }
        assert!(in_order(all.clone(), None)[0].is_ipv6());
    }

    #[test]
    fn who_is_not_trusted_says_more_than_who_is_not_there() {
        let [one, two] = parse(&["[::1]:1", "127.0.0.1:1"])[..] else { unreachable!() };
        let refused = || Err(ConnectError::Unreachable("refused".into()));
        let text = |tried: Vec<(SocketAddr, Opened)>| match together(tried.into_iter()) {
            ConnectError::Unreachable(text) => ("unreachable", text),
            ConnectError::Untrusted(text) => ("untrusted", text),
            _ => ("", String::new()),
        };
        assert_eq!(
            text(vec![(one, refused()), (two, refused())]),
            ("unreachable", "refused".into())
        );
        let untrusted = Err(ConnectError::Untrusted("expired".into()));
        assert_eq!(text(vec![(one, refused()), (two, untrusted)]), ("untrusted", "expired".into()));
        let other = Err(ConnectError::Unreachable("no answer".into()));
        assert_eq!(
            text(vec![(one, refused()), (two, other)]),
            ("unreachable", "::1: refused, 127.0.0.1: no answer".into())
        );
        assert_eq!(text(Vec::new()), ("unreachable", "its name has no address".into()));
    }
}
