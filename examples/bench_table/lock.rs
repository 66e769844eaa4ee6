//! How long the engine's lock is held for what is moved and asked. One divided by that is the most that any number of
//! processors can reach. Only a program that was built with the feature `lock-times` counts it.

use std::fs::{self, File};
use std::time::Duration;

use serde_json::{Value, json};
use swapfs::bench::Cleanup;
use swapfs::units::{GIB, MIB};

use crate::Outcome;
use crate::client::{Action, Task};
use crate::place::{Place, State, Way};
use crate::work::{Fio, client};

/// Bytes of the file whose 4 KiB are read: resident as a whole, with each pool.
const RESIDENT: u64 = 64 * MIB;
/// Partitions that the daemon knows while it is idle.
const PARTITIONS: usize = 100_000;
const IDLE: Duration = Duration::from_secs(10);

/// How often the lock was taken, and the nanoseconds that it was held, since the mount.
#[derive(Debug, Clone, Copy)]
struct Times {
    taken: u64,
    held_ns: u64,
}

impl Times {
    /// `None` when the daemon does not count.
    fn now(place: &Place) -> Outcome<Option<Times>> {
        let stats = fs::read_to_string(place.folder(Way::Mount).join(".swapfs/stats.json"))?;
        let stats: Value = serde_json::from_str(&stats)?;
        let number = |name: &str| stats["lock"][name].as_u64();
        let counted = number("taken").zip(number("held_ns"));
        Ok(counted.map(|(taken, held_ns)| Times { taken, held_ns }))
    }
}

/// Runs `work` and returns how much of it there was, with what the lock was held for one of it: microseconds, and times.
fn counted(place: &Place, work: impl FnOnce() -> Outcome<f64>) -> Outcome<Option<(f64, f64)>> {
    let Some(before) = Times::now(place)? else { return Ok(None) };
    let amount = work()?;
    let Some(after) = Times::now(place)? else { return Ok(None) };
    let held = (after.held_ns - before.held_ns) as f64 / 1e3 / amount;
    Ok(Some((held, (after.taken - before.taken) as f64 / amount)))
}

/// Measures and prints all of it; each value is a line of the table.
pub(crate) fn measure(cleanup: &Cleanup, place: &mut Place, quick: bool) -> Outcome<Vec<Value>> {
    let mut found = Vec::new();
    if Times::now(place)?.is_none() {
        println!("{} engine's lock: not counted (build with --features lock-times)", place.name);
        return Ok(found);
    }
    println!("{} engine's lock: microseconds held, times taken", place.name);
    let mut note = |what: &str, unit: &str, counted: Option<(f64, f64)>| {
        let Some((held, taken)) = counted else { return };
        println!("  {what}: {held:.2} us, {taken:.2} times for each {unit}");
        found.push(json!({"what": what, "unit": unit, "held_us": held, "taken": taken}));
    };
    let path = place.folder(Way::Mount).join("lock");
    for (rw, what) in [("write", "direct 1 MiB writes"), ("read", "direct 1 MiB reads")] {
        let fio = Fio::direct(rw, 8, GIB);
        place.prepare(Way::Mount, "lock", GIB, State::Cold)?;
        let stream = || {
            fio.run(cleanup, std::slice::from_ref(&path))?;
            Ok(1.0)
        };
        note(what, "GiB", counted(place, stream)?);
    }
    place.empty(&[])?;
    let path = place.folder(Way::Mount).join("resident");
    place.prepare(Way::Mount, "resident", RESIDENT, State::Warm)?;
    let task = Task::stream(Action::Read, vec![path.clone()], RESIDENT, 4096).direct();
    let reads = || {
        client(cleanup, &task)?;
        Ok((RESIDENT / 4096) as f64)
    };
    note("resident 4 KiB reads", "read", counted(place, reads)?);
    let calls = if quick { 5_000 } else { 50_000 };
    let status = Task {
        xattr: "user.swap.status".to_owned(),
        ..Task::calls(Action::Getxattr, vec![path], calls)
    };
    let asked = || {
        client(cleanup, &status)?;
        Ok(calls as f64)
    };
    note("status calls", "call", counted(place, asked)?);
    place.empty(&[])?;
    if !quick && place.name == 'A' {
        note("idle, with 100,000 partitions resident", "second", idle(place)?);
    }
    Ok(found)
}

/// What the daemon does by itself, for a second of it.
fn idle(place: &Place) -> Outcome<Option<(f64, f64)>> {
    let folder = place.folder(Way::Mount);
    for number in 0..PARTITIONS {
        fs::write(folder.join(format!("idle-{number}")), [7; 512])?;
    }
    rustix::fs::syncfs(File::open(&folder)?)?;
    std::thread::sleep(Duration::from_secs(5));
    let counted = counted(place, || {
        std::thread::sleep(IDLE);
        Ok(IDLE.as_secs_f64())
    })?;
    for number in 0..PARTITIONS {
        fs::remove_file(folder.join(format!("idle-{number}")))?;
    }
    Ok(counted)
}
