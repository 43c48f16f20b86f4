//! I2: one round is current; a member of an earlier one sees that its world is over.

use std::time::Duration;

use crate::sim::agent::Doing;
use crate::sim::checks::Violation;
use crate::sim::world::World;

pub fn all_see_the_new_round(world: &World) -> Result<(), Violation> {
    let Some((current, round)) = world.checks.history.current() else { return Ok(()) };
    let Some(opened) = round.opened else { return Ok(()) };
    for node in world.up() {
        let state = &world.nodes[node];
        let Doing::Training { nth, since, .. } = &state.agent.doing else { continue };
        if *nth >= current {
            continue;
        }
        // In quiet times it sees it soon, in others once its watch has shown it. After a refusal that was under
        // way when all was healed it asks again in a second.
        let late = world.healed.is_some_and(|healed| {
            world.now > healed.max(opened.at).max(*since) + Duration::from_secs(2)
        });
        let status = state.status();
        if (state.has_seen_head(opened.revision, world.etcd_number) || late)
            && status.waiting == 0
            && status.closed.is_none()
        {
            let text = format!(
                "n{node} trains in {nth:?}, {current:?} was opened at {:?}, and it sees nobody waiting",
                opened.at
            );
            return Err(Violation::new("I2", text));
        }
    }
    Ok(())
}
