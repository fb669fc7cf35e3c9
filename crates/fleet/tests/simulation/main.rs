//! A simulated fleet: agents, servers, a broker, and a network that loses, delays and repeats
//! messages. Their answers are compared, at every step, with those of one thread that tries one
//! secret after another.

mod broker;
#[path = "../../../search/tests/oracle/mod.rs"]
mod oracle;
mod tried;
mod world;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use self::world::{Size, World};

/// Schedules that have failed once.
const FAILED_ONCE: [u64; 2] = [15_935_426_769_466_763_001, 9_324_848_386_285_241_560];

/// Set `SEED` to repeat one schedule. `FLEET_SCHEDULES` sets how many random ones are played; by
/// default, the same 2,000 are played each time.
#[test]
fn a_fleet_finds_what_one_thread_finds_whatever_fails() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse().unwrap());
    if let Some(seed) = number("SEED") {
        World::new(seed, Size::Small).run();
        return;
    }
    for seed in FAILED_ONCE {
        World::new(seed, Size::Small).run();
    }
    let (random, next) = (number("FLEET_SCHEDULES"), AtomicU64::new(0));
    let play_some = || {
        while let schedule = next.fetch_add(1, Ordering::Relaxed)
            && schedule < random.unwrap_or(2_000)
        {
            let seed = random.map_or(schedule, |_| fastrand::u64(..));
            let play = || drop(World::new(seed, Size::Small).run());
            if let Err(panic) = std::panic::catch_unwind(play) {
                // The other threads play no more.
                next.store(u64::MAX / 2, Ordering::Relaxed);
                eprintln!("SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().unwrap().get() {
            scope.spawn(play_some);
        }
    });
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

/// A leader that cannot write its key deals nothing, although messages arrive.
#[test]
fn servers_search_themselves_while_the_streams_have_no_leader() {
    for seed in 0..10 {
        let world = World::new(seed, Size::Calm);
        world.without_streams_from(Duration::from_secs(5)).run();
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
