//! Nodes whose descriptor was closed, inode numbers that come back, filesystems mounted inside.

use super::super::Access;
use super::*;

const FEW: usize = 4;

fn count_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The same with file handles and by names only.
fn both_ways(test: impl Fn(Swap)) {
    for handles in [true, false] {
        let swap = Swap::with(Options { descriptors_max: FEW, handles, ..Options::default() });
        if handles && !swap.tree.opens_handles {
            eprintln!("skipped with handles: not permitted here");
            continue;
        }
        test(swap);
    }
}

#[test]
fn closed_nodes_are_opened_again() {
    both_ways(|swap| {
        let mut folder = ROOT_ID;
        let mut entries = Vec::new();
        for depth in 0..10 {
            folder = swap.mkdir(folder, &format!("d{depth}")).id;
            entries.push(folder);
            entries.push(swap.make(folder, "file").id);
        }
        for id in entries.iter().chain(entries.iter().rev()) {
            assert_eq!(swap.tree.attributes(*id).unwrap().ino, *id);
            assert!(swap.tree.table.lock().descriptor_count() <= FEW);
        }
        let file = entries[19];
        assert!(swap.tree.open_file(file, Access::ReadOnly, false).is_ok());
        let expected = swap.path("d0/d1/d2/d3/d4/d5/d6/d7/d8/d9/file");
        for id in &entries[..8] {
            swap.tree.attributes(*id).unwrap();
        }
        assert_eq!(swap.tree.backing_path(file).unwrap(), expected);
        let linked = swap.tree.link(file, ROOT_ID, OsStr::new("linked")).unwrap();
        assert_eq!(linked.id, file);
        let listed = swap.tree.open_dir(User::OWN, folder).unwrap();
        let mut count = 0;
        listed
            .read(0, |_| {
                count += 1;
                true
            })
            .unwrap();
        assert_eq!(count, 3);
    });
}

#[test]
fn closed_nodes_follow_renames_made_through_the_tree() {
    both_ways(|swap| {
        let (a, b) = (swap.mkdir(ROOT_ID, "a"), swap.mkdir(ROOT_ID, "b"));
        let file = swap.make(a.id, "file");
        swap.rename((ROOT_ID, "a"), (b.id, "moved"));
        swap.rename((a.id, "file"), (a.id, "renamed"));
        for name in ["1", "2", "3", "4", "5"] {
            swap.make(ROOT_ID, name);
        }
        assert_eq!(swap.tree.attributes(file.id).unwrap().ino, file.id);
        assert_eq!(swap.tree.backing_path(file.id).unwrap(), swap.path("b/moved/renamed"));
    });
}

#[test]
fn an_inode_that_loses_its_last_known_name_stays_reachable() {
    both_ways(|swap| {
        let file = swap.make(ROOT_ID, "a");
        swap.tree.link(file.id, ROOT_ID, OsStr::new("b")).unwrap();
        assert_eq!(swap.tree.unlink(User::OWN, ROOT_ID, OsStr::new("b")), Ok(None));
        for name in ["1", "2", "3", "4", "5"] {
            swap.make(ROOT_ID, name);
        }
        assert_eq!(swap.tree.attributes(file.id).unwrap().nlink, 1);
        swap.look("a").unwrap();
        assert_eq!(swap.tree.backing_path(file.id).unwrap(), swap.path("a"));
    });
}

#[test]
fn what_was_removed_behind_the_tree_is_stale() {
    both_ways(|swap| {
        let file = swap.make(ROOT_ID, "a");
        let replaced = swap.make(ROOT_ID, "b");
        for name in ["1", "2", "3", "4", "5"] {
            swap.make(ROOT_ID, name);
        }
        std::fs::remove_file(swap.path("a")).unwrap();
        swap.plant("new");
        std::fs::rename(swap.path("new"), swap.path("b")).unwrap();
        assert_eq!(swap.tree.attributes(file.id), Err(Errno::ESTALE));
        assert_eq!(swap.tree.attributes(replaced.id), Err(Errno::ESTALE));
    });
}

