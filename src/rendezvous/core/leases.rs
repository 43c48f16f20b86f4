//! The leases that a node keeps alive: its own, which is its identity, and the run's.

use std::collections::VecDeque;
use std::time::Duration;

use super::out::{Out, Slot};
use crate::rendezvous::api::{Action, Settings, Time, Wanted};
use crate::rendezvous::keys::NodeId;
use crate::rendezvous::records::Control;
use crate::rendezvous::variant::Variant;

/// How many of its former leases a node knows as its own.
const PAST: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Asked at this time.
    Own(Time),
    Run,
}

#[derive(Default)]
pub struct Leases {
    own: Option<NodeId>,
    /// The last ones that this node had: it was another node then, by the same names.
    past: VecDeque<NodeId>,
    /// The TTL of the run's lease, while this node renews that.
    run: Option<Duration>,
    pub slot: Slot<Purpose>,
}

impl Leases {
    pub fn own(&self) -> Option<NodeId> {
        self.own
    }

    pub fn run(&self) -> Option<Duration> {
        self.run
    }

    pub fn has_past(&self) -> bool {
        !self.past.is_empty()
    }

    pub fn past(&self) -> impl Iterator<Item = NodeId> {
        self.past.iter().copied()
    }

    pub fn is_past(&self, node: NodeId) -> bool {
        self.past.contains(&node)
    }

    /// Whom this node is, and was.
    pub fn all(&self) -> impl Iterator<Item = NodeId> {
        self.own.into_iter().chain(self.past())
    }

    pub fn ask_for_own(&mut self, settings: &Settings, out: &mut Out, now: Time, deadline: Time) {
        let lease = Wanted::New(out.random_lease());
        out.grant(&mut self.slot, Purpose::Own(now), lease, settings.ttl, deadline);
    }

    /// `false` while the run's lease is being granted.
    pub fn ensure_run(&mut self, settings: &Settings, out: &mut Out, deadline: Time) -> bool {
        if self.run.is_none() {
            let lease = Wanted::Shared(settings.keys.run_lease());
            out.grant(&mut self.slot, Purpose::Run, lease, settings.run_ttl, deadline);
        }
        self.run.is_some()
    }

    pub fn granted(
        &mut self,
        settings: &Settings,
        out: &mut Out,
        now: Time,
        purpose: Purpose,
        (lease, ttl): (NodeId, Duration),
    ) {
        match purpose {
            Purpose::Own(asked) => {
                self.own = Some(lease);
                // The TTL runs from when etcd granted it, and the answer may have taken long. Thousands that came
                // at once need not renew at once.
                let asked = if settings.wrong(Variant::RenewsFromAnswer) { now } else { asked };
                let due = asked.saturating_add(ttl / 3).saturating_sub(out.jitter(ttl / 12));
                out.act(Action::KeepAlive(lease, ttl, due.saturating_sub(now)));
            }
            Purpose::Run => self.hold_run(settings, out, ttl),
        }
    }

    pub fn hold_run(&mut self, settings: &Settings, out: &mut Out, ttl: Duration) {
        if self.run.is_none() {
            self.run = Some(ttl);
            // The coordinator renews it at once, so the others need not, nor all at the same time.
            let first = out.jitter(ttl / 3);
            out.act(Action::KeepAlive(settings.keys.run_lease(), ttl, first));
        }
    }

    /// Nobody may have been there for long. Without this, nodes that live for less than a third of its TTL,
    /// one after another, would let it run out in the middle of a world.
    pub fn renew_run_now(&mut self, settings: &Settings, out: &mut Out, ttl: Duration) {
        if self.run.is_some() {
            out.act(Action::KeepAlive(settings.keys.run_lease(), ttl, Duration::ZERO));
        }
    }

    /// Another run of this name may be under a lease of another TTL. Without a record it is the lease of the
    /// last one, which exists as long as somebody renews it.
    pub fn renew_run_as(&mut self, settings: &Settings, out: &mut Out, control: Option<&Control>) {
        let ttl = control.map(|control| Duration::from_secs(control.run_ttl));
        if let (Some(held), Some(ttl)) = (self.run, ttl)
            && held != ttl
            && !ttl.is_zero()
        {
            self.run = None;
            self.hold_run(settings, out, ttl);
        }
    }

    /// Whoever is not there does not keep the run's keys there.
    pub fn abandon_run(&mut self, settings: &Settings, out: &mut Out) {
        if self.run.take().is_some() {
            out.act(Action::Abandon(settings.keys.run_lease()));
        }
    }

    pub fn run_is_gone(&mut self) {
        self.run = None;
    }

    /// From now on this node is another one. Returns the lease it had.
    pub fn lose_own(&mut self) -> Option<NodeId> {
        let lease = self.own.take();
        if let Some(lease) = lease {
            self.past.push_back(lease);
            if self.past.len() > PAST {
                self.past.pop_front();
            }
        }
        lease
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::settings;
    use super::*;

    /// The answer came late: the TTL had run meanwhile.
    #[test]
    fn a_lease_is_renewed_by_the_time_of_the_request() {
        let (settings, mut out) = (settings(), Out::new(1));
        let mut leases = Leases::default();
        let second = Duration::from_secs(1);
        leases.ask_for_own(&settings, &mut out, second, second * 60);
        let asked = Purpose::Own(second);
        assert_eq!(leases.slot.purpose(), Some(&asked));
        out.take();
        leases.granted(&settings, &mut out, second * 9, asked, (7, second * 10));
        assert_eq!(out.take(), [Action::KeepAlive(7, second * 10, Duration::ZERO)]);
    }

    #[test]
    fn another_run_of_the_name_has_a_lease_of_another_ttl() {
        let (settings, mut out) = (settings(), Out::new(1));
        let mut leases = Leases::default();
        leases.hold_run(&settings, &mut out, Duration::from_secs(100));
        out.take();
        let state = crate::rendezvous::records::State::Open {
            previous: None,
            by: String::new(),
            at: 1,
            why: String::new(),
        };
        let control = Control::first(1, 100, 1, state);
        leases.renew_run_as(&settings, &mut out, Some(&control));
        assert!(out.take().is_empty());
        let control = Control { run_ttl: 30, ..control };
        leases.renew_run_as(&settings, &mut out, Some(&control));
        assert_eq!(leases.run(), Some(Duration::from_secs(30)));
        assert!(matches!(out.take()[..], [Action::KeepAlive(..)]));
    }
}
