//! Texts for people: why a round was opened, why it is over, why nobody came, what is other than was asked for.

use std::collections::BTreeSet;

use super::cx::Cx;
use super::view::Phase;
use super::wish::Wish;
use crate::etcd::kv::TxnReply;
use crate::rendezvous::api::OnMemberLoss;
use crate::rendezvous::keys::RoundId;
use crate::rendezvous::ranks::{Candidate, Roll};
use crate::rendezvous::records::{Control, Final, Join, RankOrder, plain};

/// With more nodes than this a timeout names none: to read even one of their keys etcd would look at each of
/// them, and many give up at once.
pub const FEW: usize = 512;

/// The member that is gone, where its loss makes a member ask for a new round.
pub fn why_lost(cx: &Cx, id: &RoundId) -> Option<String> {
    let restarts = cx.settings.on_member_loss == OnMemberLoss::Restart;
    let loss = cx.view.loss_of(id).filter(|_| restarts)?;
    Some(format!("{} is gone", loss.member))
}

/// What makes a member of this round join again, as far as it knows.
pub fn why_again(cx: &Cx, id: &RoundId, waiting: usize) -> Option<String> {
    why_lost(cx, id).or_else(|| match waiting {
        0 => None,
        1 => Some("1 node was waiting".into()),
        waiting => Some(format!("{waiting} nodes were waiting")),
    })
}

/// What this node, a member, knows of the reason to open the round after this one.
pub fn why_open(cx: &Cx, wish: &Wish, complete: &Control) -> String {
    let own = || format!("{} asked for a new round", cx.settings.node);
    let lost = complete.current().and_then(|id| why_lost(cx, &id));
    lost.or_else(|| wish.why.clone()).unwrap_or_else(own)
}

/// Where this node's own limits are not those of the round that it is in.
pub fn other_limits(cx: &Cx, complete: &Final) -> Option<String> {
    let (min, max) = (complete.story.min as usize, complete.story.max as usize);
    let own = &cx.settings;
    let mut differ = Vec::new();
    if (max, min) != (0, 0) && (min, max) != (own.min, own.max) {
        let (own_min, own_max) = (own.min, own.max);
        differ.push(format!("{min} to {max} nodes, where this node has {own_min} to {own_max}"));
    }
    if complete.order != own.order {
        differ.push(format!("ranks by {}, here by {}", complete.order, own.order));
    }
    let (run_ttl, own_ttl) = (cx.run_ttl().as_secs(), own.run_ttl.as_secs());
    if run_ttl != own_ttl {
        differ.push(format!("a run_ttl of {run_ttl} s, here of {own_ttl} s"));
    }
    if differ.is_empty() {
        return None;
    }
    let differ = differ.join("; ");
    Some(format!("what the run has is in force, not what this node was given: {differ}"))
}

/// What people should know of these ranks.
pub fn odd_ranks(
    order: RankOrder,
    candidates: &[Candidate<'_>],
    roll: &Roll<Join>,
) -> Option<String> {
    let own = order.to_string();
    let mut others = roll.admitted().filter(|(.., join)| join.order() != own);
    if let Some((.., join)) = others.next() {
        return Some(format!(
            "ranks are by {own}, which is the rank_order of the coordinator; {} of {} nodes have \
             another one, such as {} by {}",
            others.count() + 1,
            roll.len(),
            join.node,
            join.order()
        ));
    }
    if order != RankOrder::Infra {
        return None;
    }
    let mut seen = BTreeSet::new();
    let twice = candidates.iter().filter_map(|c| c.infra).find(|rank| !seen.insert(*rank))?;
    let named = |join: &Join| join.labels.infra_rank == Some(twice);
    let nodes = roll.admitted().filter(|(.., join)| named(join)).take(3);
    let names: Vec<String> = nodes.map(|(.., join)| join.node.to_string()).collect();
    Some(format!(
        "several nodes have the infra_rank {twice}, and are ranked as they came: {}",
        names.join(", ")
    ))
}

/// Why the time of a barrier is up: what was there, as this answer to `txns::read_names` says.
pub fn timeout(cx: &Cx, wish: &Wish, reply: &TxnReply) -> String {
    let waited = cx.now.saturating_sub(wish.started).as_secs_f64();
    let (min, max) = (cx.settings.min, cx.settings.max);
    let round = match cx.view.phase() {
        Phase::Absent => return format!("The rendezvous did not begin within {waited:.0} s."),
        Phase::Complete(round, complete) => {
            return format!(
                "Round {round} is complete with {} of at most {max} nodes, and no place came free within \
                 {waited:.0} s.",
                complete.world
            );
        }
        Phase::Open(_) | Phase::Closed(_) => cx.view.round(),
    };
    let joined = reply.range(0);
    let names: Vec<String> = joined
        .kvs
        .iter()
        .filter_map(|kv| cx.reader().join(kv))
        .map(|(_, join)| join.node.to_string())
        .collect();
    let mut foreign = joined.kvs.iter().filter(|kv| cx.reader().join(kv).is_none());
    let foreign_key = foreign.next().map(|kv| String::from_utf8_lossy(&kv.key));
    let others = foreign.count();
    let others = if others > 0 { format!(" and {others} more") } else { String::new() };
    let foreign = foreign_key.map_or_else(String::new, |key| {
        let key = plain(&key);
        format!(" Not written by a node of this version: the etcd key '{key}'{others}.")
    });
    let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    if joined.kvs.is_empty() && cx.view.crowd > FEW {
        return format!(
            "Round {round} was not complete within {waited:.0} s: {} of at least {min} nodes joined, as its \
             coordinator last told.",
            cx.view.crowd
        );
    }
    let nodes = joined.count.saturating_sub(count(joined.kvs.len() - names.len()));
    let more = nodes.saturating_sub(count(names.len()));
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let missing = count(min).saturating_sub(nodes).max(0);
    let coordinator = match &cx.view.coordinator.value {
        Some((told, holder)) if missing == 0 && cx.leases.own() != Some(*holder) => {
            format!(" Its coordinator, {}, did not complete it.", told.node)
        }
        _ => String::new(),
    };
    format!(
        "Round {round} was not complete within {waited:.0} s: {nodes} of at least {min} nodes joined, \
         {missing} missing. Joined: {}{more}.{coordinator}{foreign}",
        names.join(", "),
    )
}
