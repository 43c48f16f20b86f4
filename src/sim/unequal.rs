//! Nodes of one run that are not configured alike: a command line is changed while a job runs, images are
//! rolled out, and somebody has typed another number.

use std::time::Duration;

use super::rng::Rng;
use crate::rendezvous::records::RankOrder;
use crate::rendezvous::{OnMemberLoss, Settings};

/// In what nodes may differ.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is about something else")]
pub struct Unequal {
    pub limits: bool,
    pub order: bool,
    pub leases: bool,
    pub loss: bool,
    /// Some nodes speak a newer version.
    pub version: bool,
}

impl Unequal {
    /// Mostly all are equal, or there would be little else to see.
    pub fn any(rng: &mut Rng) -> Self {
        if !rng.chance(300) {
            return Self::default();
        }
        Self {
            limits: rng.chance(400),
            order: rng.chance(300),
            leases: rng.chance(300),
            loss: rng.chance(300),
            version: rng.chance(250),
        }
    }

    pub fn node(&self, common: &Settings, rng: &mut Rng) -> Settings {
        let mut own = common.clone();
        if self.limits && rng.chance(500) {
            own.min = 1 + rng.below(own.min + 1);
            own.max = own.min + rng.below(4);
        }
        if self.order && rng.chance(500) {
            let segment = 1 + rng.below(3);
            let orders = [
                RankOrder::Stable,
                RankOrder::Join,
                RankOrder::Infra,
                RankOrder::Topology { segment },
            ];
            own.order = rng.pick(&orders).unwrap_or_default();
        }
        own.max = own.max.max(own.order.smallest(own.min));
        if self.leases && rng.chance(500) {
            own.ttl = Duration::from_secs(rng.between(2, 10));
            own.run_ttl = Duration::from_secs(rng.between(15, 300));
        }
        if self.loss && rng.chance(500) {
            own.on_member_loss = match own.on_member_loss {
                OnMemberLoss::Restart => OnMemberLoss::Ignore,
                OnMemberLoss::Ignore => OnMemberLoss::Restart,
            };
        }
        if self.version && rng.chance(300) {
            own.version += 1;
        }
        own
    }
}
