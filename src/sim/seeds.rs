//! Thousands of seeds; a failed one names the command that repeats it.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::agent::Doing;
use super::checks::Violation;
use super::invariants::{garbage, progress, restarts};
use super::scenario::Scenario;
use super::trace::TraceHash;
use super::world::{Event, World};

const DEFAULT: u64 = 10_000;

pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Chaos, then peace, then the end.
pub fn run(seed: u64, world: &mut World) -> Result<(), Violation> {
    let nodes = world.scenario.nodes;
    for _ in 0..nodes {
        let pause = world.rng.time(Duration::ZERO, world.scenario.arrivals);
        let node = world.start_node();
        world.nodes[node].agent.doing = Doing::Stopping(pause);
    }
    world.chaos = true;
    world.after(Duration::ZERO, Event::Fault);
    world.run_until(world.scenario.chaos)?;
    garbage::all_have_leases(world)?;
    world.heal();
    heals(world)?;
    ends(seed, world)
}

fn heals(world: &mut World) -> Result<(), Violation> {
    world.start_enough();
    if world.scenario.last_crash {
        let until = world.now + Duration::from_secs(10);
        if world.run_while(until, |world| world.coordinator().is_none())? {
            let pause = world.rng.time(Duration::ZERO, world.scenario.settings.last_call);
            world.run_until(world.now + pause)?;
            world.coordinator().into_iter().for_each(|node| world.crash(node));
            world.start_enough();
        }
    }
    let second = Duration::from_secs(1);
    // What was cut off too long is missed by now, what was not has renewed its lease.
    let ttl = world.nodes.iter().map(|node| node.settings().ttl).max();
    world.run_until(world.now + ttl.unwrap_or_default() + second)?;
    settles(world)?;
    if world.scenario.late_loss {
        loses_a_member(world)?;
    }
    let control = world.control().cloned();
    let settled = !world.training().is_empty();
    let there = world.which(|node| node.is_live() && world.is_of_the_run(node));
    world.quiet = true;
    world.run_until(world.now + second * 15 + world.scenario.settings.run_ttl)?;
    world.quiet = false;
    // Where there are too few nodes they give up in the end, and others may come.
    let settled = settled && there.into_iter().any(|node| world.nodes[node].is_live());
    if settled && world.control() != control.as_ref() {
        let text = format!("a settled world had {control:?} and has {:?}", world.control());
        return Err(Violation::new("quiet", text));
    }
    garbage::of_old_rounds(world)
}

/// In calm times the loss of one member costs the others one restart.
fn loses_a_member(world: &mut World) -> Result<(), Violation> {
    let training = world.training();
    let Some(lost) = world.rng.pick(&training) else { return Ok(()) };
    let others: Vec<_> = world.up().into_iter().filter(|node| *node != lost).collect();
    if !world.are_enough(&others) {
        return Ok(());
    }
    let completed = world.checks.history.completed;
    world.crash(lost);
    let told = world.nodes[lost].settings().ttl + Duration::from_secs(1);
    world.run_until(world.now + told)?;
    settles(world)?;
    restarts::one_for_a_loss(world, completed)
}

fn settles(world: &mut World) -> Result<(), Violation> {
    let second = Duration::from_secs(1);
    let (scenario, settings) = (&world.scenario, &world.scenario.settings);
    // One round for those who are there, one for those who came while it was completed, one more.
    let ttl = settings.ttl.max(second * 10);
    let round = ttl + settings.last_call + scenario.poll + scenario.stop + second * 2;
    let settled = world.run_while(world.now + round * 3, |w| progress::unsettled(w).is_some())?;
    if !settled {
        let text = progress::unsettled(world).unwrap_or_default();
        return Err(Violation::new("I5", format!("the world does not settle: {text}")));
    }
    Ok(())
}

/// Members of the closed world, and others, form the next one.
fn reopens(world: &mut World) -> Result<(), Violation> {
    world.reopen();
    // Those who are on their way out are no part of it.
    world.run_until(world.now + Duration::from_secs(1))?;
    world.start_enough();
    settles(world)?;
    if world.training().is_empty() && world.are_enough(&world.up()) {
        return Err(Violation::new("reopen", "nobody trains in a run that was reopened"));
    }
    Ok(())
}

/// Some close the run first; then all are gone.
fn ends(seed: u64, world: &mut World) -> Result<(), Violation> {
    let training = world.training();
    if seed.is_multiple_of(2)
        && let Some(node) = world.rng.pick(&training)
    {
        world.close(node);
        world.run_until(world.now + Duration::from_secs(4))?;
        if world.checks.closed.is_none() {
            return Err(Violation::new("I4", "the run could not be closed"));
        }
        let late = world.start_node();
        world.run_until(world.now + Duration::from_secs(2))?;
        if world.nodes[late].is_live() && world.speaks(late) {
            return Err(Violation::new("I4", format!("n{late} joins a closed run")));
        }
        if seed.is_multiple_of(8) {
            reopens(world)?;
        }
    }
    world.scenario.replaces = false;
    for node in world.live() {
        let pause = world.rng.time(Duration::ZERO, Duration::from_secs(2));
        world.run_until(world.now + pause)?;
        if world.rng.chance(500) { world.crash(node) } else { world.depart(node) }
    }
    world.ended = true;
    world.run_until(world.now + Duration::from_secs(2))?;
    (0..world.nodes.len()).for_each(|node| world.exit(node));
    let longest = world.nodes.iter().map(|node| node.settings().run_ttl).max();
    let gone = world.now + longest.unwrap_or_default() + Duration::from_secs(2);
    world.run_until(gone)?;
    garbage::none_is_left(world)
}

