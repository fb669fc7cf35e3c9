//! A simulated fleet: agents, servers, a broker, and a network that loses, delays and repeats
//! messages. Their answers are compared, at every step, with those of one thread that tries one
//! secret after another.

mod broker;
#[path = "../../../search/tests/oracle/mod.rs"]
mod oracle;
mod tried;
mod world;

use std::time::Duration;

use self::world::{Size, World};

/// Plays one schedule.
fn play(seed: u64) {
    World::new(seed, Size::Small).run();
}

#[test]
fn a_fleet_finds_what_one_thread_finds_whatever_fails() {
    let first = std::env::var("SEED").ok().map(|seed| seed.parse().unwrap());
    let schedules = std::env::var("FLEET_SCHEDULES").ok();
    let schedules: Option<u64> = schedules.map(|count| count.parse().unwrap());
    let count = if first.is_some() {
        1
    } else {
        schedules.unwrap_or(100)
    };
    for number in 0..count {
        // The short form always plays the same schedules.
        let seed: u64 = first.unwrap_or_else(|| match schedules {
            Some(_) => fastrand::u64(..),
            None => number,
        });
        if let Err(panic) = std::panic::catch_unwind(|| play(seed)) {
            eprintln!("SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Without trouble, a search takes no longer than its secrets and a few leases.
#[test]
fn a_fleet_without_trouble_works_in_parallel() {
    let world = World::new(1, Size::Calm).run();
    assert!(world.now() < Duration::from_secs(60), "{:?}", world.now());
}
