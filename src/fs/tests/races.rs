//! Many threads at once.

use std::sync::Barrier;
use std::thread;

use super::*;

const THREAD_COUNT: usize = 8;

#[test]
fn two_threads_that_find_a_new_inode_find_one_node() {
    for _ in 0..200 {
        let swap = Swap::new();
        swap.plant("a");
        let start = Barrier::new(2);
        let look = || {
            start.wait();
            swap.look("a").unwrap().id
        };
        let (first, second) = thread::scope(|scope| {
            let first = scope.spawn(look);
            let second = scope.spawn(look);
            (first.join().unwrap(), second.join().unwrap())
        });
        assert_eq!(first, second);
        assert_eq!(swap.lookups(first), 2);
    }
}

#[test]
fn lookups_and_forgets_balance() {
    for handles in [true, false] {
        let swap = Swap::with(Options { descriptors_max: 4, handles, ..Options::default() });
        let names: Vec<String> = (0..10).map(|index| format!("f{index}")).collect();
        names.iter().for_each(|name| swap.plant(name));
        thread::scope(|scope| {
            for seed in 0..THREAD_COUNT {
                let (swap, names) = (&swap, &names);
                scope.spawn(move || {
                    for step in 0..2000 {
                        let name = &names[(seed * 7 + step * 3) % names.len()];
                        let entry = swap.look(name).unwrap();
                        // Held, so it can be neither unknown nor another one, whoever forgets what.
                        let attributes = swap.tree.attributes(entry.id).unwrap();
                        assert_eq!(attributes.ino, entry.id);
                        swap.tree.forget(entry.id, 1);
                    }
                });
            }
        });
        assert_eq!(swap.tree.known_count(), 1);
        assert_eq!(swap.tree.table.lock().descriptor_count(), 0);
    }
}

#[test]
fn names_that_come_and_go_leave_nothing_behind() {
    for handles in [true, false] {
        let swap = Swap::with(Options { descriptors_max: 4, handles, ..Options::default() });
        let folder = swap.mkdir(ROOT_ID, "folder");
        thread::scope(|scope| {
            for seed in 0..THREAD_COUNT {
                let swap = &swap;
                scope.spawn(move || come_and_go(swap, folder.id, seed));
            }
        });
        swap.tree.forget(folder.id, 1);
        assert_eq!(swap.tree.known_count(), 1);
        assert_eq!(swap.tree.table.lock().descriptor_count(), 0);
    }
}

/// Makes, moves and removes names that other threads do the same to.
fn come_and_go(swap: &Swap, folder: u64, seed: usize) {
    let moved = OsStr::new("moved");
    for step in 0..300 {
        let name = format!("n{}", (seed + step) % 5);
        let name = OsStr::new(&name);
        if let Ok(created) = swap.tree.create(folder, name, &own(), 0o644, false, false) {
            let id = created.entry.id;
            // The descriptor goes first: only the tree keeps the inode from now on.
            drop(created);
            let _ =
                swap.tree.rename(User::OWN, (folder, name), (folder, moved), RenameKind::Replace);
            let attributes = swap.tree.attributes(id);
            assert!(attributes.is_ok_and(|attributes| attributes.ino == id), "{attributes:?}");
            let _ = swap.tree.unlink(User::OWN, folder, moved);
            swap.tree.forget(id, 1);
        }
        let _ = swap.tree.unlink(User::OWN, folder, name);
    }
}

#[test]
fn nodes_stay_reachable_while_their_folders_move() {
    for handles in [true, false] {
        let swap = Swap::with(Options { descriptors_max: 1, handles, ..Options::default() });
        let folder = swap.mkdir(ROOT_ID, "0");
        let files: Vec<u64> =
            (0..4).map(|index| swap.make(folder.id, &index.to_string()).id).collect();
        thread::scope(|scope| {
            let swap = &swap;
            scope.spawn(move || {
                for step in 0..1000 {
                    let (from, to) = (step.to_string(), (step + 1).to_string());
                    swap.rename((ROOT_ID, &from), (ROOT_ID, &to));
                }
            });
            for id in files {
                scope.spawn(move || {
                    for _ in 0..1000 {
                        assert_eq!(swap.tree.attributes(id).map(|it| it.ino), Ok(id));
                    }
                });
            }
        });
    }
}