/// Runs a seed; where it fails, once more with a trace.
pub fn explain(seed: u64) -> Result<(), (Violation, String)> {
    let Err(violation) = run(seed, &mut World::new(Scenario::of(seed), seed)) else {
        return Ok(());
    };
    let lines = number("TORCHETCD_SIM_TRACE").unwrap_or(120) as usize;
    let mut world = World::new(Scenario::of(seed), seed).with_trace(lines);
    let again = run(seed, &mut world);
    let mut text = format!("seed {seed} violates {violation}\n{:#?}\n", world.scenario);
    text.push_str(&world.trace());
    // Writing to a String cannot fail.
    let _ = writeln!(text, "Seed {seed} violates {violation}");
    let _ = writeln!(text, "REPRODUCE WITH: TORCHETCD_SIM_SEED={seed} cargo test --lib every_seed");
    assert_eq!(again, Err(violation.clone()), "seed {seed} is not deterministic");
    Err((violation, text))
}

/// Seeds that nobody has run, on all processors, for so long; those that fail are named at once.
#[allow(clippy::print_stdout, reason = "it runs for an hour, and is watched")]
fn soak(time: Duration) {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let first = number("TORCHETCD_SIM_FIRST").unwrap_or(clock as u64 / 1000 % 1_000_000_000_000);
    println!("simulator: seeds from {first} on, for {} s", time.as_secs());
    let (next, failed, started) = (AtomicU64::new(first), AtomicU64::new(0), Instant::now());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while started.elapsed() < time {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if let Err((_, text)) = explain(seed) {
                        failed.fetch_add(1, Ordering::Relaxed);
                        // The violation, and the command that repeats it.
                        let lines: Vec<&str> = text.trim_end().lines().rev().take(2).collect();
                        println!("{}\n{}", lines[1], lines[0]);
                    }
                }
            });
        }
    });
    let (run, failed) = (next.into_inner() - first, failed.into_inner());
    println!("simulator: {run} seeds from {first} on, {failed} failed");
    assert_eq!(failed, 0, "seeds failed");
}

/// A move changes nothing that a node does: the number is the same before and after it. To print that of seeds 0
/// to 999 set `TORCHETCD_SIM_TRACE_HASH=1`.
#[test]
#[allow(clippy::print_stdout, reason = "the number is what is asked for")]
fn trace_hash() {
    if number("TORCHETCD_SIM_TRACE_HASH").is_none() {
        return;
    }
    let first = number("TORCHETCD_SIM_FIRST").unwrap_or(0);
    let seeds = number("TORCHETCD_SIM_SEEDS").unwrap_or(1000);
    let mut all = 0_u64;
    for seed in first..first + seeds {
        let mut world = World::new(Scenario::of(seed), seed);
        world.hash = Some(TraceHash::default());
        // Also where a seed fails: up to there.
        let verdict = run(seed, &mut world);
        let of_seed = world.hash.unwrap_or_default().0.rotate_left((seed % 64) as u32);
        if number("TORCHETCD_SIM_TRACE_HASH") == Some(2) {
            println!("seed {seed}: {of_seed:016x} {verdict:?}");
        }
        all = all.wrapping_mul(0x0100_0000_01b3) ^ of_seed;
    }
    println!("trace hash of seeds {first} to {}: {all:016x}", first + seeds - 1);
}

#[test]
fn every_seed_keeps_the_invariants() {
    if let Some(seed) = number("TORCHETCD_SIM_SEED") {
        if let Err((_, text)) = explain(seed) {
            panic!("{text}");
        }
        return;
    }
    if let Some(seconds) = number("TORCHETCD_SIM_SECONDS") {
        return soak(Duration::from_secs(seconds));
    }
    let first = number("TORCHETCD_SIM_FIRST").unwrap_or(0);
    if number("TORCHETCD_SIM_SURVEY").is_some() {
        let mut tally = std::collections::BTreeMap::new();
        for seed in first..first + number("TORCHETCD_SIM_SEEDS").unwrap_or(DEFAULT) {
            if let Err(v) = run(seed, &mut World::new(Scenario::of(seed), seed)) {
                tally.entry(v.invariant).or_insert_with(Vec::new).push((seed, v.text));
            }
        }
        let mut text = String::new();
        for (name, list) in tally {
            let _ = writeln!(text, "{name}: {}", list.len());
            for (seed, t) in list.into_iter().take(6) {
                let _ = writeln!(text, "   {seed}: {}", &t[..t.len().min(260)]);
            }
        }
        assert!(text.is_empty(), "{text}");
        return;
    }
    for seed in first..first + number("TORCHETCD_SIM_SEEDS").unwrap_or(DEFAULT) {
        if let Err((_, text)) = explain(seed) {
            panic!("{text}");
        }
    }
}
