//! I6: after the last node is gone and the run's lease has run out, etcd holds no key of the run.

use super::Violation;
use crate::rendezvous::sim::world::World;

pub fn none_is_left(world: &World) -> Result<(), Violation> {
    let keys = world.etcd.list("/");
    if keys.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = keys.iter().map(|kv| String::from_utf8_lossy(&kv.key)).collect();
    Err(Violation::new("I6", format!("left: {}", names.join(", "))))
}

/// No key is without a lease at any time.
pub fn all_have_leases(world: &World) -> Result<(), Violation> {
    match world.etcd.list("/").into_iter().find(|kv| kv.lease == 0) {
        None => Ok(()),
        Some(kv) => {
            let text = format!("{} has no lease", String::from_utf8_lossy(&kv.key));
            Err(Violation::new("I6", text))
        }
    }
}
