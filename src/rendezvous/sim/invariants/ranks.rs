//! Ranks are stable: who stays keeps its order, a replacement takes the rank it replaces.

use super::Violation;
use super::history::History;

pub fn stable(history: &History, round: u64) -> Result<(), Violation> {
    let (Some(old), Some(new)) = (history.round(round.wrapping_sub(1)), history.round(round))
    else {
        return Ok(());
    };
    let old_rank = |node: &i64| old.members.iter().find(|(_, n)| *n == node).map(|(rank, _)| *rank);
    let mut stayed: Vec<(u32, u32)> =
        new.members.iter().filter_map(|(rank, node)| Some((old_rank(node)?, *rank))).collect();
    stayed.sort_unstable();
    let fresh = u32::try_from(new.members.len() - stayed.len()).unwrap_or(u32::MAX);
    for ((old_rank, new_rank), before) in stayed.iter().zip(0..) {
        // The lost ranks before it are filled by as many newcomers as there are.
        let expected = (before + fresh).min(*old_rank);
        if *new_rank != expected {
            let text = format!(
                "the member of rank {old_rank} has rank {new_rank} in round {round}, not {expected}: \
                 {:?} became {:?}",
                old.members, new.members
            );
            return Err(Violation::new("ranks", text));
        }
    }
    Ok(())
}
