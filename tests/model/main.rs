//! The engine against a plain model: random operations, several in flight, with and without faults.
//!
//! A failure prints its seed; `SWAPFS_SEED=n` repeats it alone, `SWAPFS_ROUNDS=n` runs n cases of
//! each kind (from that seed on).

mod crash;
mod driver;
mod finale;
#[path = "../../examples/crash/history.rs"]
#[expect(dead_code, reason = "the example needs more of it")]
mod history;
mod named;
mod plain;
mod rig;

use std::sync::Arc;

use driver::{Driver, SIZE_MAX, SMALL_MAX, Slot};
use rig::{Kind, Rng, Rounds, SeedGuard, World};

/// Operations of one case, for each thread.
const STEPS: u64 = 60;

fn alone(kind: Kind, seed: u64) {
    let _guard = SeedGuard { kind, seed };
    let mut rng = Rng::new(seed);
    let world = World::random(kind, seed, &mut rng);
    let slots = (0..rng.between(1, 4)).map(|_| Slot::own(&world, &mut rng, SIZE_MAX)).collect();
    let mut driver = Driver::new(world.clone(), rng, slots, false);
    for _ in 0..STEPS {
        driver.step();
    }
    driver.finish();
    world.end();
}

/// Many small files and a large one.
fn many(kind: Kind, seed: u64) {
    let _guard = SeedGuard { kind, seed };
    let mut rng = Rng::new(seed);
    let world = World::random(kind, seed, &mut rng);
    let count = rng.between(6, 40);
    let mut slots: Vec<_> = (0..count).map(|_| Slot::own(&world, &mut rng, SMALL_MAX)).collect();
    slots.push(Slot::own(&world, &mut rng, SIZE_MAX));
    let mut driver = Driver::new(world.clone(), rng, slots, false);
    for _ in 0..STEPS * 4 {
        driver.step();
    }
    driver.finish();
    world.end();
}

/// Threads with a file of their own, and threads that share one in disjoint ranges whose borders are
/// no page borders.
fn together(kind: Kind, seed: u64) {
    let _guard = SeedGuard { kind, seed };
    let mut rng = Rng::new(seed);
    let world = World::random(kind, seed, &mut rng);
    let threads = rng.between(3, 4);
    let shared = Arc::new(rig::TestFile::new(&world));
    let length = rng.between(20_000, 300_000);
    shared.fill(&vec![0; (threads * length + 70_000) as usize]);
    let mut drivers = Vec::new();
    for i in 0..threads {
        let mut slots = vec![Slot::region(shared.clone(), i * length, length)];
        if rng.percent(50) {
            slots.push(Slot::own(&world, &mut rng, SIZE_MAX));
        }
        drivers.push(Driver::new(world.clone(), rng.fork(), slots, true));
    }
    let handles: Vec<_> = drivers
        .into_iter()
        .map(|mut driver| {
            std::thread::spawn(move || {
                for _ in 0..STEPS {
                    driver.step();
                }
                driver.drain();
                driver
            })
        })
        .collect();
    // All threads end before the first of them is judged: the finale switches the faults off.
    let drivers: Vec<_> = handles.into_iter().map(std::thread::JoinHandle::join).collect();
    for driver in drivers {
        match driver {
            Ok(driver) => driver.finish(),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    world.end();
}

fn rounds(kind: Kind, default: u64, case: impl Fn(Kind, u64)) {
    let rounds = Rounds::get(default);
    for seed in rounds.first..rounds.first + rounds.count {
        case(kind, seed);
    }
}

#[test]
fn one_thread() {
    rounds(Kind::Sound, 80, alone);
}

#[test]
fn one_thread_with_faults() {
    rounds(Kind::Faulty, 80, alone);
}

#[test]
fn one_thread_with_short_and_late_transfers() {
    rounds(Kind::Awkward, 50, alone);
}

#[test]
fn one_thread_on_a_full_device() {
    rounds(Kind::Full, 50, alone);
}

#[test]
fn many_small_files() {
    rounds(Kind::Sound, 40, many);
}

#[test]
fn many_small_files_with_faults() {
    rounds(Kind::Faulty, 30, many);
}

#[test]
fn many_small_files_with_short_and_late_transfers() {
    rounds(Kind::Awkward, 20, many);
}

#[test]
fn power_cuts() {
    rounds(Kind::Awkward, 60, crash::cut);
}

#[test]
fn power_cuts_with_faults() {
    rounds(Kind::Faulty, 60, crash::cut);
}

#[test]
fn wrong_bytes_are_refused() {
    let refused = std::cell::Cell::new(0);
    rounds(Kind::Faulty, 60, |kind, seed| refused.set(refused.get() + crash::corrupt(kind, seed)));
    assert!(refused.get() > 0, "no device went astray");
}

#[test]
fn threads() {
    rounds(Kind::Sound, 25, together);
}

#[test]
fn threads_with_faults() {
    rounds(Kind::Faulty, 25, together);
}
