//! For how many waiting nodes there are places. Between rounds all count by what the completed record says,
//! whatever they have themselves.

use super::cx::{Cx, number};
use crate::rendezvous::records::{Final, RankOrder};
use crate::rendezvous::variant::Variant;

pub fn order_in_force(cx: &Cx, complete: &Final) -> RankOrder {
    if cx.settings.wrong(Variant::CountsUnadmitted) { cx.settings.order } else { complete.order }
}

/// How many places there are, as far as is known.
pub fn room(cx: &Cx, round: u64, complete: &Final) -> usize {
    let told = complete.story.max as usize;
    let own = told == 0 || cx.settings.wrong(Variant::CountsUnadmitted);
    let max = if own { cx.settings.max } else { told };
    let lost = usize::from(cx.view.loss_of(&complete.id(round)).is_some());
    let live = (complete.world as usize).saturating_sub(lost);
    order_in_force(cx, complete).largest(max).saturating_sub(live)
}

/// Before the others have been counted: this node alone.
pub fn likely_count(cx: &Cx, complete: &Final) -> u32 {
    let domain = cx.settings.labels.domain.as_deref();
    let own = order_in_force(cx, complete).places_of(domain, 1);
    number(own.min(room(cx, cx.view.round(), complete)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{complete, cx};
    use super::*;

    #[test]
    fn the_record_says_how_many_places_there_are() {
        let mut cx = cx();
        cx.settings.max = 9;
        let mut of_two = complete(2);
        of_two.story.max = 3;
        assert_eq!(room(&cx, 1, &of_two), 1);
        of_two.order = RankOrder::Topology { segment: 2 };
        assert_eq!((room(&cx, 1, &of_two), likely_count(&cx, &of_two)), (0, 0));
    }
}
