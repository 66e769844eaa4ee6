//! The rows of the library's aio handle and of DeepSpeed's, which the benchmark's own processes move.

use std::cell::RefCell;
use std::path::PathBuf;

use swapfs::bench::{Bench, Case, Engine, Round, Settings};
use swapfs::turns::Turns;

use crate::Outcome;
use crate::group::{Goal, Group, Measured};
use crate::place::Way;
use crate::rows::Plan;
use crate::sample::{Sample, Unit};

fn settings(plan: Plan<'_>, folder: PathBuf, engines: Vec<Engine>) -> Settings {
    Settings {
        folders: vec![folder],
        io_size: plan.bytes,
        queue_depth: 8,
        engines,
        cases: vec![Case::Overwrite, Case::ColdRead],
        ..Settings::default()
    }
}

fn sample(round: &Round) -> Sample {
    Sample { seconds: round.seconds(), bytes: round.bytes, ..Sample::default() }
}

/// The library's aio handle on the folder, beside fio: no mount has a part in it.
pub(crate) fn handle(
    plan: Plan<'_>, turns: Turns, wanted: impl Fn(&str) -> bool, mut told: impl FnMut(Measured),
) -> Outcome<()> {
    let mut engines = vec![Engine::Handle, Engine::Fio];
    if plan.huge {
        engines.push(Engine::FioHuge);
    }
    let settings = settings(plan, plan.place.folder(Way::Beside), engines);
    let bench = RefCell::new(Bench::new(&settings, plan.cleanup)?);
    let run = |engine, case| {
        let bench = &bench;
        move |number| Ok(sample(&bench.borrow_mut().round(engine, case, number)?))
    };
    let rows = [
        ("handle-read", "aio handle without a mount, cold read", Case::ColdRead),
        ("handle-write", "aio handle without a mount, overwrite", Case::Overwrite),
    ];
    for (id, title, case) in rows.into_iter().filter(|(id, ..)| wanted(id)) {
        let goals = [Some(Goal::AtLeast(1.0)), Some(Goal::AtLeast(0.97))];
        let mut group = Group::new(id, title, Unit::Throughput)
            .ours("aio::Handle", run(Engine::Handle, case))
            .beside("fio io_uring", goals, run(Engine::Fio, case));
        if plan.huge {
            group =
                group.beside("fio io_uring, huge pages", [None, None], run(Engine::FioHuge, case));
        }
        told(group.measure(plan.place.name, turns)?);
    }
    Ok(())
}

/// DeepSpeed's own aio handle on the mount, beside itself on the folder.
pub(crate) fn deepspeed(
    plan: Plan<'_>, turns: Turns, wanted: impl Fn(&str) -> bool, mut told: impl FnMut(Measured),
) -> Outcome<()> {
    let rows = [
        ("deepspeed-read", "DeepSpeed's aio handle, cold read", Case::ColdRead),
        ("deepspeed-write", "DeepSpeed's aio handle, overwrite", Case::Overwrite),
    ];
    let folders = [Way::Mount, Way::Beside].map(|way| plan.place.folder(way));
    let [ours, theirs] = folders.map(|folder| settings(plan, folder, vec![Engine::Deepspeed]));
    let ours = RefCell::new(Bench::new(&ours, plan.cleanup)?);
    let theirs = RefCell::new(Bench::new(&theirs, plan.cleanup)?);
    for (id, title, case) in rows.into_iter().filter(|(id, ..)| wanted(id)) {
        let run = |bench: &RefCell<Bench<'_>>, number| {
            Ok(sample(&bench.borrow_mut().round(Engine::Deepspeed, case, number)?))
        };
        let goals = [Some(Goal::AtLeast(0.97)), Some(Goal::AtLeast(0.85))];
        let group = Group::new(id, title, Unit::Throughput)
            .ours("mount", |number| run(&ours, number))
            .beside("folder", goals, |number| run(&theirs, number));
        told(group.measure(plan.place.name, turns)?);
    }
    Ok(())
}
