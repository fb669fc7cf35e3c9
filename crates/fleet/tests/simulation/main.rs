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
    for seed in 0..10 {
        let world = World::new(seed, Size::Calm);
        let work = world.secrets();
        let world = world.run();
        let (now, ideal) = (world.now(), work.div_f64(world.rate()));
        // Agents that are wrong about their speed lose some time at first.
        let most = ideal * 2 + Duration::from_secs(20);
        assert!(now < most, "seed {seed}: {now:?} instead of {ideal:?}");
    }
}

/// Prints how long answers wait in a large fleet, and what its leader costs. By default, the fleet
/// is small enough for every test run.
#[test]
fn a_large_fleet_answers_soon_after_a_hit() {
    let number = |name: &str, default: usize| {
        let given = std::env::var(name).ok();
        given.map_or(default, |text| text.parse().unwrap())
    };
    let agents = number("FLEET_AGENTS", 100);
    let searches = number("FLEET_SEARCHES", 4);
    for trouble in [false, true] {
        let (mut waits, mut leaders, mut seconds) = (Vec::<Duration>::new(), Duration::ZERO, 0.0);
        for seed in 0..number("FLEET_RUNS", 1) as u64 {
            let size = Size::Large {
                agents,
                searches,
                trouble,
            };
            let world = World::new(seed, size).run();
            waits.extend(&world.waits);
            leaders += world.leaders;
            seconds += world.now().as_secs_f64();
        }
        waits.sort();
        assert!(!waits.is_empty());
        let quantile = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize];
        eprintln!(
            "agents {agents}, trouble {trouble}: {} answers, waits: median {:.3} s, p99 {:.3} s, \
             p99.9 {:.3} s, longest {:.3} s; leader: {:.3} CPU seconds for each second",
            waits.len(),
            quantile(0.5).as_secs_f64(),
            quantile(0.99).as_secs_f64(),
            quantile(0.999).as_secs_f64(),
            quantile(1.0).as_secs_f64(),
            leaders.as_secs_f64() / seconds,
        );
    }
}
