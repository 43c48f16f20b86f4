//! Counters of what goes on between this process and etcd, for whoever watches over it.
//!
//! Atomics only: a call to etcd costs a hundred thousand times as much as counting it. A forked child begins
//! at zero, like everything else that is made again there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::process::PerProcess;

static METRICS: PerProcess<Metrics> = PerProcess::new();

pub fn metrics() -> &'static Metrics {
    METRICS.get_or_make(Metrics::default)
}

/// A set of labels, each with its counter.
macro_rules! labels {
    ($(#[$meta:meta])* $name:ident { $($variant:ident = $label:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($variant),+ }

        impl $name {
            pub const LABELS: &'static [&'static str] = &[$($label),+];
        }
    };
}

labels! {
    /// What a request asks for.
    Rpc {
        Range = "range",
        Txn = "txn",
        DeleteRange = "delete_range",
        LeaseGrant = "lease_grant",
        LeaseRevoke = "lease_revoke",
        LeaseTimeToLive = "lease_time_to_live",
        LeaseKeepAlive = "lease_keep_alive",
        Status = "status",
        MemberList = "member_list",
        MemberAdd = "member_add",
        MemberPromote = "member_promote",
        MemberRemove = "member_remove",
        Alarm = "alarm",
    }
}

labels! {
    /// How a request ended, all its attempts together.
    Ended {
        Ok = "ok",
        Refused = "refused",
        Unreachable = "unreachable",
        Ambiguous = "ambiguous",
        Compacted = "compacted",
        Failed = "failed",
    }
}

labels! {
    /// Why one attempt was not the last one.
    Retry {
        NotApplied = "not_applied",
        Busy = "busy",
        AnswerLost = "answer_lost",
        StaleToken = "stale_token",
    }
}

labels! {
    /// An attempt to connect to an endpoint.
    Connect {
        First = "first",
        Again = "again",
        Failed = "failed",
        Untrusted = "untrusted",
        LogInRefused = "login_refused",
        Misconfigured = "misconfigured",
    }
}

labels! {
    /// A log-in in place of a token that etcd did not take any more.
    LogIn { Ok = "ok", Failed = "failed" }
}

labels! {
    /// What became of watches.
    WatchEvent {
        Opened = "opened",
        Resumed = "resumed",
        Compacted = "compacted",
        HistoryLost = "history_lost",
        Refused = "refused",
    }
}

labels! {
    /// One attempt to renew a lease.
    RenewalResult {
        InTime = "in_time",
        Late = "late",
        Busy = "busy",
        Failed = "failed",
        Lost = "lost",
    }
}

/// The upper bounds of the classes of a call's duration, in seconds; there is one more without a bound.
pub const BOUNDS_S: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0];

type Counters<const N: usize> = [AtomicU64; N];

#[derive(Default)]
struct Durations {
    classes: Counters<{ BOUNDS_S.len() + 1 }>,
    micros: AtomicU64,
}

/// Everything that is counted in this process.
#[derive(Default)]
pub struct Metrics {
    calls: [Counters<{ Ended::LABELS.len() }>; Rpc::LABELS.len()],
    durations: [Durations; Rpc::LABELS.len()],
    retries: Counters<{ Retry::LABELS.len() }>,
    connects: Counters<{ Connect::LABELS.len() }>,
    log_ins: Counters<{ LogIn::LABELS.len() }>,
    watches: Counters<{ WatchEvent::LABELS.len() }>,
    renewals: Counters<{ RenewalResult::LABELS.len() }>,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn read<const N: usize>(counters: &Counters<N>) -> Vec<u64> {
    counters.iter().map(|counter| counter.load(Ordering::Relaxed)).collect()
}

impl Metrics {
    pub fn call(&self, rpc: Rpc, ended: Ended, took: Duration) {
        count(&self.calls[rpc as usize][ended as usize]);
        let durations = &self.durations[rpc as usize];
        let seconds = took.as_secs_f64();
        let class = BOUNDS_S.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS_S.len());
        count(&durations.classes[class]);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        durations.micros.fetch_add(micros, Ordering::Relaxed);
    }

    pub fn retry(&self, retry: Retry) {
        count(&self.retries[retry as usize]);
    }

    pub fn connect(&self, connect: Connect) {
        count(&self.connects[connect as usize]);
    }

    pub fn log_in(&self, ok: bool) {
        count(&self.log_ins[if ok { LogIn::Ok } else { LogIn::Failed } as usize]);
    }

    pub fn watch(&self, event: WatchEvent) {
        count(&self.watches[event as usize]);
    }

    pub fn renewal(&self, result: RenewalResult) {
        count(&self.renewals[result as usize]);
    }

    /// Each number by itself is right; those of different counters may be of different moments.
    pub fn snapshot(&self) -> Snapshot {
        let calls = Rpc::LABELS.iter().zip(&self.calls).zip(&self.durations);
        Snapshot {
            calls: calls
                .map(|((rpc, ended), durations)| Calls {
                    rpc,
                    ended: labelled(Ended::LABELS, ended),
                    classes: read(&durations.classes),
                    #[allow(clippy::cast_precision_loss, reason = "a sum of durations")]
                    seconds: durations.micros.load(Ordering::Relaxed) as f64 / 1e6,
                })
                .collect(),
            groups: vec![
                ("retries", labelled(Retry::LABELS, &self.retries)),
                ("connections", labelled(Connect::LABELS, &self.connects)),
                ("logins", labelled(LogIn::LABELS, &self.log_ins)),
                ("watches", labelled(WatchEvent::LABELS, &self.watches)),
                ("lease_renewals", labelled(RenewalResult::LABELS, &self.renewals)),
            ],
        }
    }
}

pub type Labelled = Vec<(&'static str, u64)>;

fn labelled<const N: usize>(labels: &[&'static str], counters: &Counters<N>) -> Labelled {
    labels.iter().copied().zip(read(counters)).collect()
}

pub struct Calls {
    pub rpc: &'static str,
    pub ended: Labelled,
    /// How many took so long; not summed up.
    pub classes: Vec<u64>,
    pub seconds: f64,
}

pub struct Snapshot {
    pub calls: Vec<Calls>,
    pub groups: Vec<(&'static str, Labelled)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_in_one_class_of_its_kind() {
        let metrics = Metrics::default();
        metrics.call(Rpc::Txn, Ended::Ok, Duration::from_millis(1));
        metrics.call(Rpc::Txn, Ended::Refused, Duration::from_millis(7));
        metrics.call(Rpc::Range, Ended::Ok, Duration::from_secs(60));
        let snapshot = metrics.snapshot();
        let of = |name: &str| {
            snapshot.calls.iter().find(|calls| calls.rpc == name).expect("a kind of call")
        };
        assert_eq!(of("txn").classes, [1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!((of("txn").seconds - 0.008).abs() < 1e-9);
        assert_eq!(of("txn").ended[..2], [("ok", 1), ("refused", 1)]);
        assert_eq!(of("range").classes.last(), Some(&1));
        assert_eq!(of("status").classes.iter().sum::<u64>(), 0);
    }

    #[test]
    fn every_label_has_its_own_counter() {
        let metrics = Metrics::default();
        metrics.retry(Retry::StaleToken);
        metrics.renewal(RenewalResult::Lost);
        metrics.connect(Connect::Misconfigured);
        metrics.log_in(false);
        metrics.watch(WatchEvent::Refused);
        for (name, counters) in metrics.snapshot().groups {
            let (last, others) = counters.split_last().expect("labels");
            assert_eq!(last.1, 1, "{name}");
            assert!(others.iter().all(|(_, number)| *number == 0), "{name}");
        }
    }
}