#[test]
fn a_reused_inode_number_is_another_inode() {
    let swap = Swap::with(Options { descriptors_max: 0, ..Options::default() });
    for _ in 0..2000 {
        let old = swap.make(ROOT_ID, "a");
        let old_key = swap.tree.key(old.id).unwrap();
        std::fs::remove_file(swap.path("a")).unwrap();
        let new = swap.make(ROOT_ID, "a");
        if new.id == old.id {
            let new_key = swap.tree.key(new.id).unwrap();
            assert_ne!(old_key, new_key);
            assert_ne!(old.generation, new.generation);
            assert_eq!(swap.tree.id_of_key(&old_key), None);
            assert_eq!(swap.tree.id_of_key(&new_key), Some(new.id));
            // The kernel still gives the old one's lookup back; the new one must survive that.
            assert_eq!(swap.tree.forget(old.id, 1), None);
            assert!(swap.tree.attributes(new.id).is_ok());
            assert_eq!(swap.tree.forget(new.id, 1), Some(new_key));
            return;
        }
        std::fs::remove_file(swap.path("a")).unwrap();
        // Or a later round's node would carry this one's lookups.
        swap.tree.forget(old.id, 1);
        swap.tree.forget(new.id, 1);
    }
    eprintln!("skipped a_reused_inode_number_is_another_inode: numbers do not come back here");
}

/// Held by those who count this process's descriptors, or hold thousands of them.
static DESCRIPTORS: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

#[test]
fn descriptors_stay_bounded() {
    let _alone = DESCRIPTORS.lock();
    let swap = Swap::with(Options { descriptors_max: FEW, ..Options::default() });
    let before = count_descriptors();
    for index in 0..2000 {
        // A new file is opened when it is first reached.
        let made = swap.make(ROOT_ID, &index.to_string());
        assert_eq!(swap.tree.attributes(made.id).unwrap().ino, made.id);
    }
    assert_eq!(swap.tree.known_count(), 2001);
    assert_eq!(swap.tree.table.lock().descriptor_count(), FEW);
    // Other tests have some open at the same time.
    assert!(count_descriptors() < before + 1000);
}

#[test]
fn a_hundred_thousand_nodes_share_four_thousand_descriptors() {
    let _alone = DESCRIPTORS.lock();
    for handles in [true, false] {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let swap = Swap::in_folder(
            folder,
            Options { descriptors_max: 4000, handles, ..Options::default() },
        );
        let start = std::time::Instant::now();
        let ids: Vec<u64> =
            (0..100_000).map(|index| swap.make(ROOT_ID, &index.to_string()).id).collect();
        let made = start.elapsed();
        for id in &ids {
            assert_eq!(swap.tree.attributes(*id).unwrap().ino, *id);
        }
        eprintln!("made in {made:?}, made and opened again in {:?}", start.elapsed());
        assert_eq!(swap.tree.table.lock().descriptor_count(), 4000);
        ids.iter().for_each(|id| assert!(swap.tree.forget(*id, 1).is_some()));
        assert_eq!(swap.tree.known_count(), 1);
    }
}

#[test]
fn a_filesystem_mounted_inside_is_refused() {
    if !is_root("a_filesystem_mounted_inside_is_refused") {
        return;
    }
    let swap = Swap::new();
    for (name, source) in [("other", "/dev/shm"), ("bound", "/tmp")] {
        let folder = swap.mkdir(ROOT_ID, name);
        let target = swap.path(name);
        let mounted = rustix::mount::mount_bind(source, &target);
        if let Err(error) = mounted {
            eprintln!("skipped a_filesystem_mounted_inside_is_refused: {error}");
            return;
        }
        let outcome = swap.look(name);
        rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!(outcome, Err(Errno::EXDEV), "{name}");
        assert_eq!(swap.look(name).unwrap().id, folder.id);
    }
}
